"""The record that is kept of a session, and the protocol of the stores that keep records."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from policy_server.policy import Float32Array
from policy_server.serving.team_record import TeamRecord

__all__ = [
    "LONGEST_SHORT_ANSWER",
    "MOST_WAITING",
    "AnsweredStep",
    "HeldSession",
    "ImmediateStore",
    "SessionPlace",
    "SessionRecord",
    "SessionStore",
]


LONGEST_SHORT_ANSWER = 16_384
"""In bytes: a last answer that is longer is kept only while all such ones take no more memory than
`Settings.max_kept_answer_bytes`; the number of sessions bounds that of the others."""

MOST_WAITING = 64
"""How many requests may wait for one session, beside the one that has it: each holds its body, and
a place that every store looks through."""


@dataclass(frozen=True)
class AnsweredStep:
    """The last step of a session, for a client that asks for it again.

    Attributes:
        digest: of the request: its kind, its body and its options.
        text: the JSON of the answer; None for a long one that was not kept.
    """

    digest: bytes
    text: bytes | None


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
        client: the name of the client that began it, as `client_name` gives it; empty where it is
            not known.
        schema: the digest of that version's schema.yaml; empty for a team's, and in a record of an
            older release, which kept none.
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
    client: str = ""
    schema: str = ""

    @property
    def long_bytes(self) -> int:
        """Return the bytes of a last answer that is a long one; 0 for a short one, or none."""
        text = None if self.last is None else self.last.text
        return 0 if text is None or len(text) <= LONGEST_SHORT_ANSWER else len(text)

    def without_text(self) -> SessionRecord:
        """Return the record without the text of its last answer."""
        assert self.last is not None, "whoever asks has looked"
        return replace(self, last=replace(self.last, text=None))

    @property
    def answering(self) -> frozenset[tuple[str, str, str]]:
        """Return the versions that answer it: the policy's name, the version's, and its digest."""
        if self.team is None:
            return frozenset({(self.policy, self.version, self.digest)})
        versions = self.team.versions.items()
        return frozenset((policy, known.label, known.digest) for policy, known in versions)


class HeldSession(Protocol):
    """A session while one request has it for itself."""

    @property
    def record(self) -> SessionRecord:
        """Return the record that is kept of it."""

    async def keep(self, record: SessionRecord) -> None:
        """Keep another record of the same session, whole or not at all, as the last of a turn.

        Args:
            record: the whole of it.

        Raises:
            SessionStoreError: if the store can't be reached, or the turn was lost to another
                request.
        """

    async def remove(self) -> None:
        """Forget the session; see `keep`."""


class SessionStore(Protocol):
    """Keeps the sessions of all policies.

    Whatever it is asked for may be refused with a `SessionStoreError`, where it can't be reached.
    """

    @property
    def is_shared(self) -> bool:
        """Return whether other processes begin sessions in it too."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Keep sessions until the block ends."""

    async def add(self, record: SessionRecord) -> None:
        """Keep a new session.

        Args:
            record: what is kept of it.

        Raises:
            OverloadedError: if as many sessions are kept as may be.
            TooManyRequestsError: if as many are its client's as may be; it is counted.
            UnsupportedAnswerError: if this server keeps none.
        """

    def held(self, policy: str, session_id: str) -> AbstractAsyncContextManager[HeldSession]:
        """Give one request at a time a session, in the order in which they ask.

        Args:
            policy: the policy's name, or `TEAM`.
            session_id: the session's.

        Raises:
            UnknownSessionError: if there is no such session.
            SessionConflictError: if it is not of this policy.
            OverloadedError: if `MOST_WAITING` requests wait for it already, or those before this
                one take longer than one may wait.
        """

    async def remove(self, policy: str, session_id: str) -> None:
        """Forget a session, once the requests before this one have had it; see `held`.

        Args:
            policy: the policy's name, or `TEAM`.
            session_id: the session's.
        """

    async def count(self, policy: str, version: str, digest: str) -> int:
        """Return how many sessions a version of a policy answers.

        Args:
            policy: the policy's name.
            version: the version's.
            digest: the start of the digest of the version's files.
        """


class SessionPlace(Protocol):
    """The place of a request among those of one session, of which the first has the session.

    Attributes:
        wait: done when the session is the request's; None where it is so at once.
        patience_s: how long the request may wait, in seconds.
    """

    wait: asyncio.Future[None] | None
    patience_s: float

    @property
    def held(self) -> HeldSession:
        """Return the session, once it is the request's.

        Raises:
            UnknownSessionError: if a request before this one has ended it.
        """

    def keep(self, record: SessionRecord) -> None:
        """Keep another record of the session; see `HeldSession.keep`."""

    def leave(self) -> None:
        """Let the next request have the session, or wait no more."""


@runtime_checkable
class ImmediateStore(Protocol):
    """A `SessionStore` in this process: its sessions are had without a coroutine."""

    def queue(self, policy: str, session_id: str) -> SessionPlace:
        """Return a request's place behind those that have asked for the session before it.

        Args:
            policy: the policy's name, or `TEAM`.
            session_id: the session's.

        Raises:
            UnknownSessionError: if there is no such session.
            SessionConflictError: if it is not of this policy.
            OverloadedError: if `MOST_WAITING` requests wait for it already.
        """
