"""Where sessions live: what is kept of each, and the store of one process."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from policy_server.errors import OverloadedError, UnknownSessionError, UnsupportedAnswerError
from policy_server.metrics import Metrics
from policy_server.policy import Float32Array
from policy_server.serving.team_record import TeamRecord
from policy_server.settings import ENV_PREFIX, Settings

__all__ = [
    "AnsweredStep",
    "HeldSession",
    "NoSessions",
    "ProcessSessions",
    "SessionRecord",
    "SessionStore",
    "unknown_session",
]


@dataclass(frozen=True)
class AnsweredStep:
    """The last step of a session, for a client that asks for it again.

    Attributes:
        digest: of the request: its kind, its body and its options.
        text: the JSON of the answer.
    """

    digest: bytes
    text: bytes


@dataclass(frozen=True, eq=False)
class SessionRecord:
    """All that is kept of a session.

    Attributes:
        session_id: its name, which no other session has.
        policy: the policy's name; `TEAM` for a team's.
        version: the name of the version that answers it; empty for a team's.
        digest: the start of the digest of that version's files; empty for a team's.
        state: float32[memory_width], the memory after the last step; of width 0 for a team's.
        steps: how many questions of the episode have been answered.
        seed: the seed of the episode's first draw; None for independent draws.
        episode_id: the client's own name of the episode; empty for none.
        has_action: whether the memory has the last step's action, where the policy takes it.
        last: the last step; None before the first one of an episode.
        team: the team's versions and agents; None for a session of one policy.
    """

    session_id: str
    policy: str
    version: str
    digest: str
    state: Float32Array
    steps: int = 0
    seed: int | None = None
    episode_id: str = ""
    has_action: bool = True
    last: AnsweredStep | None = None
    team: TeamRecord | None = None

    @property
    def answering(self) -> frozenset[tuple[str, str]]:
        """Return the policies that answer it, each with the name of its version."""
        if self.team is None:
            return frozenset({(self.policy, self.version)})
        return frozenset((policy, known.label) for policy, known in self.team.versions.items())


class HeldSession(Protocol):
    """A session while one request has it for itself."""

    @property
    def record(self) -> SessionRecord:
        """Return the record that is kept of it."""

    async def keep(self, record: SessionRecord) -> None:
        """Keep another record of the same session.

        Args:
            record: the whole of it.
        """

    async def remove(self) -> None:
        """Forget the session."""


class SessionStore(Protocol):
    """Keeps the sessions of all policies."""

    async def add(self, record: SessionRecord) -> None:
        """Keep a new session.

        Args:
            record: what is kept of it.

        Raises:
            OverloadedError: if as many sessions are kept as may be.
            UnsupportedAnswerError: if this server keeps none.
        """

    def held(self, policy: str, session_id: str) -> AbstractAsyncContextManager[HeldSession]:
        """Give one request at a time a session, in the order in which they ask.

        Args:
            policy: the policy's name, or `TEAM`.
            session_id: the session's.

        Raises:
            UnknownSessionError: if the policy has no such session.
        """

    async def count(self, policy: str, version: str) -> int:
        """Return how many sessions a version of a policy answers.

        Args:
            policy: the policy's name.
            version: the version's.
        """


def unknown_session(session_id: str) -> UnknownSessionError:
    """Return the error of a session that is not there.

    Args:
        session_id: as the client gave it.
    """
    shown = session_id if len(session_id) <= _SHOWN else f"{session_id[:_SHOWN]}..."
    return UnknownSessionError(
        f"session {shown!r} is unknown, has ended or was idle for too long "
        f"({ENV_PREFIX}SESSION_IDLE_S); begin another one with POST /sessions"
    )


_SHOWN = 64


@dataclass(eq=False, slots=True)
class _Kept:
    """A session of this process; it is a `HeldSession` too."""

    record: SessionRecord
    used: float
    store: ProcessSessions
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def keep(self, record: SessionRecord) -> None:
        self.store.replace(self, record)

    async def remove(self) -> None:
        self.store.end(self, "deleted")


class ProcessSessions:
    """A `SessionStore` in the memory of this process, for one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Own the sessions of this process.

        Args:
            settings: how many there may be, and for how long an idle one is kept.
            metrics: counts them.
        """
        self._most = settings.max_sessions
        self._idle_s = settings.session_idle_s
        self._metrics = metrics
        # The longest idle first.
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._is_sweeping = False

    async def add(self, record: SessionRecord) -> None:
        """Keep a new session; see `SessionStore.add`."""
        self._forget_idle()
        metrics = self._metrics.of(record.policy)
        if len(self._kept) >= self._most:
            metrics.count_session("refused")
            raise OverloadedError(
                f"{len(self._kept)} sessions are open already ({ENV_PREFIX}MAX_SESSIONS); end some "
                "with DELETE, or try again later"
            )
        now = asyncio.get_running_loop().time()
        self._kept[record.session_id] = _Kept(record, now, self)
        self._count(record, 1)
        metrics.change_sessions(1)
        metrics.count_session("opened")
        self._sweep_later()

    @asynccontextmanager
    async def held(self, policy: str, session_id: str) -> AsyncIterator[HeldSession]:
        """Give one request at a time a session; see `SessionStore.held`."""
        self._forget_idle()
        kept = self._kept.get(session_id)
        if kept is None or kept.record.policy != policy:
            raise unknown_session(session_id)
        async with kept.turn:
            # A request before this one may have ended it.
            if self._kept.get(session_id) is not kept:
                raise unknown_session(session_id)
            try:
                yield kept
            finally:
                kept.used = asyncio.get_running_loop().time()
                if session_id in self._kept:
                    self._kept.move_to_end(session_id)

    async def count(self, policy: str, version: str) -> int:
        """Return how many sessions a version answers; see `SessionStore.count`."""
        self._forget_idle()
        return self._numbers[policy, version]

    def replace(self, kept: _Kept, record: SessionRecord) -> None:
        """Keep another record of a session.

        Args:
            kept: the session.
            record: the whole of it.
        """
        if record.answering != kept.record.answering:
            self._count(kept.record, -1)
            self._count(record, 1)
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
        metrics = self._metrics.of(record.policy)
        metrics.change_sessions(-1)
        metrics.count_session(change)

    def _count(self, record: SessionRecord, change: int) -> None:
        for answering in record.answering:
            self._numbers[answering] += change

    def _forget_idle(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._kept:
            kept = next(iter(self._kept.values()))
            if now - kept.used <= self._idle_s:
                return
            if kept.turn.locked():
                # A request has it, however long it takes.
                kept.used = now
                self._kept.move_to_end(kept.record.session_id)
            else:
                self.end(kept, "expired")

    def _sweep_later(self) -> None:
        """Forget sessions in time for the metrics, whether or not any request comes."""
        if not self._is_sweeping:
            self._is_sweeping = True
            asyncio.get_running_loop().call_later(self._idle_s, self._sweep)

    def _sweep(self) -> None:
        self._is_sweeping = False
        self._forget_idle()
        if self._kept:
            self._sweep_later()


class NoSessions:
    """A `SessionStore` of a process that keeps none, since others answer beside it."""

    async def add(self, record: SessionRecord) -> NoReturn:  # noqa: ARG002 -- none is kept
        """Refuse a session; see `SessionStore.add`."""
        raise self._refusal()

    def held(self, policy: str, session_id: str) -> NoReturn:  # noqa: ARG002 -- none is kept
        """Refuse a session; see `SessionStore.held`."""
        raise self._refusal()

    async def count(self, policy: str, version: str) -> int:  # noqa: ARG002 -- none is kept
        """Return that a version answers no session."""
        return 0

    @staticmethod
    def _refusal() -> UnsupportedAnswerError:
        return UnsupportedAnswerError(
            "sessions live in one web process, and several answer here; start one "
            "(uvicorn --workers 1), or let the answers carry the memory (header x-state: new)"
        )
