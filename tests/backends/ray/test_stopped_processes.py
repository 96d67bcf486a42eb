"""Replicas and other workers of Ray's that a signal has stopped: found out and killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from policy_server.backends.ray import direct_calls
from policy_server.backends.ray.cluster import RayCluster
from policy_server.backends.ray.direct_calls import ConnectionLostError, DirectCalls
from policy_server.backends.ray.membership import ClusterMember
from policy_server.backends.ray.stopped_processes import Standstill, StoppedProcesses
from policy_server.backends.ray_processes import Process
from policy_server.policy import PolicyOutputs
from policy_server.settings import Settings
from tests.support.call_replicas import (
    Replicas,
    connected,
    doubled,
    inputs_of,
    number_in,
    replica_process,
)
from tests.support.waiting import until

AFTER_S, EVERY_S = 0.3, 0.05
SOON_S = 30.0
# As `ray_processes` tells workers from agents; the first is one that has no title yet.
WORKERS = {
    "worker that imports": (sys.executable, "/x/ray/_private/workers/default_worker.py"),
    "worker that waits": ("ray::IDLE",),
    "controller": ("ray::ServeController",),
    "controller that starts": ("ray::SERVE_CONTROLLER_ACTOR:ServeController.__init__",),
    "replica": ("ray::ServeReplica:policy-default-0123",),
    "replica that starts": (
        "ray::SERVE_REPLICA::policy-0123#policy#4x:ServeReplica:policy.__init__",
    ),
}
OTHERS = {
    "agent that imports": (sys.executable, "/x/ray/dashboard/agent.py"),
    "dashboard agent": ("ray::DashboardAgent",),
    "agent of environments": ("ray::RuntimeEnvAgent",),
    "other program": (sys.executable,),
}
# This process stands for the raylet: workers are its children.
RAYLET = (os.getpid(),)


@contextmanager
def titled(title: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a process with a title until the block ends."""
    sleeping = "import time; print('up', flush=True); time.sleep(600)"
    command = [title[0], "-c", sleeping, *title[1:]]
    with subprocess.Popen(
        command, executable=sys.executable, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def looking(*owners: DirectCalls, parents: Collection[int] = RAYLET) -> AsyncIterator[None]:
    """Look for stopped processes while the block runs."""
    stopped = StoppedProcesses(owners, lambda: parents, after_s=AFTER_S, every_s=EVERY_S)
    task = asyncio.create_task(stopped.run())
    try:
        yield
    finally:
        assert not task.done(), "it goes on looking"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ended(process: subprocess.Popen[str]) -> int:
    """Wait until a process has ended, and return its status."""
    await until(lambda: process.poll() is not None, timeout_s=SOON_S)
    return process.returncode


@pytest.mark.parametrize("title", WORKERS.values(), ids=WORKERS)
async def test_worker_of_ray_that_is_stopped_is_killed(
    title: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    with titled(title) as process:
        async with looking():
            process.send_signal(signal.SIGSTOP)
            status = await ended(process)

    assert status == -signal.SIGKILL
    is_replica = "Replica" in title[0]
    expected = "replica_stands_still" if is_replica else "ray_stands_still"
    told = [vars(record) for record in caplog.records if record.msg.endswith("_stands_still")]
    assert [(each["msg"], each["replica_pid" if is_replica else "ended"]) for each in told] == [
        (expected, process.pid)
    ]


async def test_process_that_may_not_be_killed_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As that of another user.
    monkeypatch.setattr(Process, "kill", lambda _: None)
    with titled(WORKERS["controller"]) as first, titled(WORKERS["replica"]) as second:
        async with looking():
            first.send_signal(signal.SIGSTOP)
            await until(lambda: "ray_stands_still" in caplog.messages)
            # It is looked at as often again meanwhile.
            second.send_signal(signal.SIGSTOP)
            await until(lambda: "replica_stands_still" in caplog.messages)

    assert caplog.messages.count("ray_stands_still") == 1


async def test_agents_of_ray_and_other_programs_that_are_stopped_are_left_alone() -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(titled(title)) for title in OTHERS.values()]
        worker = stack.enter_context(titled(WORKERS["controller"]))
        for process in others:
            process.send_signal(signal.SIGSTOP)
        async with looking():
            # They were stopped earlier, so that they would be killed earlier.
            worker.send_signal(signal.SIGSTOP)
            await ended(worker)
        alive = [process.poll() is None for process in others]

    assert alive == [True] * len(others)


async def test_workers_of_a_ray_that_the_server_has_not_started_are_left_alone(
    tmp_path: Path,
) -> None:
    member = ClusterMember("127.0.0.1:1", asyncio.to_thread, timeout_s=60.0)
    replicas = Replicas()
    with titled(WORKERS["controller"]) as controller, replica_process(tmp_path) as (own, address):
        replicas.listed.append(address)
        async with connected(replicas) as calls, looking(calls, parents=member.needed_pids):
            controller.send_signal(signal.SIGSTOP)
            # A replica to which the server is connected is none of the cluster's own processes.
            own.send_signal(signal.SIGSTOP)
            replicas.listed.clear()
            await ended(own)
        is_left_alone = controller.poll() is None

    assert is_left_alone


async def test_cluster_kills_workers_of_its_ray_that_are_stopped_while_that_starts() -> None:
    member = ClusterMember("127.0.0.1:1", asyncio.to_thread, timeout_s=60.0)
    member.needed_pids = RAYLET
    with titled(WORKERS["worker that waits"]) as process:
        cluster = RayCluster(Settings(), member)
        try:
            process.send_signal(signal.SIGSTOP)
            status = await ended(process)
        finally:
            await cluster.aclose()

    assert status == -signal.SIGKILL


@pytest.mark.parametrize("calls_before", [0, 1], ids=["owes nothing", "owes a call"])
async def test_replica_that_is_stopped_is_killed_and_its_calls_are_not_to_blame(
    calls_before: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", 0.1)
    outcomes: list[PolicyOutputs | Exception] = []
    hung: list[object] = []
    with replica_process(tmp_path) as (process, address):
        replicas = Replicas()
        replicas.listed.append(address)
        async with connected(replicas) as calls, looking(calls):
            calls.on_hang = hung.append
            await calls.infer(inputs_of(1))
            process.send_signal(signal.SIGSTOP)
            for _ in range(calls_before):
                calls.ask(inputs_of(1), outcomes.append)
            replicas.listed.clear()
            status = await ended(process)
            await until(lambda: replicas.lost)

    assert status == -signal.SIGKILL
    assert [type(outcome) for outcome in outcomes] == [ConnectionLostError] * calls_before
    assert (replicas.lost, hung) == ([address.replica], [])
    events = [record.msg for record in caplog.records if record.levelname == "ERROR"]
    assert events == ["replica_stands_still"]


async def test_stopped_replica_whose_call_another_one_has_answered_is_not_said_to_have_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", 0.1)
    replicas = Replicas(doubled)
    with replica_process(tmp_path) as (process, address):
        replicas.listed.append(address)
        async with connected(replicas) as calls, looking(calls):
            for _ in range(30):
                await calls.infer(inputs_of(1))
            process.send_signal(signal.SIGSTOP)
            answers = await asyncio.gather(*(calls.infer(inputs_of(n)) for n in range(4)))
            replicas.listed.remove(address)
            await ended(process)
            await until(lambda: replicas.lost)

    assert [number_in(answer) for answer in answers] == [0, 2, 4, 6]
    assert "replica_hung" not in caplog.messages


async def test_replica_that_computes_is_not_killed_however_long_it_takes(tmp_path: Path) -> None:
    with replica_process(tmp_path, call_s=4 * AFTER_S) as (process, address):
        replicas = Replicas()
        replicas.listed.append(address)
        async with connected(replicas) as calls, looking(calls):
            assert number_in(await calls.infer(inputs_of(1))) == 2

        assert process.poll() is None


def test_process_that_is_stopped_at_each_look_stands_still_for_as_long() -> None:
    standstill = Standstill(longest_between_s=0.75)
    found = []
    for n in range(5):
        standstill.look("first", 100.0 + 0.5 * n)
        found.append(standstill.seconds)

    assert found == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_process_that_goes_on_in_between_begins_anew_to_stand_still() -> None:
    standstill = Standstill(longest_between_s=0.75)
    for n in range(5):
        standstill.look("first", 100.0 + 0.5 * n)
    standstill.look("second", 102.5)

    assert standstill.seconds == 0.0


def test_time_in_which_nobody_looked_counts_little() -> None:
    standstill = Standstill(longest_between_s=0.75)
    standstill.look("first", 100.0)
    # The server was stopped as well, and goes on before its replica does.
    standstill.look("first", 160.0)

    assert standstill.seconds == 0.75
