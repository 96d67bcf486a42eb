"""The agents of an example that a server has policies for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo.examples import find_example, find_team_example
from demo.server_client import ServerClient
from policy_server.commands.games import ALONE
from policy_server.schema import AgentPolicies

__all__ = ["Played", "ServedTeam", "find_played", "served_team"]


@dataclass(frozen=True)
class ServedTeam:
    """The policies of a server's team.

    Attributes:
        client: asks them for all agents at once.
        schemas: the server's answers at /schema, by policy.
        agents: the policies of the agents.
    """

    client: ServerClient
    schemas: Mapping[str, Mapping[str, Any]]
    agents: AgentPolicies


@dataclass(frozen=True)
class Played:
    """An example that a server's policies can play.

    Attributes:
        name: the example's.
        client: asks the policy of the one agent, or those of the team.
        schemas: the server's answers at /schema, by policy; that of the one agent has an empty
            name.
        agents: the policies of a team's agents; None where there is one agent.
    """

    name: str
    client: ServerClient
    schemas: Mapping[str, Mapping[str, Any]]
    agents: AgentPolicies | None = None

    @property
    def memory_width(self) -> int:
        """Return how many numbers the memories of one agent of each policy have together."""
        return sum(schema["policy"].get("memory_width", 0) for schema in self.schemas.values())

    def policy_of(self, agent: str) -> str:
        """Return the name of an agent's policy; empty for the one agent.

        Args:
            agent: its name.
        """
        return ALONE if self.agents is None else self.agents.policy_of(agent) or ALONE

    def components_of(self, agent: str) -> Sequence[Mapping[str, Any]]:
        """Return the action components of an agent's policy.

        Args:
            agent: its name.
        """
        components: Sequence[Mapping[str, Any]] = self._policy(agent)["components"]
        return components

    def takes_reward(self, agent: str) -> bool:
        """Return whether an agent's policy takes the reward of the step before.

        Args:
            agent: its name.
        """
        return "reward" in self._policy(agent).get("previous_step", ())

    def _policy(self, agent: str) -> Mapping[str, Any]:
        policy: Mapping[str, Any] = self.schemas[self.policy_of(agent)]["policy"]
        return policy


def served_team(client: ServerClient, rules: Mapping[str, str] | None) -> ServedTeam | None:
    """Return the policies of a server's team; None where it serves none.

    Args:
        client: of the server.
        rules: `multi_agent` of the server.

    Raises:
        RefusalError: if the server can't be reached, or refuses.
    """
    if not rules:
        return None
    agents = AgentPolicies(rules)
    schemas = {policy: client.of(policy=policy, version="").schema() for policy in agents.policies}
    return ServedTeam(client.of_team(), schemas, agents)


def find_played(
    client: ServerClient, schema: Mapping[str, Any], team: ServedTeam | None
) -> Played | None:
    """Return the example that a server's policies can play: that of its team, or of one policy.

    Args:
        client: of the policy.
        schema: the server's answer at /schema.
        team: the policies of the server's team.
    """
    if team is not None:
        name = find_team_example(team.agents.rules, team.schemas)
        if name is not None:
            return Played(name, team.client, team.schemas, team.agents)
    name = find_example(schema)
    return None if name is None else Played(name, client, {ALONE: schema})
