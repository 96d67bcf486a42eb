"""Clients that mean harm, beside ordinary ones: what they cost, and when their connections end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from tests.faults.crowd import SILENT, Crowd, waiting_crowd
from tests.faults.load import EXPORT, Client, Load, modes
from tests.faults.measuring import Fault, Scene, row, temporary
from tests.support.server_processes import KEY, Server, compiled_home_of, running_server
from tests.support.waiting import wait_until

__all__ = ["FAULTS"]

# Longer than a silent connection may stay, which is the last to end.
_AFTER_S = 95.0
# Before each connection of a client that makes many: a machine has some 28,000 ports for them.
_PAUSE_S = 0.01
# The first of the crowd are ended after ten seconds.
_TAKEN_TIMEOUT_S = 8.0
_LEFT_TIMEOUT_S = 5.0
# Connections of the ordinary clients, and of those that ask whether the server is ready.
_OTHERS = 3
# The status of a request whose rest does not come in time.
_TOO_SLOW = "408"
_CLIENTS = ("ordinary client", "meanwhile", "requests", "p50", "p99", "slowest")
_CROWD = (
    *("crowd", "connected", "not connected"),
    *("answers", "answered after", "ended after", "open still"),
)
_SERVER = ("server", "memory of its own", "open files")


class Connecting(Load):
    """Clients that make a connection for each question, as a part of what they wait for."""

    def _ask(self) -> None:
        while not self.is_over.wait(_PAUSE_S):
            client = Client(self)
            self.go_on(client)
            client.close()


class Held(NamedTuple):
    """What the process of a server holds at one moment.

    Attributes:
        memory_mb: pages that are no file's, in MB.
        files: open file descriptors.
    """

    memory_mb: float
    files: int


@dataclass
class Visit:
    """A crowd that comes and goes, beside ordinary clients.

    Attributes:
        server: the server, of one process.
        crowd: the crowd.
        loads: the ordinary clients, by their names in the table.
        taken: when the server had all of the crowd's connections, by `time.monotonic`.
        held: by the moment.
    """

    server: Server
    crowd: Crowd
    loads: Mapping[str, Load]
    taken: float = 0.0
    held: dict[str, Held] = field(default_factory=dict)

    def happen(self) -> None:
        """Let the crowd come, and wait until the server has ended its last connection."""
        self.held["before"] = before = _held(self.server)
        self.crowd.come()
        wait_until(
            lambda: _held(self.server).files >= before.files + self.crowd.size - _OTHERS,
            timeout_s=_TAKEN_TIMEOUT_S,
            told=lambda: f"{before} {_held(self.server)}",
        )
        self.taken = monotonic()
        self.held["with the crowd"] = _held(self.server)
        self.crowd.go()
        # Where it keeps more, `broken` says so.
        with suppress(AssertionError):
            wait_until(
                lambda: _held(self.server).files <= before.files + _OTHERS,
                timeout_s=_LEFT_TIMEOUT_S,
            )
        self.held["after"] = _held(self.server)

    def further(self) -> list[str]:
        """Return tables of the ordinary clients, of the crowd and of the server."""
        return [
            *_table(_CLIENTS, (cells for name in self.loads for cells in self._waits(name))),
            *_table(_CROWD, self._groups()),
            *_table(
                _SERVER,
                (
                    (moment, f"{held.memory_mb:.0f} MB", f"{held.files:,}")
                    for moment, held in self.held.items()
                ),
            ),
        ]

    def broken(self) -> list[str]:
        """Return what did not hold of the crowd and of the server after it, in words."""
        told = []
        for kind, group in self.crowd.groups.items():
            if group.connected < group.asked:
                told.append(f"{kind}: expected {group.asked} connected, got {group.connected}")
            if group.left:
                told.append(f"{kind}: expected all connections ended, got {group.left} open")
            wrong = {*group.answers} - {_TOO_SLOW}
            if wrong or sum(group.answers.values()) != (0 if kind == SILENT else group.connected):
                told.append(f"{kind}: expected {_TOO_SLOW} for each request, got {group.answers}")
        most, found = self.held["before"].files + _OTHERS, self.held["after"].files
        if found > most:
            told.append(f"open files: expected {most} at the most after the crowd, got {found}")
        return told

    def _waits(self, name: str) -> Iterator[tuple[object, ...]]:
        """Return how long an ordinary client waited, in each part of the visit."""
        crowd, sent = self.crowd, self.loads[name].sent
        parts = {
            "before": (sent[0].at, crowd.began),
            "the crowd connects": (crowd.began, self.taken),
            "the crowd is there": (self.taken, crowd.closing),
            "the silent are ended": (crowd.closing, crowd.ended),
            "after": (crowd.ended, sent[-1].at),
        }
        for part, (first, last) in parts.items():
            # A request that was on its way already waits there too.
            waits = [
                asked.seconds * 1000
                for asked in sent
                if asked.at <= last and asked.at + asked.seconds >= first
            ]
            middle, late, slowest = np.percentile(waits, [50, 99, 100]) if waits else [0.0] * 3
            told = (f"{wait:.2f} ms" for wait in (middle, late, slowest))
            yield name, f"{part} ({last - first:.1f} s)", f"{len(waits):,}", *told

    def _groups(self) -> Iterator[tuple[object, ...]]:
        for kind, group in self.crowd.groups.items():
            answers = ", ".join(f"{status}: {count}" for status, count in group.answers.items())
            answered, ended = map(_span, (group.answered_s, group.ended_s))
            missing = group.asked - group.connected
            yield kind, group.connected, missing, answers or "none", answered, ended, group.left


def _held(server: Server) -> Held:
    folder = Path(f"/proc/{server.process.pid}")
    [memory] = [
        line.split()[1]
        for line in (folder / "status").read_text().splitlines()
        if line.startswith("RssAnon:")
    ]
    return Held(int(memory) / 1000, len([*(folder / "fd").iterdir()]))


def _span(seconds: Sequence[float]) -> str:
    first, last = seconds
    return f"{first:.1f} to {last:.1f} s" if last else "-"


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    heads = [*heads]
    return ["", row(heads), "| --- " * len(heads) + "|", *map(row, rows)]


@contextmanager
def _beside_a_crowd(folder: Path) -> Iterator[Scene]:
    """Serve two ordinary clients, beside connections that ask nothing or never end to ask."""
    home = compiled_home_of(EXPORT, folder / "home")
    environment = {"TMPDIR": str(temporary(folder)), "POLICY_SERVER_BACKEND": "local"}
    with running_server(home, environment=environment) as server:
        port = urlsplit(server.url).port
        assert port is not None
        with waiting_crowd(port, KEY) as crowd:
            loads = {
                "one connection": Load(server.url, modes(), 1),
                "a connection each": Connecting(server.url, modes(), 1),
            }
            visit = Visit(server, crowd, loads)
            yield Scene(
                server,
                loads,
                visit.happen,
                after_s=_AFTER_S,
                further=visit.further,
                broken=visit.broken,
            )


FAULTS = {
    "crowd": Fault("3,000 silent connections and 500 slow ones, BACKEND=local", _beside_a_crowd),
}
