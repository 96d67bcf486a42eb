"""Requests at an even pace, whether others were answered or not: an open loop.

Each is sent on a connection that waits for no other answer; a new one is opened where none is idle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

from benchmarks.overload_verdict import Outcome

__all__ = ["TICK_S", "ask", "ask_often"]

TICK_S = 0.002
_LONGEST_ANSWER_S = 35.0
# One client in so many gives up, so long after it has asked.
_GIVES_UP_EACH = 50
_GIVES_UP_S = 0.02
# So many keep a server busy, and wait for next to nothing behind each other.
_BUSY_CONNECTIONS = 4


class _Client(asyncio.Protocol):
    """One connection, with one request in flight at most."""

    def __init__(self, request: bytes, outcome: Outcome, idle: list[_Client]) -> None:
        self._request = request
        self._outcome = outcome
        self._idle = idle
        self._answer = b""
        self._sent: float | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, *, gives_up: bool, due: float) -> None:
        assert self._transport is not None, "it is connected"
        self._sent = due
        self._transport.write(self._request)
        if gives_up:
            asyncio.get_running_loop().call_later(_GIVES_UP_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length):
            assert self._sent is not None, "it has asked"
            self._outcome.note(self._answer, time.perf_counter() - self._sent)
            self._answer, self._sent = b"", None
            self._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sent is not None:
            self._sent = None
            self._outcome.failed.append(f"connection lost: {exc!r}".encode())
        if self in self._idle:
            self._idle.remove(self)

    def close(self) -> None:
        assert self._transport is not None, "it is connected"
        self._transport.close()

    def _give_up(self) -> None:
        if self._sent is not None:
            self._sent = None
            self._outcome.gave_up += 1
            self.close()


async def ask(
    port: int, request: bytes, seconds: float, per_second: float, *, give_up: bool
) -> Outcome:
    """Send requests at an even pace, and wait for their answers.

    Args:
        port: the server's.
        request: each of them, whole.
        seconds: for how long.
        per_second: how many.
        give_up: whether some clients close their connection before the answer.

    Returns:
        What became of them.
    """
    outcome = Outcome()
    idle: list[_Client] = []
    clients: list[_Client] = []
    opening: set[asyncio.Task[None]] = set()

    start, sent = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        outcome.late_s = max(outcome.late_s, passed - sent / per_second)
        while sent < passed * per_second:
            sent += 1
            gives_up = give_up and sent % _GIVES_UP_EACH == 0
            due = time.perf_counter()
            if idle:
                idle.pop().ask(gives_up=gives_up, due=due)
            else:
                # The pace is the clients' own: a server that is slow to accept can't hold it up.
                opened = _opened(port, request, outcome, idle, clients)
                task = asyncio.create_task(_ask_on(opened, gives_up=gives_up, due=due))
                opening.add(task)
                task.add_done_callback(opening.discard)
        await asyncio.sleep(TICK_S)
    deadline = time.perf_counter() + _LONGEST_ANSWER_S
    while _told(outcome) < sent and time.perf_counter() < deadline:
        await asyncio.sleep(TICK_S)
    for task in opening:
        task.cancel()
    for client in clients:
        client.close()
    outcome.failed += [b"no answer"] * (sent - _told(outcome))
    return outcome


async def ask_often(port: int, request: bytes, seconds: float) -> float:
    """Return how many requests a second a server answers that always has some to answer.

    Args:
        port: the server's.
        request: each of them, whole.
        seconds: for how long it is asked.
    """
    outcome = Outcome()
    idle: list[_Client] = []
    clients: list[_Client] = []
    for _ in range(_BUSY_CONNECTIONS):
        client = await _opened(port, request, outcome, idle, clients)
        if client is not None:
            idle.append(client)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        while idle:
            idle.pop().ask(gives_up=False, due=time.perf_counter())
        await asyncio.sleep(0)
    passed = time.perf_counter() - start
    for client in clients:
        client.close()
    return len(outcome.answered) / passed


async def _opened(
    port: int, request: bytes, outcome: Outcome, idle: list[_Client], clients: list[_Client]
) -> _Client | None:
    loop = asyncio.get_running_loop()
    try:
        _, client = await loop.create_connection(
            lambda: _Client(request, outcome, idle), "127.0.0.1", port
        )
    except OSError as error:
        outcome.failed.append(f"not connected: {error}".encode())
        return None
    clients.append(client)
    return client


async def _ask_on(opened: Awaitable[_Client | None], *, gives_up: bool, due: float) -> None:
    client = await opened
    if client is not None:
        client.ask(gives_up=gives_up, due=due)


def _told(outcome: Outcome) -> int:
    told = len(outcome.answered) + len(outcome.refused) + len(outcome.failed)
    return told + outcome.gave_up
