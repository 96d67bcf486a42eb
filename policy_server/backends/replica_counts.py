"""How many replicas a policy has, and the CPUs of each."""

from __future__ import annotations

from dataclasses import dataclass

from policy_server.schema import PolicySection
from policy_server.settings import Settings

__all__ = ["ReplicaCounts"]


@dataclass(frozen=True)
class ReplicaCounts:
    """The replicas of a policy on Ray Serve.

    Attributes:
        fewest: how many there are without load.
        most: how many there are under load; as many as `fewest` are a fixed number.
        cpus: the CPUs that a Ray cluster sets aside for each.
    """

    fewest: int
    most: int
    cpus: float

    @classmethod
    def of(cls, settings: Settings, section: PolicySection | None = None) -> ReplicaCounts:
        """Return the counts of a policy.

        Args:
            settings: those of all policies.
            section: what schema.yaml says of the policy, which wins; None for nothing.
        """
        fewest, most, cpus = settings.num_replicas, settings.max_replicas, settings.replica_cpus
        if section is not None:
            fewest = section.num_replicas or fewest
            most = most if section.max_replicas is None else section.max_replicas
            cpus = cpus if section.replica_cpus is None else section.replica_cpus
        return cls(fewest, max(most, fewest), cpus)

    @property
    def is_scaled(self) -> bool:
        """Return whether Ray Serve adds and removes replicas, by the calls that it sees."""
        return self.most > self.fewest
