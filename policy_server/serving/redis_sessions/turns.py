"""Turns: one request at a time has a session, whichever process it came to."""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from policy_server.errors import SessionStoreError
from policy_server.metrics import Metrics
from policy_server.serving.redis_sessions import scripts
from policy_server.serving.redis_sessions.groups import groups_of, power_of
from policy_server.serving.redis_sessions.records import (
    damaged_session,
    decode_policy,
    decode_record,
    encode_record,
)
from policy_server.serving.redis_sessions.script_calls import Argument, RedisScripts
from policy_server.serving.redis_sessions.scripts import Outcome, Script, session_key
from policy_server.serving.session_refusals import (
    crowded_session,
    foreign_session,
    missed_turn,
    unknown_session,
)
from policy_server.serving.session_store import MOST_WAITING, SessionRecord

__all__ = ["Turn", "Turns", "milliseconds"]

# A process that dies in its turn holds its session for as long as this.
_LEASE_S = 5.0
_RENEWED_AFTER_S = 1.5
# One that dies while it waits lets those behind it wait for as long as this.
_COUNTS_S = 2.0
_ASKED_AGAIN_S = 0.5
# The first that waits in this process asks more often, since another process may have the turn.
_SHORTEST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.02


def milliseconds(seconds: float) -> int:
    """Return a time as Redis takes it.

    Args:
        seconds: the time in seconds.
    """
    return math.ceil(seconds * 1000)


class Turn:
    """A session while one request has it for itself, or waits for it.

    Attributes:
        session_id: the session's name.
    """

    def __init__(
        self,
        calls: RedisScripts,
        session_id: str,
        token: str,
        *,
        idle_ms: int,
        most_long_bytes: int,
        metrics: Metrics,
    ) -> None:
        """Own nothing before `begin`; from then on the session, until `leave`.

        Args:
            calls: runs scripts.
            session_id: the session's name.
            token: the name of the turn, which no other has.
            idle_ms: for how long an idle session is kept.
            most_long_bytes: the most bytes of long answers that all sessions keep.
            metrics: counts sessions that are deleted, and requests that are refused.
        """
        self.session_id = session_id
        self._calls = calls
        self._key = session_key(session_id)
        self._token = token
        self._idle_ms = idle_ms
        self._most_long_bytes = most_long_bytes
        self._metrics = metrics
        self._record: SessionRecord | None = None
        # It is, where Redis knows nothing of it.
        self._is_over = True
        self._renewal: asyncio.TimerHandle | None = None

    @property
    def record(self) -> SessionRecord:
        """Return the record that is kept of the session."""
        assert self._record is not None, "the turn has begun"
        return self._record

    async def begin(self, policy: str) -> bool:
        """Take the session where no other request has it.

        Args:
            policy: the name of its policy.

        Returns:
            Whether the turn has begun; else it has its place among those that wait.

        Raises:
            UnknownSessionError: if there is no such session.
            SessionConflictError: if it is not of this policy, or its record can't be read.
            OverloadedError: if `MOST_WAITING` requests wait for it already.
            SessionStoreError: if Redis fails.
        """
        asked = self._ask(
            *(scripts.TAKE, policy, _LEASE_MS, self._idle_ms),
            *(milliseconds(_COUNTS_S), MOST_WAITING),
        )
        self._is_over = False
        found = await asked
        if found[0] == Outcome.UNKNOWN:
            self._is_over = True
            raise unknown_session(policy, self.session_id)
        if found[0] == Outcome.DAMAGED:
            self._is_over = True
            raise damaged_session()
        if found[0] == Outcome.FOREIGN:
            self._is_over = True
            raise foreign_session(policy, self.session_id, decode_policy(found[1]))
        if found[0] == Outcome.CROWDED:
            self._is_over = True
            self._metrics.of(policy).count_rejected("session_queue")
            raise crowded_session(found[1])
        if found[0] == Outcome.WAITING:
            return False
        self._renew_later()
        self._record = decode_record(policy, self.session_id, found[1])
        return True

    async def keep(self, record: SessionRecord) -> None:
        """Keep another record, and end the turn; see `HeldSession.keep`."""
        if not await self._keep(record):
            record = record.without_text()
            await self._keep(record)
        self._record = record

    async def _keep(self, record: SessionRecord) -> bool:
        """Keep a record, and return whether its long answer had a place."""
        return await self._end(
            scripts.KEEP,
            encode_record(record),
            groups_of(record),
            self._idle_ms,
            power_of(record),
            self._most_long_bytes,
        )

    async def remove(self) -> None:
        """Forget the session; see `HeldSession.remove`."""
        await self._end(scripts.REMOVE)
        self._metrics.of(self.record.policy).count_session("deleted")

    def leave(self) -> None:
        """End the turn, or the wait for it, unless it has ended."""
        if self._renewal is not None:
            self._renewal.cancel()
        if not self._is_over:
            self._is_over = True
            self._calls.tell(scripts.LEAVE, self._key, self._token, self._idle_ms)

    async def _end(self, script: Script, *arguments: Argument) -> bool:
        outcome = await self._ask(script, *arguments)
        if outcome == Outcome.FULL:
            return False
        self._is_over = True
        if outcome == Outcome.UNKNOWN:
            raise unknown_session(self.record.policy, self.session_id)
        if outcome == Outcome.LOST:
            raise SessionStoreError(
                "this request took so long that another one on its session has begun; try again, a "
                "step with its number in x-step"
            )
        return True

    def _ask(self, script: Script, *arguments: Argument) -> asyncio.Future[Any]:
        return self._calls.call(script, self._key, self._token, *arguments)

    def _renew_later(self) -> None:
        self._renewal = asyncio.get_running_loop().call_later(_RENEWED_AFTER_S, self._renew)

    def _renew(self) -> None:
        self._calls.tell(scripts.RENEW, self._key, self._token, _LEASE_MS, self._idle_ms)
        self._renew_later()


_LEASE_MS = milliseconds(_LEASE_S)


class Turns:
    """The turns of this process, in the order in which its requests come.

    Each request has its place among those of all processes, which Redis keeps. It is told at once
    when one of this process ends its turn, and asks from time to time whether another process has.
    """

    def __init__(
        self,
        calls: RedisScripts,
        metrics: Metrics,
        *,
        idle_s: float,
        patience_s: float,
        most_long_bytes: int,
    ) -> None:
        """Own the places of the requests that wait.

        Args:
            calls: runs scripts.
            metrics: counts sessions that are deleted, and requests that are refused.
            idle_s: for how long an idle session is kept, in seconds.
            patience_s: the longest wait for a turn, in seconds.
            most_long_bytes: the most bytes of long answers that all sessions keep.
        """
        self._calls = calls
        self._metrics = metrics
        self._idle_ms = milliseconds(idle_s)
        self._patience_s = patience_s
        self._most_long_bytes = most_long_bytes
        self._waiting: dict[str, deque[asyncio.Event]] = {}
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count()

    @asynccontextmanager
    async def held(self, policy: str, session_id: str) -> AsyncIterator[Turn]:
        """Give one request at a time a session; see `SessionStore.held`."""
        token = f"{self._process}:{next(self._numbers)}"
        turn = Turn(
            self._calls,
            session_id,
            token,
            idle_ms=self._idle_ms,
            most_long_bytes=self._most_long_bytes,
            metrics=self._metrics,
        )
        try:
            if not await turn.begin(policy):
                await self._wait(turn, policy)
            yield turn
        finally:
            turn.leave()
            if session_id in self._waiting:
                self._waiting[session_id][0].set()

    async def _wait(self, turn: Turn, policy: str) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                with self._place(turn.session_id) as (own, places):
                    pause_s = _SHORTEST_PAUSE_S
                    while True:
                        is_first = places[0] is own
                        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if is_first else pause_s
                        with suppress(TimeoutError):
                            async with asyncio.timeout(pause_s if is_first else _ASKED_AGAIN_S):
                                await own.wait()
                        own.clear()
                        if await turn.begin(policy):
                            return
        except TimeoutError:
            raise missed_turn(self._patience_s) from None

    @contextmanager
    def _place(self, session_id: str) -> Iterator[tuple[asyncio.Event, deque[asyncio.Event]]]:
        """Give a request its place among those of this process that wait for a session."""
        own = asyncio.Event()
        places = self._waiting.setdefault(session_id, deque())
        places.append(own)
        try:
            yield own, places
        finally:
            places.remove(own)
            if not places:
                del self._waiting[session_id]
