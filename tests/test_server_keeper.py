"""The keeper of a server that the demo page starts, with small programs in the server's place."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from demo.server_keeper import LOG_FILE, STATUS_FILE, started_keeper, tell_to_serve
from tests.support.processes import child, descendants, is_running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.page

STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
SERVER = "import time; print('up', flush=True); time.sleep(600)"
# Ends once the file is there that it is told of, as a server does once its requests are answered.
BUSY_SERVER = """
import pathlib, signal, sys, time
def end(*_):
    print("ends", flush=True)
    while not pathlib.Path(sys.argv[1]).exists():
        time.sleep(0.02)
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "kept"
    folder.mkdir()
    return folder


@pytest.fixture
def keeper(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    keeper = started_keeper(folder)
    yield keeper
    below = descendants(keeper.pid)
    keeper.kill()
    keeper.wait()
    for pid in below:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    close_page(keeper)


def close_page(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdin is not None
    with suppress(BrokenPipeError):
        keeper.stdin.close()


def assert_ends_with_the_page(keeper: subprocess.Popen[bytes], folder: Path) -> None:
    """Close the page: the keeper ends well, and its folder goes."""
    close_page(keeper)
    assert keeper.wait(60) == 0
    assert not folder.exists()


def serve(keeper: subprocess.Popen[bytes], *program: str) -> None:
    tell_to_serve(keeper, [sys.executable, "-c", *program], dict(os.environ))


def log_of(folder: Path) -> str:
    log = folder / LOG_FILE
    return log.read_text() if log.exists() else ""


def status_of(folder: Path) -> str:
    wait_until((folder / STATUS_FILE).exists)
    return (folder / STATUS_FILE).read_text()


@pytest.mark.parametrize("number", STOPPING)
def test_signal_to_the_keeper_stops_the_server(
    number: signal.Signals, keeper: subprocess.Popen[bytes], folder: Path
) -> None:
    serve(keeper, SERVER)
    wait_until(lambda: "up" in log_of(folder))
    [server] = descendants(keeper.pid)

    keeper.send_signal(number)

    assert status_of(folder) == str(-signal.SIGTERM)
    assert not is_running(server)
    # The page shows the end of the log.
    assert "up" in log_of(folder)
    assert_ends_with_the_page(keeper, folder)


@pytest.mark.parametrize("number", STOPPING)
def test_signal_that_comes_before_the_server_is_started_stops_it_too(
    number: signal.Signals, keeper: subprocess.Popen[bytes], folder: Path
) -> None:
    keeper.send_signal(number)
    serve(keeper, SERVER)

    assert status_of(folder) == str(-signal.SIGTERM)
    assert_ends_with_the_page(keeper, folder)


@pytest.mark.parametrize("number", STOPPING)
def test_folder_goes_when_a_signal_and_the_end_of_the_page_come_at_once(
    number: signal.Signals, keeper: subprocess.Popen[bytes], folder: Path
) -> None:
    keeper.send_signal(number)
    close_page(keeper)

    assert keeper.wait(60) == 0
    assert not folder.exists()


def test_further_signals_and_the_end_of_the_page_let_the_server_end_in_its_time(
    keeper: subprocess.Popen[bytes], folder: Path, tmp_path: Path
) -> None:
    serve(keeper, BUSY_SERVER, str(tmp_path / "answered"))
    wait_until(lambda: "up" in log_of(folder))

    keeper.send_signal(signal.SIGTERM)
    wait_until(lambda: "ends" in log_of(folder))
    for number in STOPPING:
        keeper.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        keeper.wait(1)
    (tmp_path / "answered").touch()

    assert status_of(folder) == "7"
    assert_ends_with_the_page(keeper, folder)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is tied")
def test_server_ends_with_its_killed_keeper(keeper: subprocess.Popen[bytes], folder: Path) -> None:
    serve(keeper, SERVER)
    wait_until(lambda: "up" in log_of(folder))
    [server] = descendants(keeper.pid)

    keeper.kill()

    wait_until(lambda: not is_running(server))


@pytest.mark.skipif(sys.platform != "linux", reason="it is looked up in /proc")
def test_keeper_ignores_a_signal_that_its_page_ignores(folder: Path) -> None:
    # As one that nohup has started.
    code = f"""
import json, os, pathlib, sys
from demo.server_keeper import started_keeper, tell_to_serve
keeper = started_keeper(pathlib.Path({str(folder)!r}))
tell_to_serve(keeper, [sys.executable, "-c", {SERVER!r}], dict(os.environ))
print(keeper.pid, flush=True)
sys.stdin.read()
"""
    with child("nohup", sys.executable, "-c", code) as page:
        keeper = int(page.read_line())
        page.wait_until(lambda: "up" in log_of(folder))

        status = Path(f"/proc/{keeper}/status").read_text()

        [ignored] = re.findall(r"^SigIgn:\s*(\w+)$", status, re.MULTILINE)
        assert int(ignored, 16) & (1 << (signal.SIGHUP - 1))


def test_keeper_that_has_ended_is_told_nothing(keeper: subprocess.Popen[bytes]) -> None:
    keeper.kill()
    keeper.wait()

    serve(keeper, SERVER)
