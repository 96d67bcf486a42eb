"""A process whose Ray has died opens another."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from policy_server.backends.ray import open_ray_cluster
from tests.support.ray_clusters import SETTINGS, check_answers, processes_of, version_of

pytestmark = pytest.mark.service


@pytest.mark.parametrize("process", ["gcs_server", "raylet/raylet"])
async def test_ray_is_reopened_in_the_same_process_after_it_has_died(
    process: str, tmp_path: Path
) -> None:
    version = version_of("ppo_discrete", tmp_path)

    async with open_ray_cluster(SETTINGS) as first:
        await first.deploy(version)
        [pid] = processes_of(process)
        os.kill(pid, signal.SIGKILL)
    async with open_ray_cluster(SETTINGS) as second:
        await check_answers(await second.deploy(version), version)

    assert processes_of("gcs_server") == processes_of("raylet/raylet") == []
