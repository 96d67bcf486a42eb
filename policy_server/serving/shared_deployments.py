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
from policy_server.serving.deployment_store import Bases
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
        bases: Bases,
        uploads: Callable[[str, Deployment], Mapping[str, Path]],
    ) -> None:
        """Own nothing: the records belong to the cluster, and the file to the server's folder.

        Args:
            records: the cluster's.
            file: keeps copies, for a cluster that is started anew.
            bases: returns the digests of a policy's part of schema.yaml and its files.
            uploads: returns the folders of a deployment's uploaded versions by their `model`, and
                raises a DeploymentError for a version whose files other servers can't have.
        """
        self._records = records
        self._file = file
        self._bases = bases
        self._uploads = uploads
        # With their bases.
        self._seen: dict[str, tuple[str, Deployment]] = {}
        # The damaged records that the log was told of, by their keys.
        self._damaged: dict[str, str] = {}

    def read(self, policy: str) -> Deployment | None:
        """Return a policy's deployment; see `DeploymentStore.read`."""
        texts = self._texts(policy)
        kept = self._latest(policy, texts)
        lost = self._lost(policy, kept)
        if lost is not None:
            basis, deployment = lost
            if not self._put(policy, deployment, basis, before=texts.get(basis)):
                return self._seen[policy][1] if policy in self._seen else None
            logger.warning(
                "deployment_restored", extra={"policy": policy, "serial": deployment.serial}
            )
            kept = lost
        if kept is not None and kept != self._seen.get(policy):
            self._note(policy, kept)
        return None if kept is None else kept[1]

    def named(self, policy: str) -> Sequence[DeployedVersion]:
        """Return a policy's versions by this server's folder; see `DeploymentStore.named`."""
        # The folder's copy may not have been written.
        seen = self._seen[policy][1] if policy in self._seen else ()
        return (*self._file.named(policy), *seen)

    def write(self, policy: str, deployment: Deployment) -> None:
        """Keep a deployment; see `DeploymentStore.write`."""
        texts = self._texts(policy)
        known = self._latest(policy, texts)
        basis, text = [*texts.items()][-1]
        is_late = known is not None and known[1].serial >= deployment.serial
        if is_late or not self._put(policy, deployment, basis, before=text):
            raise DeploymentChangedError.of(policy)
        self._note(policy, (basis, deployment))

    def fetch(self, policy: str, model: str, target: Path) -> bool:
        """Bring the files of an uploaded version; see `DeploymentStore.fetch`."""
        return any(
            self._records.fetch(_key(policy, basis), model, target)
            for basis in reversed(self._bases(policy))
        )

    def _texts(self, policy: str) -> Mapping[str, str | None]:
        """Return the cluster's records of a policy by their bases, the latest basis last."""
        return {basis: self._records.read(_key(policy, basis)) for basis in self._bases(policy)}

    def _latest(
        self, policy: str, texts: Mapping[str, str | None]
    ) -> tuple[str, Deployment] | None:
        """Return the latest deployment of some records, with its basis."""
        latest: tuple[str, Deployment] | None = None
        for basis, text in texts.items():
            kept = self._parsed(policy, basis, text)
            if kept is not None and (latest is None or kept.serial >= latest[1].serial):
                latest = (basis, kept)
        return latest

    def _lost(
        self, policy: str, kept: tuple[str, Deployment] | None
    ) -> tuple[str, Deployment] | None:
        """Return the deployment that the cluster had, and has lost; None where it has lost none."""
        if policy in self._seen:
            seen = self._seen[policy]
            return seen if kept is None or kept[1].serial < seen[1].serial else None
        # A folder's copy may be of another cluster, or older than this one's state.
        return self._file.read_with_basis(policy) if kept is None else None

    def _put(self, policy: str, deployment: Deployment, basis: str, *, before: str | None) -> bool:
        text = json.dumps(asdict(deployment))
        folders = self._uploads(policy, deployment)
        return self._records.write(_key(policy, basis), text, before=before, folders=folders)

    def _note(self, policy: str, kept: tuple[str, Deployment]) -> None:
        self._seen[policy] = kept
        basis, deployment = kept
        try:
            self._file.copy(policy, deployment, basis)
        except DeploymentError as error:
            # The cluster has decided.
            logger.warning(
                "deployment_not_copied", extra={"policy": policy, "reason": error.message}
            )

    def _parsed(self, policy: str, basis: str, text: str | None) -> Deployment | None:
        if text is None:
            return None
        try:
            return kept_deployment(parse_json(text))
        except ValueError as error:
            key = _key(policy, basis)
            if self._damaged.get(key) != text:
                self._damaged[key] = text
                logger.warning(
                    "deployment_not_used",
                    extra={"policy": policy, "reason": f"the cluster's is damaged: {error}"},
                )
            return None


def _key(policy: str, basis: str) -> str:
    return f"deployment/{policy}/{basis}"
