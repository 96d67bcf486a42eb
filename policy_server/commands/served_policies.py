"""The policies of a running server as a command finds them, and whether they are an example's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from policy_server.commands.client import PolicyClient
from policy_server.commands.games import ALONE
from policy_server.errors import SchemaError, ServerAnswerError, UsageError
from policy_server.installation import command_for
from policy_server.schema import AgentPolicies, public_schema, read_schema_file

__all__ = ["ServedPolicies", "check_serves", "served_alone", "served_as_team", "team_body"]


@dataclass(frozen=True)
class ServedPolicies:
    """The policies that answer an environment's agents.

    Attributes:
        schemas: the server's answer at /schema, by policy; that of the one agent has an empty
            name.
        agents: the agents of each policy.
    """

    schemas: Mapping[str, Mapping[str, Any]]
    agents: Mapping[str, Sequence[str]]

    @property
    def has_memory(self) -> bool:
        """Return whether an episode needs a session."""
        return any(self._of(policy, "memory_width") for policy in self.schemas)

    @property
    def has_seeds(self) -> bool:
        """Return whether draws can be seeded: not where a policy draws inside its own graph."""
        return all(self._of(policy, "components") for policy in self.schemas)

    @property
    def takes_reward(self) -> frozenset[str]:
        """Return the agents whose policies take the reward of the step before."""
        return frozenset(
            agent
            for policy, agents in self.agents.items()
            if "reward" in (self._of(policy, "previous_step") or ())
            for agent in agents
        )

    def _of(self, policy: str, key: str) -> Any:  # noqa: ANN401 -- any JSON
        return self.schemas[policy].get("policy", {}).get(key)


def served_alone(client: PolicyClient) -> ServedPolicies:
    """Return the policy of the one agent.

    Args:
        client: of the server and the policy.

    Raises:
        ServerAnswerError: if the server can't be reached, or refuses.
    """
    return ServedPolicies({ALONE: client.schema()}, {ALONE: (ALONE,)})


def served_as_team(client: PolicyClient, agents: Sequence[str]) -> ServedPolicies:
    """Return the policies of several agents.

    Args:
        client: of the server.
        agents: their names.

    Raises:
        UsageError: if the client is of one policy.
        ServerAnswerError: if the server can't be reached or refuses, or has no policy for an agent.
    """
    if client.prefix:
        raise UsageError("--policy: the agents have the policies of multi_agent; leave it out")
    rules = client.get("/policies").get("multi_agent")
    if rules is None:
        raise ServerAnswerError(
            f"{client.url}: serves no team; expected the section multi_agent in its schema.yaml, "
            f"with policies for {', '.join(agents)}"
        )
    if not isinstance(rules, dict) or not all(isinstance(name, str) for name in rules.values()):
        raise ServerAnswerError(f"{client.url}/policies: answered with no multi_agent of a server")
    found = AgentPolicies(rules)
    members: dict[str, list[str]] = {}
    for agent in agents:
        policy = found.policy_of(agent)
        if policy is None:
            raise ServerAnswerError(
                f"{client.url}: has no policy for the agent {agent!r}; its multi_agent has "
                f"{', '.join(rules)}"
            )
        members.setdefault(policy, []).append(agent)
    return ServedPolicies({policy: client.schema_of(policy) for policy in members}, members)


def team_body(
    observations: Mapping[str, Any],
    rewards: Mapping[str, float],
    takes_reward: Collection[str],
) -> tuple[dict[str, Any], bool]:
    """Return the body that asks for a step of several agents, and whether all of it is flat.

    Args:
        observations: by agent, as a server takes them: named, or flat in a list.
        rewards: of the step before, by agent; empty in the first one.
        takes_reward: the agents whose policies take that reward.
    """
    body = {
        agent: {"obs": observation} if isinstance(observation, list) else observation
        for agent, observation in observations.items()
    }
    for agent in takes_reward:
        if agent in body and agent in rewards:
            body[agent] = {"observation": body[agent], "previous_reward": rewards[agent]}
    return body, all(isinstance(observation, list) for observation in observations.values())


def check_serves(folder: Path, url: str, served: ServedPolicies) -> None:
    """Refuse a server whose schema is not the example's: another policy would answer nonsense.

    Args:
        folder: the example's; without a readable schema.yaml nothing is compared.
        url: the server's address, for the message.
        served: the server's policies.

    Raises:
        ServerAnswerError: if the observations of a policy are others.
    """
    try:
        file = read_schema_file(folder / "schema.yaml")
    except SchemaError:
        return
    expected = {policy.name: _types(public_schema(policy.schema)) for policy in file}
    if ALONE in served.schemas:
        # Of several, the user named one.
        if len(expected) > 1:
            return
        expected = dict(zip([ALONE], expected.values(), strict=True))
    if any(_types(schema) != expected.get(name) for name, schema in served.schemas.items()):
        raise ServerAnswerError(
            f"{url}: serves another schema than {folder / 'schema.yaml'}; serve that with "
            f"`{command_for(f'copy_server_files {quote(str(folder))}')}`, and start the server "
            "again"
        )


def _types(schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, item["type"]) for name, item in schema.get("observations", {}).items()]
