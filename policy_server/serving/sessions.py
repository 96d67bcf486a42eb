"""Sessions: episodes whose memory the server keeps between the requests of a client."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from policy_server.errors import (
    DeadlineError,
    NotReadyError,
    SessionConflictError,
    UnsupportedAnswerError,
)
from policy_server.metrics import PolicyMetrics
from policy_server.serving.deadlines import within
from policy_server.serving.memory import EpisodeMemory
from policy_server.serving.session_refusals import address_of
from policy_server.serving.session_store import (
    AnsweredStep,
    HeldSession,
    ImmediateStore,
    SessionPlace,
    SessionRecord,
    SessionStore,
)
from policy_server.serving.slot import PolicySlot
from policy_server.serving.team_record import VersionName
from policy_server.serving.version import PolicyVersion
from policy_server.settings import ENV_PREFIX

__all__ = ["KeptSessions", "SessionTurn", "Sessions", "check_seed", "version_begun_with"]


class _Kept(Protocol):
    """A memory that a session's record keeps."""

    steps: int

    def kept_in(self, record: SessionRecord) -> SessionRecord:
        """Return a session's record with this memory."""


Memory = TypeVar("Memory", bound=_Kept)


class SessionTurn(Generic[Memory]):
    """A session while one request has it for itself.

    Attributes:
        memory: the memory that the request's step starts from.
    """

    def __init__(self, held: HeldSession, memory: Memory) -> None:
        """Own nothing: the session is the store's.

        Args:
            held: the session.
            memory: its memory.
        """
        self._held = held
        self.memory = memory

    async def answer(
        self, step: int | None, digest: bytes, make: Callable[[], Awaitable[bytes]]
    ) -> tuple[bytes, int]:
        """Return the answer to a step: of the next one, or once more of the last one.

        Args:
            step: the number of the step that the client asks for, from 0; None for the next one.
            digest: of the request.
            make: makes the next step, which advances the memory, and gives the JSON of its answer.

        Returns:
            The JSON of the answer, and the number of its step.

        Raises:
            SessionConflictError: if the step is neither the last one nor the next, or if the last
                one was asked with another request, or its answer is not kept.
            PolicyServerError: as `make` raised it; the session is as it was then.
        """
        number = self.memory.steps
        text = self.repeated(step, digest)
        if text is not None:
            return text, number - 1
        text = await make()
        await self._held.keep(self.record_after(digest, text))
        return text, number

    def record_after(self, digest: bytes, text: bytes) -> SessionRecord:
        """Return the session's record after a step, once the memory has made it.

        Args:
            digest: of the request.
            text: the JSON of the answer.
        """
        record = self.memory.kept_in(self._held.record)
        return replace(record, last=AnsweredStep(digest, text))

    def repeated(self, step: int | None, digest: bytes) -> bytes | None:
        """Return the answer to the last step, if it is asked for again; None for the next step.

        Args:
            step: the number of the step that the client asks for; None for the next one.
            digest: of the request.

        Raises:
            SessionConflictError: as `answer` raises it.
        """
        record = self._held.record
        if step is None or step == record.steps:
            return None
        if record.last is None or step != record.steps - 1:
            last = f" or {record.steps - 1} again" if record.last is not None else ""
            raise SessionConflictError(
                f"x-step {step}: expected {record.steps}, the next step of this session{last}"
            )
        if record.last.digest != digest:
            raise SessionConflictError(
                f"x-step {step}: was answered to another request; send that one again, or the next "
                f"step {record.steps}"
            )
        if record.last.text is None:
            raise SessionConflictError(
                f"x-step {step}: was answered, and its long answer could not be kept beside those "
                f"of other sessions ({ENV_PREFIX}MAX_KEPT_ANSWER_BYTES); go on with step "
                f"{record.steps}, or begin another episode"
            )
        return record.last.text


class KeptSessions:
    """The sessions of one policy, or of a team, in the store that all share."""

    def __init__(self, store: SessionStore, policy: str, metrics: PolicyMetrics) -> None:
        """Own nothing: the sessions are the store's.

        Args:
            store: keeps them.
            policy: the policy's name; `TEAM` for a team.
            metrics: counts the sessions, and requests that were not answered in time.
        """
        self._metrics = metrics
        self._store = store
        self._policy = policy
        self._immediate = store if isinstance(store, ImmediateStore) else None

    @property
    def is_immediate(self) -> bool:
        """Return whether the sessions are kept in this process, so that they can be queued for."""
        return self._immediate is not None

    def queue(self, session_id: str) -> SessionPlace:
        """Return a request's place among those of a session; see `ImmediateStore.queue`.

        Args:
            session_id: its name.
        """
        assert self._immediate is not None, "whoever asks has looked"
        return self._immediate.queue(self._policy, session_id)

    def refuse_late(self) -> DeadlineError:
        """Return the error of a request whose own deadline has passed, and count it."""
        self._metrics.count_rejected("deadline")
        return DeadlineError()

    async def describe(self, session_id: str) -> SessionRecord:
        """Return the record that is kept of a session.

        Args:
            session_id: its name.

        Raises:
            UnknownSessionError: if there is none of that name.
        """
        async with self._store.held(self._policy, session_id) as held:
            return held.record

    @asynccontextmanager
    async def _held(self, session_id: str, deadline: float | None) -> AsyncIterator[HeldSession]:
        """Give one request at a time a session, if its turn comes before its own deadline."""
        async with AsyncExitStack() as stack:
            async with within(deadline, self._metrics):
                held = await stack.enter_async_context(self._store.held(self._policy, session_id))
            yield held

    async def end(self, session_id: str) -> None:
        """End a session.

        Args:
            session_id: its name.

        Raises:
            UnknownSessionError: if there is none of that name.
        """
        await self._store.remove(self._policy, session_id)


class Sessions(KeptSessions):
    """The sessions of one policy."""

    def __init__(self, slot: PolicySlot) -> None:
        """Own nothing: the sessions are the store's.

        Args:
            slot: the policy's slot.
        """
        super().__init__(slot.sessions, slot.name, slot.metrics)
        self._slot = slot

    async def begin(
        self,
        *,
        seed: int | None = None,
        episode_id: str = "",
        wanted: str = "",
        client: str = "",
    ) -> SessionRecord:
        """Begin a session, with the zero state.

        Args:
            seed: makes the draws reproducible: step i, from 0, is drawn with seed + i.
            episode_id: the client's own name of the episode, which may choose the version that
                answers it.
            wanted: the name of the version that is asked for; empty leaves that to the traffic.
            client: the name of the client, as `client_name` gives it; empty for one that is not
                known.

        Returns:
            What is kept of it.

        Raises:
            OverloadedError: if as many sessions are open as may be.
            TooManyRequestsError: if as many of its client's are.
            UnsupportedAnswerError: if this server keeps no sessions, or the policy takes no seed.
            NotReadyError: if no version is loaded.
            DeploymentError: if the version that is asked for is not loaded.
        """
        version = self._slot.choose(episode_id, wanted=wanted)
        check_seed(version, seed)
        record = SessionRecord(
            session_id=secrets.token_hex(16),
            policy=self._slot.name,
            version=version.label,
            digest=version.digest,
            schema=version.version_name.schema,
            state=EpisodeMemory.begin(version).state,
            seed=seed,
            episode_id=episode_id,
            client=client,
        )
        await self._store.add(record)
        return record

    async def reset(
        self, session_id: str, *, seed: int | None = None, episode_id: str = ""
    ) -> SessionRecord:
        """Begin another episode in a session, with the zero state.

        The session stays on its version for as long as that is loaded.

        Args:
            session_id: its name.
            seed: see `begin`; None keeps the session's.
            episode_id: see `begin`; empty keeps the session's.

        Raises:
            UnknownSessionError: if there is none of that name.
            UnsupportedAnswerError: if the policy takes no seed.
        """
        async with self._store.held(self._policy, session_id) as held:
            record = held.record
            episode_id = episode_id or record.episode_id
            version = await version_begun_with(
                self._slot, _begun_with(record)
            ) or self._slot.choose(episode_id)
            check_seed(version, seed)
            begun = replace(
                record,
                version=version.label,
                digest=version.digest,
                schema=version.version_name.schema,
                state=EpisodeMemory.begin(version).state,
                steps=0,
                has_action=True,
                seed=record.seed if seed is None else seed,
                episode_id=episode_id,
                last=None,
            )
            await held.keep(begun)
        self._metrics.count_session("reset")
        return begun

    @asynccontextmanager
    async def turn(
        self, session_id: str, *, deadline: float | None = None
    ) -> AsyncIterator[SessionTurn[EpisodeMemory]]:
        """Give one request at a time a session, in the order in which they come.

        Args:
            session_id: its name.
            deadline: the client's own, by `time.perf_counter`, until which its request waits for
                those before it; None for none.

        Yields:
            The session.

        Raises:
            UnknownSessionError: if there is none of that name.
            SessionConflictError: if its version is not loaded any more.
            NotReadyError: if this process has not loaded its version yet.
            DeadlineError: if the deadline has passed before its turn.
        """
        async with self._held(session_id, deadline) as held:
            begun = _begun_with(held.record)
            if await version_begun_with(self._slot, begun) is None:
                raise SessionConflictError(
                    f"this session began with version {begun.label}, which is not loaded any "
                    f"more, or not with its schema.yaml; begin another episode with "
                    f"POST {address_of(self._policy, f'/{session_id}/reset')}"
                )
            turn = self.turn_of(held)
            assert turn is not None, "its version was found just now"
            yield turn

    def turn_of(self, held: HeldSession) -> SessionTurn[EpisodeMemory] | None:
        """Return the turn of a request that has a session; None where its version is not loaded.

        Args:
            held: the session.

        Raises:
            SessionConflictError: if the version has a memory of another size.
        """
        record = held.record
        version = self._slot.find(_begun_with(record))
        if version is None:
            return None
        memory = EpisodeMemory.resume(
            version, record.state, record.steps, record.seed, has_action=record.has_action
        )
        return SessionTurn(held, memory)


async def version_begun_with(slot: PolicySlot, begun: VersionName) -> PolicyVersion | None:
    """Return the version that a session began with; None where it is not loaded any more.

    Args:
        slot: the policy's slot.
        begun: the version.

    Raises:
        NotReadyError: if another process deployed the version, and this one has yet to load it.
    """
    version = slot.find(begun)
    if version is None and await slot.is_expected(begun.label, begun.digest):
        raise NotReadyError(
            f"this session began with version {begun.label}, which this web process is about to "
            "load; try again in a few seconds"
        )
    return version


def _begun_with(record: SessionRecord) -> VersionName:
    return VersionName(record.version, record.digest, record.schema)


def check_seed(version: PolicyVersion, seed: int | None) -> None:
    """Refuse a seed for the draws of a policy that takes none.

    Args:
        version: answers the session.
        seed: the seed; None for none.

    Raises:
        UnsupportedAnswerError: if the policy's distribution is not known.
    """
    if seed is not None and version.distribution is None:
        raise UnsupportedAnswerError(
            "a seed needs a policy whose distribution is known; begin the session without one"
        )
