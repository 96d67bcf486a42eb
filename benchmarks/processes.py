"""Servers under test: started on free ports, found with all their processes, and ended.

Every process of a server inherits a variable of its environment, by which it is found again: Ray's
processes change their parents.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.failures import BenchmarkError

__all__ = ["ProcessFigures", "RunningServer", "free_ports", "started"]

_MARK = "POLICY_BENCHMARK_SERVER"
_STOP_TIMEOUT_S = 20.0
_LINES_SHOWN = 3
# What gRPC calls the threads of its pools; as `comm` shows it.
_POOL_THREAD = "event_engine\n"
_SETTLE_TIMEOUT_S = 20.0
_SETTLE_STEP_S = 1.0
# Of one core; an idle Ray with its dashboard takes a tenth.
_SETTLED_SHARE = 0.25
_MICROSECONDS_A_TICK = 1_000_000 / os.sysconf("SC_CLK_TCK")
# What a process is, by what its command line holds; the first that fits.
_ROLES = (
    ("ServeReplica", "replica"),
    ("ServeController", "Ray"),
    ("raylet", "Ray"),
    ("ray_guard", "Ray"),
    ("ray.dashboard", "Ray"),
    ("gcs_server", "Ray"),
    ("ray::", "Ray"),
    ("ray/", "Ray"),
)


@dataclass(frozen=True)
class ProcessFigures:
    """What one process holds.

    Attributes:
        pid: its id.
        role: `web` (the process that was started, and what it forked), `replica` or `Ray`.
        memory_bytes: the proportional set size: pages that several processes share count once
            altogether.
        own_bytes: that part of it which is no pages of files: what a leak is in. Pages of libraries
            count less when other programs of the machine have loaded them too.
        files: open file descriptors.
        threads: how many.
        pool_threads: those among them in the pools of gRPC, which Ray uses.
    """

    pid: int
    role: str
    memory_bytes: int
    own_bytes: int
    files: int
    threads: int
    pool_threads: int


@dataclass(frozen=True)
class RunningServer:
    """A server's process, and a way to all others that it started.

    Attributes:
        process: the one that was started.
        mark: the value of the variable that all of them inherit.
        log: where they write.
    """

    process: subprocess.Popen[bytes]
    mark: str
    log: Path

    def check_alive(self) -> None:
        """Hold that the server still runs.

        Raises:
            BenchmarkError: with its last lines, if it ended.
        """
        if self.process.poll() is not None:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line]
            said = " / ".join(line.strip()[:200] for line in lines[-_LINES_SHOWN:])
            raise BenchmarkError(f"the server ended with {self.process.returncode}: {said}")

    def pids(self) -> list[int]:
        """Return the ids of all its processes that run now."""
        needle = f"{_MARK}={self.mark}".encode()
        found, children = set(), dict[int, list[int]]()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                pid = int(folder.name)
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(pid)
                if needle in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(pid)
        # What changes its title, as the dashboard's processes do, writes over its environment.
        waiting = list(found)
        while waiting:
            below = set(children.get(waiting.pop(), ())) - found
            found |= below
            waiting += below
        return sorted(found)

    def cpu_by_role(self) -> dict[str, float]:
        """Return the microseconds of processor time spent so far, by what spent them.

        Returns:
            By `web` (the process that was started, and what it forked), `replica` and `Ray`.
        """
        spent: dict[str, float] = {}
        for pid in self.pids():
            with suppress(OSError):
                role = self._role(pid)
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                # Fields 14 and 15 of proc(5): user and system time in ticks.
                ticks = int(fields[11]) + int(fields[12])
                spent[role] = spent.get(role, 0.0) + ticks * _MICROSECONDS_A_TICK
        return spent

    def settle(self) -> None:
        """Wait until what goes on after the first answer is over, such as Ray's dashboard."""
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        while time.monotonic() < deadline:
            before = sum(self.cpu_by_role().values())
            time.sleep(_SETTLE_STEP_S)
            spent_us = sum(self.cpu_by_role().values()) - before
            if spent_us < _SETTLED_SHARE * _SETTLE_STEP_S * 1e6:
                return

    def memory_bytes(self) -> tuple[int, int]:
        """Return the proportional set size of all processes, in bytes, and their number.

        Pages that several processes share count once altogether.
        """
        sizes = [each.memory_bytes for each in self.processes()]
        return sum(sizes), len(sizes)

    def processes(self) -> list[ProcessFigures]:
        """Return what each of its processes holds now."""
        found = []
        for pid in self.pids():
            with suppress(OSError):
                folder = Path(f"/proc/{pid}")
                lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
                sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines}
                own = sizes["Pss_Anon:"] + sizes["Pss_Shmem:"]
                files = len([*(folder / "fd").iterdir()])
                threads = [(task / "comm").read_text() for task in (folder / "task").iterdir()]
                pooled, role = threads.count(_POOL_THREAD), self._role(pid)
                found.append(
                    ProcessFigures(pid, role, sizes["Pss:"], own, files, len(threads), pooled)
                )
        return found

    def _role(self, pid: int) -> str:
        if pid == self.process.pid:
            return "web"
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return next((role for part, role in _ROLES if part in command), "web")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on.

    Args:
        count: how many.

    Raises:
        BenchmarkError: if the machine gives none.
    """
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    except OSError as error:
        raise BenchmarkError(f"no free port on 127.0.0.1: {error.strerror}") from error
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def started(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
) -> Iterator[RunningServer]:
    """Run a server until the block ends, then end every process of it.

    Args:
        command: the program and its arguments.
        environment: all of its environment.
        folder: where it starts.
        log: where its output goes.

    Yields:
        The server, which may still be starting.

    Raises:
        BenchmarkError: if the program can't be run.
    """
    mark = uuid.uuid4().hex
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(  # noqa: S603 -- the command is ours
                command,
                cwd=folder,
                env={**environment, _MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise BenchmarkError(f"{command[0]}: can't be run: {error.strerror}") from error
    server = RunningServer(process, mark, log)
    try:
        yield server
    finally:
        _end(server)


def _end(server: RunningServer) -> None:
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(_STOP_TIMEOUT_S)
    for pid in server.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait()
    while server.pids():
        time.sleep(0.05)
