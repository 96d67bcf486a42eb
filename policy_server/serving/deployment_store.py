"""Where deployments are kept: for the next start, and for the other processes of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from policy_server.serving.deployment import DeployedVersion, Deployment

__all__ = ["Bases", "DeploymentStore", "one_basis"]

# Returns the digests of a policy's part of schema.yaml and its files, by the policy's name: one for
# each state of them that a web process of this server began with, the latest last. Deployments made
# over any of these are served. A change is kept with the latest, which the next start finds.
Bases = Callable[[str], Sequence[str]]


def one_basis(digests: Mapping[str, str]) -> Bases:
    """Return the bases of a server whose web processes began with the same files.

    Args:
        digests: those of each policy's part of schema.yaml and its files, by its name.
    """
    return lambda policy: (digests[policy],)


class DeploymentStore(Protocol):
    """Keeps deployments for the next start, and for the other processes of the server."""

    def read(self, policy: str) -> Deployment | None:
        """Return a policy's deployment; None where none was written for today's files.

        Args:
            policy: the policy's name.

        Raises:
            DeploymentError: if that can't be told, so that another one must not be taken for it.
        """

    def named(self, policy: str) -> Sequence[DeployedVersion]:
        """Return the versions of a policy whose files are kept, be it for other files than today's.

        Args:
            policy: the policy's name.

        Raises:
            DeploymentError: if that can't be told, so that no files may go.
        """

    def write(self, policy: str, deployment: Deployment) -> None:
        """Keep a deployment, the one that follows the one that is there.

        Args:
            policy: the policy's name.
            deployment: the new one; its `serial` is one more than that of the kept one.

        Raises:
            DeploymentChangedError: if another process has changed the deployment meanwhile.
            DeploymentError: if it can't be kept.
        """

    def fetch(self, policy: str, model: str, target: Path) -> bool:
        """Bring the files of an uploaded version that this server's folder lacks.

        Args:
            policy: the policy's name.
            model: the version's, as `DeployedVersion.model` has it.
            target: an empty folder for the files.

        Returns:
            Whether the store has them.

        Raises:
            OSError: if they can't be written.
        """
