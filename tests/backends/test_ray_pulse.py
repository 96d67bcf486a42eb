"""Processes of Ray's that stand still: ended, and heard of as if they had died."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from policy_server.backends.ray_processes import Process
from policy_server.backends.ray_pulse import (
    WatchedProcess,
    are_running,
    end_standstills,
    first_end,
    first_lost,
)
from tests.support.processes import Child, child

# A server that sends an HTTP/2 server's settings to whoever connects, as gRPC's does.
_SERVER = """
import socketserver

class Settings(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))

with socketserver.TCPServer(("127.0.0.1", 0), Settings) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
"""


@pytest.fixture
def server() -> Iterator[Child]:
    with child(sys.executable, "-c", _SERVER) as started:
        yield started


@pytest.fixture
def watched(server: Child) -> WatchedProcess:
    return WatchedProcess(Process.of(server.process.pid), "127.0.0.1", int(server.read_line()))


async def test_process_that_stands_still_is_ended(server: Child, watched: WatchedProcess) -> None:
    lost = asyncio.create_task(first_lost([watched], limit_s=0.5))
    assert await watched.has_pulse()

    os.kill(server.process.pid, signal.SIGSTOP)
    await asyncio.wait_for(lost, 20)

    assert server.process.wait(10) == -signal.SIGKILL


async def test_process_that_goes_on_in_time_is_left_alone(
    server: Child, watched: WatchedProcess
) -> None:
    async with end_standstills([watched], limit_s=20):
        os.kill(server.process.pid, signal.SIGSTOP)
        assert not await watched.has_pulse()
        os.kill(server.process.pid, signal.SIGCONT)
        assert await watched.has_pulse()

    assert are_running([watched])


async def test_process_without_a_known_server_is_heard_of_when_it_ends(server: Child) -> None:
    watched = WatchedProcess(Process.of(server.process.pid))
    lost = asyncio.create_task(first_lost([watched], limit_s=0.1))
    assert await asyncio.wait([lost], timeout=0.5) == (set(), {lost})

    server.process.kill()
    await asyncio.wait_for(lost, 10)

    assert not are_running([watched])


@pytest.mark.parametrize("what", ["socket", "folder", "folder, with an empty one in its place"])
async def test_process_whose_sockets_are_removed_is_ended(
    server: Child, watched: WatchedProcess, what: str, tmp_path: Path
) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    paths = [folder / "raylet", folder / "plasma store"]
    for path in paths:
        path.touch()
    watched = replace(watched, sockets=tuple(map(str, paths)))
    lost = asyncio.create_task(first_lost([watched]))
    # Longer than a look at them takes to come.
    assert await asyncio.wait([lost], timeout=1.5) == (set(), {lost})

    if what == "socket":
        paths[1].unlink()
    else:
        shutil.rmtree(folder)
        if what != "folder":
            folder.mkdir()
    await asyncio.wait_for(lost, 20)

    assert server.process.wait(10) == -signal.SIGKILL


async def test_sockets_that_go_while_ray_ends_kill_nothing(
    server: Child, watched: WatchedProcess, tmp_path: Path
) -> None:
    watched = replace(watched, sockets=(str(tmp_path / "raylet"),))

    async with end_standstills([watched], limit_s=20):
        # Longer than a look at them takes to come.
        await asyncio.sleep(1.5)

    assert server.process.poll() is None


@pytest.mark.parametrize("sockets", [(), ("/r s/raylet", "/r s/plasma_store")])
def test_watched_process_is_read_as_it_was_written(
    watched: WatchedProcess, sockets: tuple[str, ...]
) -> None:
    watched = replace(watched, sockets=sockets)

    assert WatchedProcess.read(str(watched)) == watched


async def test_end_of_any_process_is_heard_of(server: Child) -> None:
    processes = [Process.of(os.getpid()), Process.of(server.process.pid)]
    waiting = asyncio.create_task(first_end(processes))
    await asyncio.sleep(0)
    was_waiting = not waiting.done()

    # Nobody has waited for it yet: it is a zombie.
    server.process.kill()
    await asyncio.wait_for(waiting, 10)

    assert was_waiting
    assert [process.is_running() for process in processes] == [True, False]


async def test_process_that_has_ended_already_is_heard_of_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        known = Process.of(process.pid)

    await asyncio.wait_for(first_end([known]), 10)

    assert Process.read(str(known)) == known
