"""What uvicorn hears of the signals that stop it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import uvicorn

from policy_server.errors import NotReadyError
from policy_server.http_server.end_of_listening import end_listening_first
from policy_server.http_server.workers import Worker
from tests.support.servers import silent
from tests.support.waiting import until


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Take the signals as uvicorn does, and give those that came."""
    came: list[int] = []
    known = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    known[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield came
    for number, handler in known.items():
        signal.signal(number, handler)


class SupervisedWorker(Worker):
    """The only worker of a supervisor that runs."""

    def __init__(self) -> None:
        self.supervisor = os.getppid()

    def stop_serving(self) -> bool:
        return True


def running() -> uvicorn.Server:
    server = uvicorn.Server(uvicorn.Config(silent, log_config=None))
    server.servers, server.started = [], True
    return server


async def test_uvicorn_hears_of_a_signal_once(heard: list[int]) -> None:
    end_listening_first(running())

    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)

    assert heard == [signal.SIGTERM]


async def test_uvicorn_goes_on_until_the_queue_of_connections_is_empty(heard: list[int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = running()
        server.servers = [SimpleNamespace(sockets=[listener])]  # type: ignore[list-item]  # a stand-in
        end_listening_first(server)
        with socket.create_connection(listener.getsockname()):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.3)
            early = list(heard)
            listener.accept()[0].close()
            await asyncio.sleep(0.1)

    assert early == []
    assert heard == [signal.SIGTERM]


async def test_second_signal_is_heard_at_once_and_the_first_not_behind_it(heard: list[int]) -> None:
    end_listening_first(running())

    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    at_once = list(heard)
    await asyncio.sleep(0.1)

    assert at_once == [signal.SIGTERM]
    assert heard == [signal.SIGTERM]


async def test_terminal_that_closes_stops_the_server_as_sigterm_does(heard: list[int]) -> None:
    end_listening_first(running())

    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.sleep(0.1)

    assert heard == [signal.SIGTERM]


async def test_terminal_that_closes_is_ignored_under_nohup(heard: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_listening_first(running())

    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.sleep(0.1)

    assert heard == []


async def test_signal_that_uvicorn_has_noted_before_ends_the_start(heard: list[int]) -> None:
    server = running()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(NotReadyError, match=r"^the start was ended by a signal$"):
        end_listening_first(server)

    assert heard == []


async def test_signal_before_uvicorn_listens_waits_until_it_does(heard: list[int]) -> None:
    server = uvicorn.Server(uvicorn.Config(silent, log_config=None))
    end_listening_first(server)

    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    early = list(heard)
    server.servers, server.started = [], True
    await asyncio.sleep(0.1)

    assert early == []
    assert heard == [signal.SIGTERM]


PROGRAM = """
import asyncio, os, signal, uvicorn, uvloop
from policy_server.http_server.end_of_listening import end_listening_first

async def serve():
    server = uvicorn.Server(uvicorn.Config("app:app", log_config=None))
    server.servers = []
    end_listening_first(server)()
    {within}

{run}(serve())
{behind}
print("goes on")
"""
HANG_UP = "os.kill(os.getpid(), signal.SIGHUP)"


@pytest.mark.parametrize("run", ["asyncio.run", "uvloop.run"])
@pytest.mark.parametrize(
    ("within", "behind"), [("pass", HANG_UP), (HANG_UP, "")], ids=["own loop", "same loop"]
)
def test_program_that_goes_on_behind_its_server_ends_with_its_terminal_again(
    run: str, within: str, behind: str
) -> None:
    program = PROGRAM.format(run=run, within=within, behind=behind)

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (ended.returncode, ended.stdout) == (-signal.SIGHUP, ""), ended.stderr


async def test_clients_are_taken_for_a_time_after_sigterm(heard: list[int]) -> None:
    said: list[str] = []
    end_listening_first(running(), on_ending=lambda: said.append("ending"), drain_s=0.5)

    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    early = (list(said), list(heard))
    while not heard:
        await asyncio.sleep(0.01)

    assert early == (["ending"], [])
    assert (said, heard) == (["ending"], [signal.SIGTERM])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_nobody_waits_for_a_time_after_another_signal(
    number: signal.Signals, heard: list[int]
) -> None:
    said: list[str] = []
    end_listening_first(running(), on_ending=lambda: said.append("ending"), drain_s=3600)

    os.kill(os.getpid(), number)
    await asyncio.sleep(0.1)

    assert said == ["ending"]
    assert len(heard) == 1


async def test_second_signal_does_not_wait_for_the_time_of_the_first(heard: list[int]) -> None:
    end_listening_first(running(), drain_s=3600)

    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)

    assert heard == [signal.SIGTERM]


async def test_worker_hears_once_of_sigterm_to_it_and_its_supervisor(
    heard: list[int],
) -> None:
    end_listening_first(running(), SupervisedWorker(), drain_s=0.5)

    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    # By the supervisor, which tells its workers.
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    early = list(heard)
    await until(lambda: heard)

    assert early == []
    assert heard == [signal.SIGTERM]


async def test_worker_does_not_wait_after_sigint_behind_sigterm(
    heard: list[int],
) -> None:
    end_listening_first(running(), SupervisedWorker(), drain_s=3600)

    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)

    assert heard == [signal.SIGINT]
