"""The section `multi_agent`: the policy of each agent of a team, by its id or a pattern of ids."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from policy_server.errors import SchemaError
from policy_server.schema.yaml_document import show

__all__ = ["LONGEST_AGENT_ID", "AgentPolicies", "agent_policies"]

LONGEST_AGENT_ID = 128
"""The most characters of an agent's id."""

_ANY = "*"
# Each is held against those above it, and an id of an agent against all.
_MOST_PATTERNS = 1000


@dataclass(frozen=True)
class AgentPolicies:
    """The policies of agents.

    Attributes:
        rules: the name of a policy for each id or pattern, in the order of the file. In a pattern
            `*` stands for any characters, or none.
    """

    rules: Mapping[str, str]

    def policy_of(self, agent: str) -> str | None:
        """Return the name of an agent's policy; None where no rule is about it.

        A rule with the id itself comes first, then the first pattern of the file that matches.

        Example: with `{"hunter_*": "hunter", "hunter_0": "leader"}`, `hunter_0` has the policy
        `leader` and `hunter_1` the policy `hunter`.

        Args:
            agent: its id.
        """
        policy = self._exact.get(agent)
        if policy is not None:
            return policy
        return next((name for parts, name in self._patterns if _matches(parts, agent)), None)

    @property
    def policies(self) -> tuple[str, ...]:
        """Return the names of the policies that agents have, each once, in the rules' order."""
        return tuple(dict.fromkeys(self.rules.values()))

    @property
    def has_patterns(self) -> bool:
        """Return whether other ids than those of the rules are agents."""
        return bool(self._patterns)

    @functools.cached_property
    def _exact(self) -> Mapping[str, str]:
        return {agent: name for agent, name in self.rules.items() if _ANY not in agent}

    @functools.cached_property
    def _patterns(self) -> tuple[tuple[list[str], str], ...]:
        return tuple((key.split(_ANY), name) for key, name in self.rules.items() if _ANY in key)


def agent_policies(
    section: Mapping[object, str] | None, policies: Collection[str], source: str
) -> AgentPolicies | None:
    """Return the policies of agents, by the section `multi_agent`; None where there is none.

    Args:
        section: the policies' names by ids and patterns, as the file has them.
        policies: the names of the server's policies.
        source: the file's name, for messages.

    Raises:
        SchemaError: if an id is no text, a policy is unknown, or a pattern can never match.
    """
    if section is None:
        return None
    where = f"{source}: multi_agent"
    if not section:
        raise SchemaError(f"{where}: is empty; give each agent a policy, or leave the section out")
    rules: dict[str, str] = {}
    patterns = sum(_ANY in str(agent) for agent in section)
    if patterns > _MOST_PATTERNS:
        raise SchemaError(f"{where}: expected at most {_MOST_PATTERNS} patterns, got {patterns}")
    for agent, name in section.items():
        if not isinstance(agent, str) or not 0 < len(agent) <= LONGEST_AGENT_ID:
            raise SchemaError(
                f"{where}: the agent {show(agent)} can't be used; expected its id, or a pattern of "
                f"ids, of 1 to {LONGEST_AGENT_ID} characters"
            )
        if name not in policies:
            raise SchemaError(
                f"{where}.{agent}: has no policy {show(name)}; expected one of "
                f"{', '.join(policies)}"
            )
        _check_can_match(agent, rules, where)
        rules[agent] = name
    return AgentPolicies(rules)


def _check_can_match(pattern: str, above: Collection[str], where: str) -> None:
    """Refuse a pattern of which every id is matched by a pattern above it."""
    if _ANY not in pattern:
        return
    # What covers its `*` is a `*`: no rule names every id, so that several cover no more than one.
    for other in above:
        if _ANY in other and _matches(other.split(_ANY), pattern):
            raise SchemaError(
                f"{where}.{pattern}: can never match, since {other!r} above it matches each such "
                "agent; move it up, or remove it"
            )


def _matches(parts: list[str], text: str) -> bool:
    """Return whether a text is a pattern's parts, with any characters between them."""
    first, *middle, last = parts
    start, end = len(first), len(text) - len(last)
    if end < start or not (text.startswith(first) and text.endswith(last)):
        return False
    for part in middle:
        found = text.find(part, start, end)
        if found < 0:
            return False
        start = found + len(part)
    return True
