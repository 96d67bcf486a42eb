"""Faults under load, one by one, with every request counted: `python -m tests.faults [NAME ...]`.

Each fault has a server of its own, which clients ask without a pause, each on one connection that
is kept open. It prints the table of docs/reliability.md.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.folders import EXPORTS
from tests.support.processes import command_line, descendants, is_running
from tests.support.server_processes import KEY, Server, compiled_home_of, running_server
from tests.support.servers import status_of
from tests.support.waiting import wait_until

CLIENTS = 32
BEFORE_S = 3.0
AFTER_S = 25.0
EXPORT = "ppo_discrete"
CASES = json.loads((EXPORTS / EXPORT / "cases.json").read_text())
OK = 200
COLUMNS = ("fault", "requests", "answered", "503", "failed", "wrong", "lost")
TIMES = ("slowest", "last trouble", "ready again", "stop", "left behind")


@dataclass
class Load:
    """Requests of many clients, each counted once.

    Attributes:
        sent: when each request was sent, its status (0 for a connection that ended), its seconds
            and whether its answer is the library's.
    """

    url: str
    sent: list[tuple[float, int, float, bool]] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask until the block ends."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            asking = [pool.submit(self._ask) for _ in range(CLIENTS)]
            try:
                yield
            finally:
                self.is_over.set()
        for client in asking:
            client.result()

    def _ask(self) -> None:
        address = urlsplit(self.url)
        number = 0
        while not self.is_over.is_set():
            assert address.hostname is not None
            connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
            with suppress(OSError):
                connection.connect()
                while not self.is_over.is_set():
                    number += 1
                    if not self._asked(connection, CASES[number % len(CASES)]):
                        break
            connection.close()
            time.sleep(0.01)

    def _asked(self, connection: http.client.HTTPConnection, case: dict[str, Any]) -> bool:
        began = time.monotonic()
        status, is_right = 0, True
        try:
            body = json.dumps(case["observation"])
            headers = {"access-token": KEY, "content-type": "application/json"}
            connection.request("POST", "/predict_deterministic", body, headers)
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
            if status == OK:
                wanted = [case["expected"]["deterministic_action"]]
                is_right = json.loads(text)["actions"] == wanted
        except (OSError, http.client.HTTPException):
            status = 0
        self.sent.append((began, status, time.monotonic() - began, is_right))
        return status != 0


def pids_of(server: Server, words: str) -> list[int]:
    """Return the processes below a server whose command lines have these words."""
    return [pid for pid in descendants(server.process.pid) if words in command_line(pid)]


def kill(words: str, *, most: int = 9) -> Callable[[Server], None]:
    """Return the fault that kills processes."""

    def happen(server: Server) -> None:
        found = pids_of(server, words)
        assert found, f"no process {words}"
        for pid in found[:most]:
            os.kill(pid, signal.SIGKILL)

    return happen


def freeze(server: Server) -> None:
    """Let a replica stand still for 8 s."""
    pid = pids_of(server, "ServeReplica")[0]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    os.kill(pid, signal.SIGCONT)


def kill_starter(server: Server) -> None:
    """Kill the web process that has started Ray."""
    [event] = [line for line in server.output().splitlines() if '"event": "ray_started"' in line]
    os.kill(json.loads(event)["pid"], signal.SIGKILL)


def terminate(server: Server) -> None:
    """Stop the server as an operator does."""
    server.process.send_signal(signal.SIGTERM)


def kill_server(server: Server) -> None:
    """Kill the server's own process."""
    os.kill(server.process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Fault:
    """A fault, and the server that it happens to."""

    told: str
    happen: Callable[[Server], None]
    replicas: int = 1
    workers: int = 1
    is_last: bool = False


FAULTS = {
    "replica": Fault("one of two replicas killed", kill("ServeReplica", most=1), replicas=2),
    "replicas": Fault("both replicas killed", kill("ServeReplica"), replicas=2),
    "frozen": Fault("one of two replicas stopped for 8 s", freeze, replicas=2),
    "controller": Fault("Ray Serve's controller killed", kill("ServeController")),
    "raylet": Fault("Ray's raylet killed", kill("raylet/raylet")),
    "gcs": Fault("Ray's GCS killed", kill("gcs_server")),
    "agent": Fault("Ray's dashboard agent killed", kill("DashboardAgent")),
    "guard": Fault("the guard of Ray killed", kill("ray_guard")),
    "all": Fault("raylet and both replicas killed", kill("ray"), replicas=2),
    "starter": Fault("one of two web processes killed, which started Ray", kill_starter, workers=2),
    "term": Fault("SIGTERM", terminate, is_last=True),
    "kill": Fault("the server killed", kill_server, is_last=True),
}


def measure(fault: Fault) -> str:
    """Let a fault happen under load, and return its line of the table."""
    # Ray's sockets lie in there, whose paths have to be short.
    with tempfile.TemporaryDirectory(prefix="f") as place:
        folder = Path(place)
        home = compiled_home_of(EXPORT, folder / "home")
        environment = {"TMPDIR": place, "POLICY_SERVER_NUM_REPLICAS": str(fault.replicas)}
        workers = [] if fault.workers == 1 else ["--workers", str(fault.workers)]
        with running_server(home, *workers, environment=environment) as server:
            if fault.workers > 1:
                server.child.wait_until(lambda: server.output().count("startup complete") == 2)
            load = Load(server.url)
            with load.running():
                time.sleep(BEFORE_S)
                pids = {server.process.pid, *descendants(server.process.pid)}
                happened = time.monotonic()
                fault.happen(server)
                ready = 0.0
                while not fault.is_last and time.monotonic() < happened + AFTER_S:
                    if status_of(f"{server.url}/readyz") != OK:
                        ready = time.monotonic() - happened
                    time.sleep(0.1)
                    pids |= set(descendants(server.process.pid))
                if fault.is_last:
                    server.process.wait(60)
            if not fault.is_last:
                happened_stop = time.monotonic()
                server.process.terminate()
                server.process.wait(90)
                stop = time.monotonic() - happened_stop
            else:
                stop = time.monotonic() - happened
            left = _left(pids, folder)
        return _line(fault, load, happened, (ready, stop), left)


def _left(pids: set[int], folder: Path) -> str:
    """Return what is still there three seconds after the end."""
    with suppress(AssertionError):
        wait_until(
            lambda: not any(map(is_running, pids)) and not list(folder.glob("ps-ray-*")),
            timeout_s=3,
        )
    processes = [command_line(pid)[:30] for pid in pids if is_running(pid)]
    return ", ".join([*processes, *(path.name for path in folder.glob("ps-*"))]) or "nothing"


def _line(fault: Fault, load: Load, happened: float, times: tuple[float, float], left: str) -> str:
    statuses = [status for _, status, _, _ in load.sent]
    troubles = [at + took - happened for at, status, took, _ in load.sent if status != OK]
    ready, stop = times
    cells = (
        fault.told,
        f"{len(load.sent):,}",
        f"{statuses.count(OK):,}",
        statuses.count(503),
        sum(status not in (0, OK, 503) for status in statuses),
        sum(not is_right for *_, is_right in load.sent),
        statuses.count(0),
        f"{max(took for _, _, took, _ in load.sent):.2f} s",
        "none" if not troubles or fault.is_last else f"{max(troubles):.1f} s",
        "always" if not ready else f"{ready:.1f} s",
        f"{stop:.1f} s",
        left,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def say(line: str) -> None:
    """Write a line of the table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure the faults that are named, or all."""
    names = sys.argv[1:] or list(FAULTS)
    columns = (*COLUMNS, *TIMES)
    say("| " + " | ".join(columns) + " |")
    say("| --- " * len(columns) + "|")
    for name in names:
        say(measure(FAULTS[name]))


if __name__ == "__main__":
    main()
