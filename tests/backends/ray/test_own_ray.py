"""The Ray that a server starts: limits with which the server outlives it, and its end."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.serve._private.config import DeploymentConfig

from policy_server.backends.ray import own_ray
from policy_server.backends.ray.own_ray import OwnRay
from policy_server.settings import Settings

_YEAR_S = 365 * 24 * 3600


class NodeThatFails:
    """Ray's processes, whose end raises an error as Ray's own code may."""

    def end(self, *, is_graceful: bool) -> None:
        raise RuntimeError(f"no end, graceful or not: {is_graceful}")


class GuardThatStays(subprocess.Popen[bytes]):
    """A process that outlives SIGKILL, as one that waits for a disk does."""

    def kill(self) -> None:
        """Do nothing."""


@pytest.fixture(params=[subprocess.Popen])
def guard(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Give a guard that no look at the processes of the machine finds, and start no Ray."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(OwnRay, "_start_lean", lambda *_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with request.param(["sleep", "600"]) as process:
        monkeypatch.setattr(own_ray, "start_guard", lambda _: process)
        yield process
        subprocess.Popen.kill(process)


@pytest.fixture
def own(guard: subprocess.Popen[bytes]) -> OwnRay:
    """Return a Ray that is started, as far as its folder and its guard."""
    assert guard.poll() is None
    own = OwnRay(Settings(), server=os.getpid())
    own.start()
    return own


def end_of(own: OwnRay, guard: subprocess.Popen[bytes]) -> None:
    """Disconnect and end a Ray; fails where that takes for ever."""
    with ThreadPoolExecutor(1) as thread:
        ending = thread.submit(own.end)
        try:
            ending.result(30)
        finally:
            # A thread that waits for the guard would wait for ever.
            subprocess.Popen.kill(guard)


def test_guard_ends_with_its_ray_though_it_is_not_found(
    own: OwnRay, guard: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()

    end_of(own, guard)

    assert guard.returncode == -9
    assert not own.folder.exists()
    assert caplog.messages == []


@pytest.mark.parametrize("guard", [GuardThatStays], indirect=True)
def test_end_does_not_wait_for_a_guard_that_stays(
    own: OwnRay,
    guard: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(own_ray, "_GUARD_TIMEOUT_S", 0.1)
    caplog.clear()

    end_of(own, guard)

    told = [(record.message, vars(record)["pids"]) for record in caplog.records]
    assert told == [("ray_processes_left", [guard.pid])]


def test_guard_and_folder_end_where_the_end_of_rays_node_fails(
    own: OwnRay, guard: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_node", NodeThatFails())

    with pytest.raises(RuntimeError, match="no end"):
        end_of(own, guard)

    assert guard.returncode == -9
    assert not own.folder.exists()


def test_guard_and_folder_end_where_ray_does_not_disconnect(
    own: OwnRay, guard: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("no answer")

    monkeypatch.setattr(ray, "shutdown", fail)

    with pytest.raises(RuntimeError, match="no answer"):
        end_of(own, guard)

    assert guard.returncode == -9
    assert not own.folder.exists()


def limit_of(name: str, *, by_itself: int) -> int:
    """Return a limit of a server's own Ray, else the one that Ray has by itself."""
    options = OwnRay(Settings(), server=os.getpid())._options()  # noqa: SLF001 -- Ray tells it nowhere
    limit: int = options["_system_config"].get(name, by_itself)
    return limit


def test_no_argument_of_a_deploy_goes_by_the_object_store_of_the_raylet() -> None:
    # Ray's library ends a process that reaches for the store of a raylet that has died.
    sent = DeploymentConfig().to_proto_bytes()

    assert 2 * len(sent) < limit_of("max_direct_call_object_size", by_itself=100 * 1024)


def test_call_of_a_dead_head_process_never_ends_the_server() -> None:
    assert limit_of("gcs_rpc_server_reconnect_timeout_s", by_itself=60) > _YEAR_S
