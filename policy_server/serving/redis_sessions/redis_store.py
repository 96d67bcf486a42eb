"""The store of sessions in Redis: their number, their expiry and their counts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

from pydantic import SecretStr

from policy_server.errors import SessionStoreError, UnreadableSessionError
from policy_server.metrics import Metrics
from policy_server.serving.redis_sessions import scripts
from policy_server.serving.redis_sessions.groups import client_group, group_of, groups_of
from policy_server.serving.redis_sessions.records import (
    damaged_session,
    decode_policy,
    encode_record,
)
from policy_server.serving.redis_sessions.script_calls import RedisScripts
from policy_server.serving.redis_sessions.scripts import Outcome, session_key
from policy_server.serving.redis_sessions.turns import Turns, milliseconds
from policy_server.serving.session_refusals import (
    foreign_session,
    too_many_of_client,
    too_many_sessions,
    unknown_session,
)
from policy_server.serving.session_store import HeldSession, SessionRecord
from policy_server.settings import Settings

__all__ = ["RedisSessions"]

_SESSION_ID = re.compile(r"[0-9a-f]{32}")
_SWEPT_EVERY_S = 5.0


class RedisSessions:
    """A `SessionStore` in Redis, which any number of processes share, for one event loop."""

    is_shared = True

    def __init__(
        self,
        url: SecretStr,
        settings: Settings,
        metrics: Metrics,
        *,
        swept_every_s: float = _SWEPT_EVERY_S,
    ) -> None:
        """Own a connection to Redis while `running`; the sessions stay there.

        Args:
            url: the address of the Redis.
            settings: how many sessions there may be, and for how long an idle one is kept.
            metrics: counts them.
            swept_every_s: how often they are counted, in seconds.

        Raises:
            SettingsError: if the URL can't be used.
        """
        self._calls = RedisScripts(url)
        self._turns = Turns(
            self._calls,
            metrics,
            idle_s=settings.session_idle_s,
            patience_s=settings.request_timeout_s,
            most_long_bytes=settings.max_kept_answer_bytes,
        )
        self._most = settings.max_sessions
        self._most_of_client = settings.max_key_sessions
        self._idle_ms = milliseconds(settings.session_idle_s)
        self._metrics = metrics
        self._swept_every_s = swept_every_s
        self._shown: set[str] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Count the sessions until the block ends; see `SessionStore.running`."""
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.wait([sweeping])
            await self._calls.aclose()

    async def add(self, record: SessionRecord) -> None:
        """Keep a new session; see `SessionStore.add`."""
        metrics = self._metrics.of(record.policy)
        outcome, number = await self._calls.call(
            scripts.ADD,
            session_key(record.session_id),
            encode_record(record),
            record.policy,
            groups_of(record),
            self._most,
            self._idle_ms,
            client_group(record),
            self._most_of_client,
        )
        if outcome == Outcome.CLIENT_FULL:
            metrics.count_session("refused")
            refusal = too_many_of_client(record.client, number)
            metrics.count_rejected(refusal.reason)
            raise refusal
        if outcome == Outcome.FULL:
            metrics.count_session("refused")
            raise too_many_sessions(number)
        metrics.count_session("opened")

    def held(self, policy: str, session_id: str) -> AbstractAsyncContextManager[HeldSession]:
        """Give one request at a time a session; see `SessionStore.held`."""
        if not _SESSION_ID.fullmatch(session_id):
            raise unknown_session(policy, session_id)
        return self._turns.held(policy, session_id)

    async def remove(self, policy: str, session_id: str) -> None:
        """Forget a session; see `SessionStore.remove`.

        One of which something damaged is kept is forgotten too.
        """
        try:
            await self._remove(policy, session_id)
        except UnreadableSessionError:
            await self._calls.call(scripts.REMOVE_DAMAGED, session_key(session_id))
            self._metrics.of(policy).count_session("deleted")

    async def _remove(self, policy: str, session_id: str) -> None:
        """Forget a session that can be read.

        A full Redis takes no turn, and yet a session that no other request has is deleted from it.
        """
        try:
            async with self.held(policy, session_id) as held:
                await held.remove()
        except SessionStoreError:
            found = await self._calls.call(scripts.REMOVE_FREE, session_key(session_id), policy)
            if found[0] == Outcome.UNKNOWN:
                raise unknown_session(policy, session_id) from None
            if found[0] == Outcome.DAMAGED:
                raise damaged_session() from None
            if found[0] == Outcome.FOREIGN:
                raise foreign_session(policy, session_id, decode_policy(found[1])) from None
            if found[0] == Outcome.WAITING:
                raise
            self._metrics.of(policy).count_session("deleted")

    async def count(self, policy: str, version: str, digest: str) -> int:
        """Return how many sessions a version answers; see `SessionStore.count`."""
        number: int = await self._calls.call(
            scripts.COUNT, scripts.GROUPS, group_of(policy, version, digest)
        )
        return number

    async def _sweep(self) -> None:
        """Show the number of sessions, and count those that have expired, for ever."""
        while True:
            with suppress(SessionStoreError):
                self._show(await self._calls.call(scripts.SWEEP, scripts.GROUPS))
            await asyncio.sleep(self._swept_every_s)

    def _show(self, found: list[Any]) -> None:
        open_now = dict.fromkeys(self._shown, 0)
        for group, number, expired in zip(found[::3], found[1::3], found[2::3], strict=True):
            if group.startswith(b":"):
                policy = group[1:].decode(errors="replace")
                open_now[policy] = number
                for _ in range(expired):
                    self._metrics.of(policy).count_session("expired")
        for policy, number in open_now.items():
            self._metrics.of(policy).show_sessions(number)
        self._shown.update(open_now)
