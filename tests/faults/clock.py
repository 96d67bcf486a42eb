"""A clock that is set while sessions, state tokens and deadlines run, by a library."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.faults.load import Episodes, Load, Tokens, first_steps, steps
from tests.faults.measuring import Fault, Scene, temporary
from tests.faults.redis import recurrent_home
from tests.support.preloading import built
from tests.support.processes import command_line, descendants
from tests.support.server_processes import running_server

__all__ = ["FAULTS"]

_SOURCE = Path(__file__).with_name("clock.c")
_HOUR_S = 3600
_BETWEEN_S = 8.0
_EPISODES = 8


@contextmanager
def _with_clock(folder: Path, *, backend: str) -> Iterator[Scene]:
    """Serve by a clock that is an hour ahead for a while, and then an hour late."""
    clock, library = folder / "clock", built(_SOURCE, folder)
    clock.write_bytes(_seconds(0))
    environment = {
        "TMPDIR": str(temporary(folder)),
        "POLICY_SERVER_BACKEND": backend,
        "LD_PRELOAD": str(library),
        "CLOCK_FILE": str(clock),
    }

    def happen() -> None:
        pids = [server.process.pid, *descendants(server.process.pid)]
        apart = [command_line(pid) for pid in pids if not _has(pid, library)]
        assert not apart, f"processes with the machine's clock: {apart}"
        for offset_s in (_HOUR_S, -_HOUR_S):
            # In place: all processes have the file before them.
            with clock.open("r+b") as file:
                file.write(_seconds(offset_s))
            time.sleep(_BETWEEN_S)

    with running_server(recurrent_home(folder / "home"), environment=environment) as server:
        loads = {
            "plain requests": Load(server.url, first_steps(), _EPISODES),
            "sessions": Episodes(server.url, steps(), _EPISODES),
            "state tokens": Tokens(server.url, steps(), _EPISODES),
        }
        yield Scene(server, loads, happen)


def _has(pid: int, library: Path) -> bool:
    """Return whether a process has a library in it, or has ended."""
    try:
        return str(library) in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return True


def _seconds(number: int) -> bytes:
    """Return a number as clock.c reads it."""
    return struct.pack("q", number)


FAULTS = {
    "clock": Fault(
        "clock set an hour ahead, then two back, BACKEND=local",
        partial(_with_clock, backend="local"),
    ),
    "clock-ray": Fault(
        "clock set an hour ahead, then two back", partial(_with_clock, backend="ray")
    ),
}
