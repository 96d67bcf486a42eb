"""The sessions of one web process, in its own memory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from policy_server.errors import UnsupportedAnswerError
from policy_server.metrics import Metrics
from policy_server.serving.session_refusals import (
    crowded_session,
    foreign_session,
    missed_turn,
    too_many_of_client,
    too_many_sessions,
    unknown_session,
)
from policy_server.serving.session_store import (
    MOST_WAITING,
    HeldSession,
    SessionPlace,
    SessionRecord,
)
from policy_server.serving.team_record import TEAM
from policy_server.settings import ENV_PREFIX, Settings

__all__ = ["NoSessions", "ProcessSessions"]

# Between two looks for sessions that were idle for too long.
_SHORTEST_PAUSE_S = 0.01


@dataclass(eq=False, slots=True)
class _Kept:
    """A session of this process; it is a `HeldSession` too."""

    record: SessionRecord
    used: float
    store: ProcessSessions
    # The requests that ask for it, in the order of their coming; the first has it.
    places: deque[_Place] = field(default_factory=deque)

    async def keep(self, record: SessionRecord) -> None:
        self.store.replace(self, record)

    async def remove(self) -> None:
        self.store.end(self, "deleted")


class _Place:
    """A request's `SessionPlace`."""

    __slots__ = ("_kept", "patience_s", "wait")

    def __init__(self, kept: _Kept, patience_s: float) -> None:
        self._kept = kept
        self.patience_s = patience_s
        self.wait: asyncio.Future[None] | None = None
        if kept.places:
            self.wait = asyncio.get_running_loop().create_future()
        kept.places.append(self)

    @property
    def held(self) -> HeldSession:
        kept = self._kept
        if not kept.store.has(kept):
            raise unknown_session(kept.record.policy, kept.record.session_id)
        return kept

    def keep(self, record: SessionRecord) -> None:
        self._kept.store.replace(self._kept, record)

    def leave(self) -> None:
        places = self._kept.places
        if places[0] is not self:
            places.remove(self)
            return
        places.popleft()
        # One that waits no more hands the session on when it leaves itself.
        if places and (wait := places[0].wait) is not None and not wait.done():
            wait.set_result(None)
        self._kept.store.note_use(self._kept)


class ProcessSessions:
    """A `SessionStore` in the memory of this process, for one event loop."""

    is_shared = False

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Own the sessions of this process.

        Args:
            settings: how many there may be, and for how long an idle one is kept.
            metrics: counts them.
        """
        self._most = settings.max_sessions
        self._most_of_client = settings.max_key_sessions
        self._most_long_bytes = settings.max_kept_answer_bytes
        self._long_bytes = 0
        self._idle_s = settings.session_idle_s
        self._patience_s = settings.request_timeout_s
        self._metrics = metrics
        # The longest idle first.
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._numbers: Counter[tuple[str, str, str]] = Counter()
        self._open: Counter[str] = Counter()
        self._of_clients: Counter[str] = Counter()
        self._is_sweeping = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep sessions; see `SessionStore.running`."""
        yield

    async def add(self, record: SessionRecord) -> None:
        """Keep a new session; see `SessionStore.add`."""
        self._forget_idle()
        metrics = self._metrics.of(record.policy)
        number = self._of_clients[record.client]
        if record.client and self._most_of_client and number >= self._most_of_client:
            metrics.count_session("refused")
            refusal = too_many_of_client(record.client, number)
            metrics.count_rejected(refusal.reason)
            raise refusal
        if len(self._kept) >= self._most:
            metrics.count_session("refused")
            raise too_many_sessions(len(self._kept))
        now = time.monotonic()
        self._kept[record.session_id] = _Kept(record, now, self)
        self._count(record, 1)
        self._of_clients[record.client] += 1
        self._show(record.policy, 1)
        metrics.count_session("opened")
        self._sweep_later()

    @asynccontextmanager
    async def held(self, policy: str, session_id: str) -> AsyncIterator[HeldSession]:
        """Give one request at a time a session; see `SessionStore.held`."""
        place = self.queue(policy, session_id)
        try:
            if place.wait is not None:
                try:
                    async with asyncio.timeout(place.patience_s):
                        await place.wait
                except TimeoutError:
                    raise missed_turn(place.patience_s) from None
            yield place.held
        finally:
            place.leave()

    async def remove(self, policy: str, session_id: str) -> None:
        """Forget a session; see `SessionStore.remove`."""
        async with self.held(policy, session_id) as held:
            await held.remove()

    def queue(self, policy: str, session_id: str) -> SessionPlace:
        """Return a request's place among those of a session; see `ImmediateStore.queue`."""
        self._forget_idle()
        kept = self._kept.get(session_id)
        if kept is None:
            raise unknown_session(policy, session_id)
        if kept.record.policy != policy:
            raise foreign_session(policy, session_id, kept.record.policy)
        # The first of them has the session.
        if len(kept.places) > MOST_WAITING:
            self._metrics.of(policy).count_rejected("session_queue")
            raise crowded_session(MOST_WAITING)
        return _Place(kept, self._patience_s)

    def has(self, kept: _Kept) -> bool:
        """Return whether a session has not ended."""
        return self._kept.get(kept.record.session_id) is kept

    def note_use(self, kept: _Kept) -> None:
        """Note that a request has had a session, which is idle from now on."""
        kept.used = time.monotonic()
        if self.has(kept):
            self._kept.move_to_end(kept.record.session_id)

    async def count(self, policy: str, version: str, digest: str) -> int:
        """Return how many sessions a version answers; see `SessionStore.count`."""
        self._forget_idle()
        return self._numbers[policy, version, digest]

    def replace(self, kept: _Kept, record: SessionRecord) -> None:
        """Keep another record of a session.

        Args:
            kept: the session.
            record: the whole of it.
        """
        if record.answering != kept.record.answering:
            self._count(kept.record, -1)
            self._count(record, 1)
        others = self._long_bytes - kept.record.long_bytes
        if record.long_bytes and others + record.long_bytes > self._most_long_bytes:
            record = record.without_text()
        self._long_bytes = others + record.long_bytes
        kept.record = record

    def end(self, kept: _Kept, change: str) -> None:
        """Forget a session.

        Args:
            kept: the session.
            change: deleted or expired.
        """
        record = kept.record
        del self._kept[record.session_id]
        self._count(record, -1)
        self._long_bytes -= record.long_bytes
        self._of_clients[record.client] -= 1
        if not self._of_clients[record.client]:
            del self._of_clients[record.client]
        self._show(record.policy, -1)
        self._metrics.of(record.policy).count_session(change)

    def _count(self, record: SessionRecord, change: int) -> None:
        for answering in record.answering:
            self._numbers[answering] += change

    def _show(self, policy: str, change: int) -> None:
        self._open[policy] += change
        self._metrics.of(policy).show_sessions(self._open[policy])

    def _forget_idle(self) -> None:
        now = time.monotonic()
        while self._kept:
            kept = next(iter(self._kept.values()))
            if now - kept.used <= self._idle_s:
                return
            if kept.places:
                # A request has it, however long it takes.
                kept.used = now
                self._kept.move_to_end(kept.record.session_id)
            else:
                self.end(kept, "expired")

    def _sweep_later(self) -> None:
        """Forget sessions in time for the metrics, whether or not any request comes."""
        if self._kept and not self._is_sweeping:
            self._is_sweeping = True
            oldest = next(iter(self._kept.values()))
            wait_s = max(oldest.used + self._idle_s - time.monotonic(), _SHORTEST_PAUSE_S)
            asyncio.get_running_loop().call_later(wait_s, self._sweep)

    def _sweep(self) -> None:
        self._is_sweeping = False
        self._forget_idle()
        self._sweep_later()


class NoSessions:
    """A `SessionStore` of a process that keeps none, since others answer beside it."""

    is_shared = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep none; see `SessionStore.running`."""
        yield

    async def add(self, record: SessionRecord) -> NoReturn:
        """Refuse a session; see `SessionStore.add`."""
        raise self._refusal(record.policy)

    def held(self, policy: str, session_id: str) -> NoReturn:  # noqa: ARG002 -- none is kept
        """Refuse a session; see `SessionStore.held`."""
        raise self._refusal(policy)

    async def remove(self, policy: str, session_id: str) -> NoReturn:  # noqa: ARG002 -- likewise
        """Refuse a session; see `SessionStore.remove`."""
        raise self._refusal(policy)

    async def count(self, policy: str, version: str, digest: str) -> int:  # noqa: ARG002 -- none
        """Return that a version answers no session."""
        return 0

    @staticmethod
    def _refusal(policy: str) -> UnsupportedAnswerError:
        other = "let the answers carry the memory (header x-state: new)"
        if policy == TEAM:
            other = "take a stream, which keeps the memories of its team"
        return UnsupportedAnswerError(
            "several web processes answer here, and share no sessions; give them a Redis "
            f"({ENV_PREFIX}SESSIONS_URL), or {other}"
        )
