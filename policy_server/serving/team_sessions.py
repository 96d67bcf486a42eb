"""Sessions of a team: one episode, in which each agent has a memory of its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np

from policy_server.errors import NotReadyError
from policy_server.metrics import PolicyMetrics
from policy_server.serving.session_store import HeldSession, SessionRecord
from policy_server.serving.sessions import KeptSessions, SessionTurn, check_seed, version_begun_with
from policy_server.serving.team import Team, TeamVersions
from policy_server.serving.team_record import TEAM, TeamRecord, VersionName
from policy_server.serving.team_steps import TeamMemory

__all__ = ["TeamSessions"]


class TeamSessions(KeptSessions):
    """The sessions of a server's team."""

    def __init__(self, team: Team, metrics: PolicyMetrics) -> None:
        """Own nothing: the sessions are those of the store that the policies share.

        Args:
            team: the policies of the agents.
            metrics: counts the sessions of teams.
        """
        super().__init__(next(iter(team.slots.values())).sessions, TEAM, metrics)
        self._team = team

    async def begin(
        self,
        *,
        seed: int | None = None,
        episode_id: str = "",
        wanted: str = "",
        client: str = "",
    ) -> SessionRecord:
        """Begin a session, in which no agent has a memory yet.

        Args:
            seed: makes the draws reproducible: step i of the team, from 0, has seed + i, of which
                each agent gets a seed of its own.
            episode_id: the client's own name of the episode, which may choose the versions that
                answer it.
            wanted: the versions that are asked for; see `Team.wanted_versions`.
            client: the name of the client, as `client_name` gives it; empty for one that is not
                known.

        Returns:
            What is kept of it.

        Raises:
            OverloadedError: if as many sessions are open as may be.
            TooManyRequestsError: if as many of its client's are.
            UnsupportedAnswerError: if this server keeps no sessions, or a policy takes no seed.
            NotReadyError: if no version of any policy is loaded.
            DeploymentError: if a version that is asked for is not loaded.
        """
        versions = TeamVersions(episode_id, self._team.wanted_versions(wanted))
        self._choose(versions, seed)
        record = SessionRecord(
            session_id=secrets.token_hex(16),
            policy=TEAM,
            version="",
            digest="",
            state=np.zeros(0, np.float32),
            seed=seed,
            episode_id=episode_id,
            team=TeamRecord(versions.names, {}),
            client=client,
        )
        await self._store.add(record)
        return record

    async def reset(
        self, session_id: str, *, seed: int | None = None, episode_id: str = ""
    ) -> SessionRecord:
        """Begin another episode in a session, in which no agent has a memory yet.

        Args:
            session_id: its name.
            seed: the seed of the new episode; None keeps the session's.
            episode_id: the name of the new episode; empty keeps the session's.

        Returns:
            What is kept of it.

        Raises:
            UnknownSessionError: if there is none of that name.
            UnsupportedAnswerError: if a policy takes no seed.
            NotReadyError: if no version of any policy is loaded.
        """
        async with self._store.held(TEAM, session_id) as held:
            record = held.record
            episode_id = episode_id or record.episode_id
            versions = TeamVersions(episode_id, begun=await self._loaded(_team_of(record)))
            self._choose(versions, seed)
            begun = replace(
                record,
                steps=0,
                seed=record.seed if seed is None else seed,
                episode_id=episode_id,
                last=None,
                team=TeamRecord(versions.names, {}),
            )
            await held.keep(begun)
        self._metrics.count_session("reset")
        return begun

    async def reset_agents(self, session_id: str, agents: Collection[str]) -> SessionRecord:
        """Forget the memories of some agents, which begin with the zero state at their next step.

        The episode of the others goes on. An agent that has left is forgotten in this way.

        Args:
            session_id: the session's name.
            agents: the agents; those without a memory are passed over.

        Returns:
            What is kept of the session.

        Raises:
            UnknownSessionError: if there is none of that name.
            ObservationError: if an agent is none of the team's.
        """
        for agent in agents:
            self._team.slot_of(agent)
        async with self._store.held(TEAM, session_id) as held:
            memory = _memory_of(held.record)
            memory.forget(agents)
            kept = memory.kept_in(held.record)
            await held.keep(kept)
        return kept

    @asynccontextmanager
    async def turn(
        self, session_id: str, *, deadline: float | None = None
    ) -> AsyncIterator[SessionTurn[TeamMemory]]:
        """Give one request at a time a session, in the order in which they come.

        Args:
            session_id: its name.
            deadline: the client's own, by `time.perf_counter`, until which its request waits for
                those before it; None for none.

        Yields:
            The session.

        Raises:
            UnknownSessionError: if there is none of that name.
            NotReadyError: if this process has yet to load a version of the episode.
        """
        async with self._held(session_id, deadline) as held:
            # A version that is gone is no matter to a step without its agents; one that comes is.
            await self._loaded(_team_of(held.record))
            yield SessionTurn(held, _memory_of(held.record))

    def turn_of(self, held: HeldSession) -> SessionTurn[TeamMemory] | None:
        """Return the turn of a request that has a session; None where a version is not loaded.

        Args:
            held: the session.
        """
        team, slots = _team_of(held.record), self._team.slots
        known = (slots[policy].find(begun) for policy, begun in team.versions.items())
        is_loaded = team.versions.keys() <= slots.keys() and None not in known
        return SessionTurn(held, _memory_of(held.record)) if is_loaded else None

    def _choose(self, versions: TeamVersions, seed: int | None) -> None:
        """Choose a version of each policy that is loaded; agents of the others are not answered."""
        refusal: NotReadyError | None = None
        for slot in self._team.slots.values():
            try:
                check_seed(versions.of(slot), seed)
            except NotReadyError as error:
                refusal = error
        if refusal is not None and not versions.chosen:
            raise refusal

    async def _loaded(self, team: TeamRecord) -> Mapping[str, VersionName]:
        """Return the versions of an episode that are loaded still."""
        loaded = {}
        for policy, begun in team.versions.items():
            slot = self._team.slots.get(policy)
            if slot is not None and await version_begun_with(slot, begun) is not None:
                loaded[policy] = begun
        return loaded


def _team_of(record: SessionRecord) -> TeamRecord:
    assert record.team is not None, "the store keeps it apart from the sessions of policies"
    return record.team


def _memory_of(record: SessionRecord) -> TeamMemory:
    team = _team_of(record)
    versions = TeamVersions(record.episode_id, begun=team.versions)
    return TeamMemory(versions, team.agents, record.steps, record.seed)
