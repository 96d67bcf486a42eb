"""A process whose Ray has died starts another, and answers meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest

from policy_server.backends.ray.cluster import open_ray_cluster
from policy_server.backends.ray_processes import rays_of
from tests.support.processes import is_running
from tests.support.ray_clusters import SETTINGS, check_answers, processes_of, version_of
from tests.support.waiting import until

pytestmark = pytest.mark.service


@pytest.mark.parametrize("process", ["gcs_server", "raylet/raylet"])
async def test_ray_is_reopened_in_the_same_process_after_it_has_died(
    process: str, tmp_path: Path
) -> None:
    version = version_of("ppo_discrete", tmp_path)

    async with open_ray_cluster(SETTINGS) as first:
        backend = await first.deploy(version)
        before = set(processes_of("ray::"))
        [pid] = processes_of(process)
        os.kill(pid, signal.SIGKILL)
        # Its replicas answer until those of the next Ray do.
        async with asyncio.timeout(120):
            while not (after := processes_of("ray::ServeReplica")) or set(after) & before:
                await check_answers(backend, version)
                await asyncio.sleep(0.1)
            while any(map(is_running, before)):
                await check_answers(backend, version)
        assert await backend.is_ready()
    async with open_ray_cluster(SETTINGS) as second:
        await check_answers(await second.deploy(version), version)

    assert rays_of(os.getpid()) == []
    assert processes_of("gcs_server") == processes_of("raylet/raylet") == []


@pytest.mark.parametrize("is_used_again", [True, False])
async def test_ray_that_nobody_needs_is_reopened_for_the_next_version_only(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, *, is_used_again: bool
) -> None:
    caplog.set_level(logging.INFO)
    version = version_of("ppo_discrete", tmp_path)

    async with open_ray_cluster(SETTINGS) as cluster:
        await cluster.undeploy(await cluster.deploy(version))
        [pid] = processes_of("gcs_server")
        os.kill(pid, signal.SIGKILL)
        await until(lambda: "ray_lost" in caplog.messages)
        if is_used_again:
            await check_answers(await cluster.deploy(version), version)

    assert caplog.messages.count("ray_started") == 1 + is_used_again
    assert rays_of(os.getpid()) == []
    assert processes_of("gcs_server") == processes_of("raylet/raylet") == []
