"""A crowd of connections that ask nothing, or never end what they ask.

It is a program, `python -m tests.faults.crowd PORT KEY`, since its thousands of sockets would hold
up the clients beside it. Once its standard input has a line, it connects all at once, and keeps
each connection for as long as the server does. It prints a line of JSON when all are connected, and
a second one when the last has ended or two minutes are over: `Crowd` has both.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.support.processes import Child, child

__all__ = ["SILENT", "Crowd", "Group", "waiting_crowd"]

_LONGEST_S = 120.0
SILENT, _HEADS, _BODIES = "silent", "slow heads", "slow bodies"
_COUNTS = {SILENT: 3000, _HEADS: 250, _BODIES: 250}
# How often a slow connection sends one more byte.
_PERIOD_S = 0.5
_OTHER_FILES = 64
_GO, _BYTE = "go", b"1"
_HEAD = "POST /predict HTTP/1.1\r\nhost: a\r\n"
# Longer than it will ever be.
_BODY = "access-token: {key}\r\ncontent-length: 100000\r\n\r\n["


class Group(NamedTuple):
    """What became of the connections of one kind.

    Attributes:
        asked: how many there were to be.
        connected: how many were made.
        answers: how many were answered, by status.
        answered_s: after how many seconds the first and the last answer came.
        ended_s: after how many seconds the first and the last of them ended.
        left: how many were open still when the program ended.
    """

    asked: int
    connected: int
    answers: dict[str, int]
    answered_s: Sequence[float]
    ended_s: Sequence[float]
    left: int


@dataclass
class Crowd:
    """The program, and what it has told.

    Attributes:
        size: how many connections it makes.
        began: when it began to make them, by `time.monotonic`, which all processes share.
        closing: when the first of the silent ones ended.
        ended: when the last of all ended.
        groups: by their kinds.
    """

    program: Child
    size: int = sum(_COUNTS.values())
    began: float = 0.0
    closing: float = 0.0
    ended: float = 0.0
    groups: dict[str, Group] = field(default_factory=dict)

    def come(self) -> None:
        """Let all connect, and wait for that."""
        self.program.tell(_GO)
        [self.began] = json.loads(self.program.read_line())

    def go(self) -> None:
        """Wait until the last has ended."""
        self.closing, self.ended, groups = json.loads(self.program.read_line())
        self.groups = {name: Group(*found) for name, found in groups.items()}


@contextmanager
def waiting_crowd(port: int, key: str) -> Iterator[Crowd]:
    """Start the program, which waits for `come`.

    Args:
        port: the server's, of 127.0.0.1.
        key: the access key, which slow bodies have.
    """
    words = (sys.executable, "-m", "tests.faults.crowd", str(port), key)
    with child(*words) as program:
        yield Crowd(program)


class _Connection:
    """One connection of the crowd, from its making to its end."""

    def __init__(self, kind: str, opening: bytes) -> None:
        self.kind = kind
        self.opening = opening
        self.link = socket.socket()
        self.link.settimeout(0)
        self.is_connected = False
        self.status = ""
        self.began = self.answered = self.ended = 0.0


class _Gathering:
    """All connections, and the loop that keeps them."""

    def __init__(self, port: int, key: str) -> None:
        openings = {SILENT: "", _HEADS: _HEAD + "x-slow: ", _BODIES: _HEAD + _BODY.format(key=key)}
        self._address = ("127.0.0.1", port)
        self._connections = [
            _Connection(kind, openings[kind].encode())
            for kind, count in _COUNTS.items()
            for _ in range(count)
        ]
        self._selector = selectors.DefaultSelector()
        self._waiting = len(self._connections)
        self._open = 0
        # Those that send one more byte, in their order, and when.
        self._slow: deque[tuple[float, _Connection]] = deque()

    def connect(self) -> None:
        """Connect all, as fast as this process can."""
        for connection in self._connections:
            connection.began = time.monotonic()
            connection.link.connect_ex(self._address)
            self._selector.register(connection.link, selectors.EVENT_WRITE, connection)
        deadline = time.monotonic() + _LONGEST_S
        while self._waiting and time.monotonic() < deadline:
            self._turn()

    def keep(self) -> None:
        """Keep the connections until the server has ended all."""
        deadline = time.monotonic() + _LONGEST_S
        while self._open and time.monotonic() < deadline:
            self._turn()

    def times(self) -> tuple[float, float]:
        """Return when the first silent connection ended, and the last of all."""
        ended = [each for each in self._connections if each.ended]
        silent = [each.ended for each in ended if each.kind == SILENT]
        return min(silent, default=0.0), max((each.ended for each in ended), default=0.0)

    def groups(self) -> dict[str, Group]:
        """Return what became of each kind."""
        return {kind: self._group(kind) for kind in _COUNTS}

    def _group(self, kind: str) -> Group:
        all_ = [each for each in self._connections if each.kind == kind]
        made = [each for each in all_ if each.is_connected]
        waits = [each.answered - each.began for each in made if each.answered]
        ages = [each.ended - each.began for each in made if each.ended]
        return Group(
            len(all_),
            len(made),
            Counter(each.status for each in made if each.status),
            (min(waits, default=0.0), max(waits, default=0.0)),
            (min(ages, default=0.0), max(ages, default=0.0)),
            len(made) - len(ages),
        )

    def _turn(self) -> None:
        pause_s = self._slow[0][0] - time.monotonic() if self._slow else _PERIOD_S
        for key, events in self._selector.select(max(pause_s, 0.0)):
            if events & selectors.EVENT_WRITE:
                self._begin(key.data)
            else:
                self._read(key.data)
        while self._slow and self._slow[0][0] <= time.monotonic():
            due, connection = self._slow.popleft()
            if not connection.ended and self._is_sent(connection, _BYTE):
                self._slow.append((due + _PERIOD_S, connection))

    def _begin(self, connection: _Connection) -> None:
        """Note that a connection was made, and send the start of its request."""
        self._waiting -= 1
        self._open += 1
        connection.is_connected = (
            connection.link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        )
        if not connection.is_connected:
            self._end(connection)
            return
        self._selector.modify(connection.link, selectors.EVENT_READ, connection)
        # Those that the server has taken late were connected by its kernel before.
        connection.began = time.monotonic()
        if connection.opening and self._is_sent(connection, connection.opening):
            self._slow.append((connection.began + _PERIOD_S, connection))

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.link.recv(65536)
        except OSError:
            self._end(connection)
            return
        if data and not connection.answered:
            connection.status = data[9:12].decode("latin-1")
            connection.answered = time.monotonic()
        elif data:
            return
        elif connection.kind == SILENT:
            self._end(connection)
        else:
            # It sends on, until the server does not let it any more.
            self._selector.unregister(connection.link)

    def _is_sent(self, connection: _Connection, data: bytes) -> bool:
        try:
            connection.link.send(data)
        except BlockingIOError:
            return True
        except OSError:
            self._end(connection)
            return False
        return True

    def _end(self, connection: _Connection) -> None:
        if connection.link in self._selector.get_map():
            self._selector.unregister(connection.link)
        connection.link.close()
        connection.ended = time.monotonic()
        self._open -= 1


def _tell(*found: object) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Wait for a line, be a crowd, and tell what became of it."""
    port, key = sys.argv[1:3]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sum(_COUNTS.values()) + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    gathering = _Gathering(int(port), key)
    if not sys.stdin.readline():
        # Nobody wants a crowd any more.
        return
    began = time.monotonic()
    gathering.connect()
    _tell(began)
    gathering.keep()
    _tell(*gathering.times(), gathering.groups())


if __name__ == "__main__":
    main()
