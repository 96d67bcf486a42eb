"""A team: agents that share an environment, each with one of the server's policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from policy_server.errors import (
    DeploymentError,
    ObservationError,
    PolicyServerError,
    SessionConflictError,
)
from policy_server.observations import problem
from policy_server.schema import LONGEST_AGENT_ID, AgentPolicies
from policy_server.serving.registry import PolicyRegistry
from policy_server.serving.slot import PolicySlot
from policy_server.serving.team_record import VersionName
from policy_server.serving.version import PolicyVersion

__all__ = ["Team", "TeamVersions", "agent_seed", "naming_agent"]

_SHOWN_RULES = 12


class Team:
    """The agents of a server, by the rules of schema.yaml."""

    def __init__(self, registry: PolicyRegistry, agents: AgentPolicies) -> None:
        """Own nothing: the policies are the registry's.

        Args:
            registry: the policies.
            agents: the policy of each agent.
        """
        self._agents = agents
        self.slots: Mapping[str, PolicySlot] = {name: registry[name] for name in agents.policies}

    @property
    def rules(self) -> Mapping[str, str]:
        """Return the name of the policy for each id or pattern, in the order of schema.yaml."""
        return self._agents.rules

    @property
    def has_named_observations(self) -> bool:
        """Return whether any of its policies takes named observations."""
        return any(slot.schema.observations is not None for slot in self.slots.values())

    def slot_of(self, agent: str) -> PolicySlot:
        """Return the slot of an agent's policy.

        Args:
            agent: its id.

        Raises:
            ObservationError: if no rule is about the agent.
        """
        if len(agent) > LONGEST_AGENT_ID:
            message = f"Input should be an agent's id of at most {LONGEST_AGENT_ID} characters"
            place = ["body", agent[: LONGEST_AGENT_ID + 1]]
            raise ObservationError([problem("agent_unknown", place, message)])
        name = self._agents.policy_of(agent)
        if name is not None:
            return self.slots[name]
        known = [*self.rules]
        more = f" and {len(known) - _SHOWN_RULES} more" if len(known) > _SHOWN_RULES else ""
        message = f"Input should be an agent of multi_agent: {', '.join(known[:_SHOWN_RULES])}"
        raise ObservationError([problem("agent_unknown", ["body", agent], message + more)])

    def wanted_versions(self, text: str) -> Mapping[str, str]:
        """Return the versions that a request asks for, by the policies' names.

        Args:
            text: its header `x-policy-version`, such as `hunter=v1, prey=v2`; empty for none.

        Raises:
            DeploymentError: if it is not of that form, or a policy is not the team's.
        """
        wanted = {}
        for part in text.split(",") if text else ():
            policy, is_pair, version = (piece.strip() for piece in part.partition("="))
            if not is_pair or policy not in self.slots:
                raise DeploymentError(
                    f"x-policy-version: {part.strip()!r} names no version of a policy of the team; "
                    f"expected such as {', '.join(f'{name}=v1' for name in self.slots)}"
                )
            wanted[policy] = version
        return wanted


@dataclass(eq=False, slots=True)
class TeamVersions:
    """The versions that answer one step or one episode of a team: one of each policy.

    Attributes:
        episode: the id of the episode; empty for a step of its own.
        wanted: the names of the versions that are asked for, by policy.
        begun: those that the episode began with, by policy.
        chosen: those that were asked so far, by policy.
    """

    episode: str = ""
    wanted: Mapping[str, str] = field(default_factory=dict)
    begun: Mapping[str, VersionName] = field(default_factory=dict)
    chosen: dict[str, PolicyVersion] = field(default_factory=dict)

    def of(self, slot: PolicySlot) -> PolicyVersion:
        """Return the version of a policy: the same one each time.

        Args:
            slot: the policy's slot.

        Raises:
            SessionConflictError: if the version that the episode began with is not loaded any more.
            NotReadyError: if no version is loaded.
            DeploymentError: if the version that is asked for is not loaded.
        """
        version = self.chosen.get(slot.name)
        if version is None:
            version = self.chosen[slot.name] = self._begun_or_new(slot)
        elif not slot.has(version):
            raise _not_loaded(slot.name, version.label)
        return version

    @property
    def names(self) -> Mapping[str, VersionName]:
        """Return the versions of the episode so far, by policy."""
        chosen = self.chosen.items()
        named = {policy: item.version_name for policy, item in chosen}
        return {**self.begun, **named}

    def _begun_or_new(self, slot: PolicySlot) -> PolicyVersion:
        begun = self.begun.get(slot.name)
        if begun is None:
            return slot.choose(self.episode, wanted=self.wanted.get(slot.name, ""))
        version = slot.find(begun)
        if version is None:
            raise _not_loaded(slot.name, begun.label)
        return version


def _not_loaded(policy: str, label: str) -> SessionConflictError:
    return SessionConflictError(
        f"this episode began with version {label} of the policy {policy}, which is not loaded any "
        "more, or not with its schema.yaml; begin another one by a reset"
    )


def agent_seed(seed: int, agent: str) -> int:
    """Return the seed of an agent's draw: its own, whichever others are in the team.

    It is the first 63 bits of the SHA-256 of `seed/agent`, such as `7/hunter_1`, so that two agents
    with the same observation don't draw the same action.

    Args:
        seed: the seed of the team's step.
        agent: the agent's id.
    """
    digest = sha256(f"{seed}/{agent}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def naming_agent(error: PolicyServerError, agent: str) -> PolicyServerError:
    """Return an error about one agent that names it, and has the other as its cause for the log.

    Args:
        error: the error, as for an observation alone.
        agent: the agent's id.
    """
    named: PolicyServerError
    if isinstance(error, ObservationError):
        named = ObservationError(
            [{**item, "loc": _place_of(agent, item["loc"])} for item in error.problems]
        )
    else:
        named = type(error)(f"agent {agent!r}: {error.message}")
    named.__cause__ = error
    return named


def _place_of(agent: str, loc: list[str | int]) -> list[str | int]:
    """Return the place of a mistake in a team's body.

    What a request about one observation has in a header stands in the agent's own part.
    """
    if loc[0] == "header":
        loc = ["body", *(str(name).removeprefix("x-").replace("-", "_") for name in loc[1:])]
    return [loc[0], agent, *loc[1:]]
