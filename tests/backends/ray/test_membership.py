"""Joining a cluster: the wait for its address, which a stop breaks off."""

from __future__ import annotations

import asyncio
import atexit
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from policy_server.backends.ray.cluster import RayCluster
from policy_server.backends.ray.connection import connect
from policy_server.backends.ray.membership import ClusterMember, SoleOwner
from policy_server.backends.ray.own_ray import OwnRay
from policy_server.backends.ray.shared_ray import SharedRay
from policy_server.errors import NotReadyError
from policy_server.settings import Settings
from tests.support.servers import free_port
from tests.support.waiting import turns, until


class RaysThread:
    """Ray's thread without a Ray: notes the functions that it would run."""

    def __init__(self) -> None:
        """Own the list of the functions."""
        self.called: list[Callable[..., Any]] = []
        self.fault: Exception | None = None

    async def __call__(self, function: Callable[..., Any], *_: object) -> None:
        """Note a function, and let it fail where it starts a Ray that can't be started."""
        self.called.append(function)
        if self.fault is not None and function.__name__ == "start":
            raise self.fault


async def test_cluster_that_is_not_there_is_an_error_in_time() -> None:
    thread, address = RaysThread(), f"127.0.0.1:{free_port()}"
    member = ClusterMember(address, thread, timeout_s=0.1)

    with pytest.raises(
        NotReadyError, match=f"expected a cluster at {address}, got no connection within 0.1 s"
    ):
        await member.join()

    assert thread.called == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_cluster_that_comes_up_meanwhile_is_joined(host: str) -> None:
    thread, port = RaysThread(), free_port()
    joining = asyncio.create_task(ClusterMember(f"{host}:{port}", thread, timeout_s=30.0).join())
    await turns()
    called_before = list(thread.called)

    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port):
        await joining

    assert (called_before, thread.called) == ([], [connect])


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:1"])
async def test_address_without_host_and_port_is_left_to_ray(address: str) -> None:
    thread = RaysThread()

    await ClusterMember(address, thread, timeout_s=0.1).join()

    assert thread.called == [connect]


async def test_stop_breaks_the_wait_for_a_cluster_off() -> None:
    member = ClusterMember(f"127.0.0.1:{free_port()}", RaysThread(), timeout_s=300.0)
    cluster = RayCluster(Settings(), member)
    await turns()

    await asyncio.wait_for(cluster.aclose(), 5)


async def test_cluster_that_stands_still_is_left_in_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As Ray's library does where the raylet and the head process were stopped.
    async def wait_for_ever(*_: object) -> None:
        await asyncio.Event().wait()

    unregistered: list[object] = []
    monkeypatch.setattr(atexit, "unregister", unregistered.append)
    monkeypatch.setattr("policy_server.backends.ray.membership._LEAVE_TIMEOUT_S", 0.1)
    member = ClusterMember("127.0.0.1:1", wait_for_ever, timeout_s=60.0)

    async with asyncio.timeout(30):
        await member.leave()

    assert "cluster_not_left" in caplog.text
    assert unregistered == [ray.shutdown]


@pytest.mark.parametrize("kind", [SoleOwner, SharedRay])
async def test_stop_breaks_the_start_of_a_ray_off(
    kind: type[SoleOwner | SharedRay], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    is_broken_off = asyncio.Event()
    monkeypatch.setattr(OwnRay, "break_off", lambda _: is_broken_off.set())
    called = []

    async def call(function: Callable[..., Any], *_: object) -> None:
        called.append(function.__name__)
        if function.__name__ in {"start", "_start"}:
            await is_broken_off.wait()

    async with asyncio.timeout(30):
        cluster = RayCluster(Settings(), kind(Settings(), call))
        await until(lambda: {"start", "_start"} & set(called))
        await cluster.aclose()

    assert "end" in called or "end_processes" in called
    assert list(tmp_path.iterdir()) == []


async def test_ray_that_could_not_be_started_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    thread = RaysThread()
    owner = SoleOwner(Settings(), thread)
    thread.fault = NotReadyError("no room")

    for _ in range(2):
        with pytest.raises(NotReadyError, match="no room"):
            await owner.rejoin()
    was_alive = owner.is_alive()
    thread.fault = None
    await owner.rejoin()

    assert [function.__name__ for function in thread.called].count("start") == 3
    assert (was_alive, owner.is_alive()) == (False, True)


@pytest.mark.parametrize("kind", [SoleOwner, SharedRay])
async def test_owner_whose_ray_lives_starts_no_other_one(
    kind: type[SoleOwner | SharedRay], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The policies could not be had on it; another Ray would stay behind, or end under all workers.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(kind, "is_alive", lambda _: True)
    thread = RaysThread()

    await kind(Settings(), thread).rejoin()

    assert thread.called == []


async def test_worker_whose_server_was_killed_starts_no_other_ray(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Its guard ends Ray; the worker, which ends too, would start one that the next guard ends.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(SharedRay, "is_alive", lambda _: False)
    thread = RaysThread()
    shared = SharedRay(Settings(), thread)
    monkeypatch.setattr(os, "getppid", lambda: 1)

    joining = asyncio.create_task(shared.rejoin())
    await turns()
    is_waiting = not joining.done()
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)

    assert (is_waiting, thread.called) == (True, [])
