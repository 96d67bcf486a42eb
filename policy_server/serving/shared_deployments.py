"""The deployments of servers that share a cluster: the cluster decides, folders keep copies."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from policy_server.backends.shared_records import SharedRecords
from policy_server.errors import DeploymentChangedError, DeploymentError
from policy_server.files.regular import parse_json
from policy_server.serving.deployment import DeployedVersion, Deployment
from policy_server.serving.deployment_file import DeploymentFile
from policy_server.serving.kept_deployment import kept_deployment

__all__ = ["SharedDeployments"]

logger = logging.getLogger(__name__)


class SharedDeployments:
    """A `DeploymentStore` in a cluster's records.

    Servers share a deployment if they have the same schema.yaml and files; others on the same
    cluster have one of their own. Uploaded versions' files are kept beside it. Where the cluster
    has lost it, the latest deployment that any of the servers has seen is written again.
    """

    def __init__(
        self,
        records: SharedRecords,
        file: DeploymentFile,
        basis: Mapping[str, str],
        uploads: Callable[[str, Deployment], Mapping[str, Path]],
    ) -> None:
        """Own nothing: the records belong to the cluster, and the file to the server's folder.

        Args:
            records: the cluster's.
            file: keeps copies, for a cluster that is started anew.
            basis: the digest of each policy's part of schema.yaml and its files, by its name.
            uploads: returns the folders of a deployment's uploaded versions by their `model`, and
                raises a DeploymentError for a version whose files other servers can't have.
        """
        self._records = records
        self._file = file
        self._basis = basis
        self._uploads = uploads
        self._seen: dict[str, Deployment] = {}
        # The damaged records that the log was told of, by their policies.
        self._damaged: dict[str, str] = {}

    def read(self, policy: str) -> Deployment | None:
        """Return a policy's deployment; see `DeploymentStore.read`."""
        text = self._records.read(self._key(policy))
        kept = self._parsed(policy, text)
        lost = self._lost(policy, kept)
        if lost is not None:
            if not self._put(policy, lost, before=text):
                return self._seen.get(policy)
            logger.warning("deployment_restored", extra={"policy": policy, "serial": lost.serial})
            kept = lost
        if kept is not None and kept != self._seen.get(policy):
            self._note(policy, kept)
        return kept

    def named(self, policy: str) -> Sequence[DeployedVersion]:
        """Return a policy's versions by this server's folder; see `DeploymentStore.named`."""
        # The folder's copy may not have been written.
        return (*self._file.named(policy), *self._seen.get(policy, ()))

    def write(self, policy: str, deployment: Deployment) -> None:
        """Keep a deployment; see `DeploymentStore.write`."""
        text = self._records.read(self._key(policy))
        known = self._parsed(policy, text)
        is_late = known is not None and known.serial >= deployment.serial
        if is_late or not self._put(policy, deployment, before=text):
            raise DeploymentChangedError.of(policy)
        self._note(policy, deployment)

    def fetch(self, policy: str, model: str, target: Path) -> bool:
        """Bring the files of an uploaded version; see `DeploymentStore.fetch`."""
        return self._records.fetch(self._key(policy), model, target)

    def _lost(self, policy: str, kept: Deployment | None) -> Deployment | None:
        """Return the deployment that the cluster had, and has lost; None where it has lost none."""
        if policy in self._seen:
            seen = self._seen[policy]
            return seen if kept is None or kept.serial < seen.serial else None
        # A folder's copy may be of another cluster, or older than this one's state.
        return self._file.read(policy) if kept is None else None

    def _put(self, policy: str, deployment: Deployment, *, before: str | None) -> bool:
        text = json.dumps(asdict(deployment))
        folders = self._uploads(policy, deployment)
        return self._records.write(self._key(policy), text, before=before, folders=folders)

    def _note(self, policy: str, deployment: Deployment) -> None:
        self._seen[policy] = deployment
        try:
            self._file.copy(policy, deployment)
        except DeploymentError as error:
            # The cluster has decided.
            logger.warning(
                "deployment_not_copied", extra={"policy": policy, "reason": error.message}
            )

    def _parsed(self, policy: str, text: str | None) -> Deployment | None:
        if text is None:
            return None
        try:
            return kept_deployment(parse_json(text))
        except ValueError as error:
            if self._damaged.get(policy) != text:
                self._damaged[policy] = text
                logger.warning(
                    "deployment_not_used",
                    extra={"policy": policy, "reason": f"the cluster's is damaged: {error}"},
                )
            return None

    def _key(self, policy: str) -> str:
        return f"deployment/{policy}/{self._basis.get(policy, '')}"
