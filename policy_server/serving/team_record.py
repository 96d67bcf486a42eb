"""The part of a session's record about a team: several agents, each with a memory of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from policy_server.policy import Float32Array

__all__ = ["TEAM", "AgentRecord", "TeamRecord", "VersionName"]

TEAM = ""
"""In place of a policy's name, in the sessions of a team: its agents have several policies."""


class VersionName(NamedTuple):
    """The version of a policy that answers an episode.

    Attributes:
        label: the version's own name.
        digest: the start of the digest of its files.
        schema: the digest of its schema.yaml; empty for an episode of an older release, which
            kept none.
    """

    label: str
    digest: str
    schema: str = ""

    def is_of(self, other: VersionName) -> bool:
        """Return whether files and schema are those of a loaded version.

        Args:
            other: names the loaded version.
        """
        return self.digest == other.digest and self.schema in ("", other.schema)


@dataclass(frozen=True, eq=False)
class AgentRecord:
    """The memory of one agent of a team.

    Attributes:
        policy: the name of its policy.
        state: float32[memory_width] of that policy, the memory after the agent's last step.
        steps: how many questions of the agent have been answered since its memory began.
        has_action: whether the memory has the last step's action, where the policy takes it.
    """

    policy: str
    state: Float32Array
    steps: int = 0
    has_action: bool = True


@dataclass(frozen=True, eq=False)
class TeamRecord:
    """The versions and the memories of a team, beside what every session has.

    Attributes:
        versions: the version that answers the episode, by the policy's name.
        agents: the agents that have a memory, by their ids.
    """

    versions: Mapping[str, VersionName]
    agents: Mapping[str, AgentRecord]
