"""Ray Serve adds replicas under load, and each of them answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from policy_server.backends.ray.backend import RayBackend
from policy_server.backends.ray.cluster import open_ray_cluster
from policy_server.policy import PolicyInputs
from tests.support.ray_clusters import SETTINGS, check_answers, processes_of, version_of
from tests.support.waiting import until

pytestmark = pytest.mark.service

MOST = 3
# Some 20 ms of a core.
ROWS = 10_000


def ticks_of(pid: int) -> float:
    """Return the processor time that a process has used, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return float(fields[11])


async def test_replicas_are_added_under_load_up_to_the_most(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_replicas": MOST})
    version = version_of("ppo_discrete", tmp_path, settings=settings)
    async with open_ray_cluster(settings) as cluster:
        backend = await cluster.deploy(version)
        at_first = processes_of("ServeReplica:policy-")

        # Two calls for each that can be computed at a time, as the scheduler sends them.
        asking = [asyncio.create_task(_ask_for_ever(backend)) for _ in range(2 * backend.capacity)]
        await until(
            lambda: len(processes_of("ServeReplica:policy-")) == MOST, timeout_s=120, pause_s=0.2
        )
        replicas = processes_of("ServeReplica:policy-")
        before = {pid: ticks_of(pid) for pid in replicas}
        await until(
            lambda: all(ticks_of(pid) >= before[pid] + 20 for pid in replicas),
            timeout_s=120,
            pause_s=0.2,
        )
        # Nothing is connected to them: Ray Serve is asked.
        await until(lambda: cluster.healthy_replicas == MOST, timeout_s=60)
        await check_answers(backend, version)
        failed = [task for task in asking if task.done()]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    assert backend.capacity == MOST
    assert len(at_first) == 1
    assert len(replicas) == MOST
    assert failed == []


async def _ask_for_ever(backend: RayBackend) -> None:
    width = backend.signature.observation_width
    assert width is not None
    inputs = PolicyInputs.of(np.zeros((ROWS, width), np.float32), wants_distribution=False)
    while True:
        assert len(await backend.infer(inputs)) == ROWS
