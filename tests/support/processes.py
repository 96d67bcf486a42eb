"""Child processes of tests: started, talked to, waited for, and ended by their ids."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import pytest

from tests.support.folders import ROOT
from tests.support.waiting import wait_until

__all__ = [
    "Child",
    "child",
    "command_line",
    "descendants",
    "is_running",
    "listening_on",
    "program",
    "run",
    "script",
]

T = TypeVar("T")
_SYSTEM_FOLDERS = os.pathsep.join(("/usr/sbin", "/usr/local/sbin", "/sbin"))
_STOP_TIMEOUT_S = 60.0
# As the system has the states of its sockets.
_LISTENING = "0A"


@dataclass(frozen=True)
class Child:
    """A process that a test has started.

    Attributes:
        process: for its id, its signals and its status.
        log: the file of its output; None if that goes to pipes.
    """

    process: subprocess.Popen[str]
    log: Path | None

    def output(self) -> str:
        """Return what it has printed to its log so far."""
        assert self.log is not None
        return self.log.read_text()

    def check_runs(self) -> None:
        """Fail with its output if it has ended."""
        status = self.process.poll()
        assert status is None, f"it ended with {status}:\n{self._last_words()}"

    def wait_until(self, condition: Callable[[], T], *, timeout_s: float = 60.0) -> T:
        """Wait until a condition holds while it runs, and return what the condition returned."""

        def look() -> T:
            found = condition()
            if not found:
                self.check_runs()
            return found

        return wait_until(look, timeout_s=timeout_s, pause_s=0.1, told=self._last_words)

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read_line(self) -> str:
        """Return the next line of its standard output, without its end."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it printed nothing more:\n{self._last_words()}"
        return line.removesuffix("\n")

    def finish(self, typed: str = "", *, timeout_s: float = 100.0) -> tuple[int, str, str]:
        """Give it the rest of its input; return its status, standard output and standard error."""
        out, err = self.process.communicate(typed, timeout=timeout_s)
        return self.process.returncode, out, err

    def _last_words(self) -> str:
        if self.log is not None:
            return self.output()
        assert self.process.stderr is not None
        self.process.kill()
        return self.process.stderr.read()


@contextmanager
def child(
    *command: str | Path,
    log: Path | None = None,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> Iterator[Child]:
    """Run a process until the block ends; then it and the processes below it are ended.

    Args:
        *command: the program and its arguments.
        log: a file for both its outputs; without one, input and outputs are pipes.
        folder: where it runs.
        environment: its variables; None for those of the tests.
        descriptors: open files of the tests that it has too, by the same numbers.
    """
    with _files(log) as (typed, out, err):
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=typed,
            stdout=out,
            stderr=err,
            text=True,
            pass_fds=descriptors,
        )
    try:
        yield Child(process, log)
    finally:
        below = descendants(process.pid)
        _end(process)
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


@contextmanager
def _files(log: Path | None) -> Iterator[tuple[int | None, int | IO[str], int | IO[str]]]:
    if log is None:
        yield subprocess.PIPE, subprocess.PIPE, subprocess.PIPE
        return
    with log.open("w") as output:
        yield None, output, output


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(
    *command: str | Path,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    typed: str | None = None,
    timeout_s: float = 600.0,
    status: int = 0,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, which has to come with this status, and return what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        input=typed,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    told = f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == status, told
    return done


def program(name: str, *, package: str) -> str:
    """Return where a program of the system lies, or fail with how to install it."""
    found = shutil.which(name, path=os.environ["PATH"] + os.pathsep + _SYSTEM_FOLDERS)
    if found is None:
        pytest.fail(f"{name} is missing; on Debian and Ubuntu: apt-get install {package}")
    return found


def script(name: str) -> str:
    """Return where a script of requirements-dev.txt lies, or fail with how to install it."""
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        pytest.fail(f"{name} is missing; pip install -r requirements-dev.txt")
    return str(found)


def command_line(pid: int) -> str:
    """Return a process's command line; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def listening_on(pid: int) -> set[str]:
    """Return the addresses of the TCP ports that a process listens on."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            sockets.add(str(descriptor.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == _LISTENING and f"socket:[{rest[5]}]" in sockets:
                found.add(_address(local.split(":")[0]))
    return found


def _address(text: str) -> str:
    """Return an address that the system lists: words of four bytes, each of its last byte first."""
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below one, which Ray's are."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
