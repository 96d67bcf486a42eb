"""versions.json: the deployments of a server's policies, for the next start and other processes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from policy_server.errors import DeploymentChangedError, DeploymentError
from policy_server.files.atomic import write_whole
from policy_server.files.locks import FileLock
from policy_server.files.regular import failure_of_system, read_json, unread
from policy_server.serving.deployment import DeployedVersion, Deployment
from policy_server.serving.deployment_store import Bases
from policy_server.serving.kept_deployment import kept_deployment

__all__ = ["DeploymentFile"]

logger = logging.getLogger(__name__)

_NAME = "versions.json"
_DAMAGED = "versions.json.damaged"
_LOCK = ".versions.lock"
_PRIVATE = 0o600


class DeploymentFile:
    """A `DeploymentStore` in a file of the server's folder, which its processes share.

    A deployment is kept with its basis, a digest of the schema.yaml and the policy's files that it
    was made over: where these have changed since, it is not used any more.
    """

    def __init__(self, home: Path, bases: Bases) -> None:
        """Own nothing: the file belongs to the folder.

        Args:
            home: the server's folder.
            bases: returns the digests of a policy's part of schema.yaml and its files.
        """
        self._path = home / _NAME
        self._damaged = home / _DAMAGED
        self._lock = home / _LOCK
        self._bases = bases
        self._told: set[str] = set()
        self._seen: tuple[tuple[int, int], dict[str, Any]] | None = None
        # Between reading and writing: what can't be read must not be written without it.
        self._is_changing = False

    def read(self, policy: str) -> Deployment | None:
        """Return a policy's deployment; see `DeploymentStore.read`.

        Args:
            policy: the policy's name.

        Raises:
            DeploymentError: if the disk fails: without the file, other versions would be served.
        """
        kept = self.read_with_basis(policy)
        return None if kept is None else kept[1]

    def read_with_basis(self, policy: str) -> tuple[str, Deployment] | None:
        """Return a policy's deployment, after the basis that it is kept with.

        Args:
            policy: the policy's name.

        Raises:
            DeploymentError: as `read`.
        """
        entry = self._entries().get(policy)
        if entry is None:
            return None
        try:
            basis = entry["basis"]
            if basis not in self._bases(policy):
                self._tell(policy, "schema.yaml or the policy's files have changed since")
                return None
            return basis, kept_deployment(entry["deployment"])
        except (KeyError, TypeError):
            self._tell(policy, "it is damaged")
        except ValueError as error:
            self._tell(policy, f"it is damaged: {error}")
        return None

    def named(self, policy: str) -> Sequence[DeployedVersion]:
        """Return a policy's versions, deployed over any files; see `DeploymentStore.named`."""
        if os.path.lexists(self._damaged):
            raise DeploymentError(
                f"{self._damaged}: may name uploaded versions, so that no upload is removed; "
                "remove that file once you need none of them"
            )
        try:
            entry = self._parsed().get(policy)
            kept = () if entry is None else kept_deployment(entry["deployment"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeploymentError(f"{self._path}: can't be read: {error}") from error
        return tuple(kept)

    def write(self, policy: str, deployment: Deployment) -> None:
        """Keep a deployment; see `DeploymentStore.write`."""
        with self._locked():
            known = self.read(policy)
            if known is not None and known.serial >= deployment.serial:
                raise DeploymentChangedError.of(policy)
            self._replace(policy, deployment, self._bases(policy)[-1])

    def copy(self, policy: str, deployment: Deployment, basis: str) -> None:
        """Keep a deployment that was decided elsewhere, whatever is kept here.

        Args:
            policy: the policy's name.
            deployment: its deployment.
            basis: the one that it is kept with elsewhere.

        Raises:
            DeploymentError: if the file can't be written.
        """
        with self._locked():
            if self.read_with_basis(policy) != (basis, deployment):
                self._replace(policy, deployment, basis)

    def fetch(self, policy: str, model: str, target: Path) -> bool:  # noqa: ARG002 -- the protocol's
        """Return False: the server's folder is all there is; see `DeploymentStore.fetch`."""
        return False

    def _replace(self, policy: str, deployment: Deployment, basis: str) -> None:
        self._keep_damaged(policy)
        entry = {"basis": basis, "deployment": asdict(deployment)}
        text = json.dumps({**self._entries(), policy: entry}, indent=1)
        self._make_private()
        write_whole(self._path, text, is_durable=True)

    def _keep_damaged(self, policy: str) -> None:
        """Put a file aside that can't be read, or not as to this policy: it may name uploads."""
        try:
            entry = self._parsed().get(policy)
            if entry is not None:
                kept_deployment(entry["deployment"])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):
            self._path.replace(self._damaged)
            logger.warning(
                "damaged_deployment_kept",
                extra={"path": str(self._damaged), "policy": policy},
            )

    def _make_private(self) -> None:
        """Give the file to the server's user alone: a presigned address in it is a credential."""
        try:
            self._path.chmod(_PRIVATE)
        except FileNotFoundError:
            # The file that replaces this one keeps its permissions.
            with os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT, _PRIVATE), "w") as file:
                file.write("{}")
        except PermissionError:
            # Another user's: the new file is this user's, and is made private with the next change.
            pass

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with FileLock(self._lock):
                self._is_changing = True
                yield
        except OSError as error:
            raise DeploymentError(
                f"{self._path}: can't be written: {error.strerror or error}; nothing has changed"
            ) from error
        finally:
            self._is_changing = False

    def _entries(self) -> dict[str, Any]:
        """Return the file's contents; none where it is not there, or is damaged."""
        try:
            return self._parsed()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            if self._is_changing and isinstance(error, OSError):
                raise
            if failure := failure_of_system(error):
                raise DeploymentError(unread(self._path, failure)) from error
            reason = error.strerror if isinstance(error, OSError) else error
            self._tell("", f"it can't be read: {reason}")
            return {}

    def _parsed(self) -> dict[str, Any]:
        """Return the file's contents, which are read anew when the file has changed."""
        try:
            known = self._path.stat()
        except FileNotFoundError as error:
            if not self._path.is_symlink():
                raise
            raise ValueError("it is a link that leads nowhere") from error
        mark = (known.st_mtime_ns, known.st_ino)
        if self._seen is not None and self._seen[0] == mark:
            return self._seen[1]
        entries = read_json(self._path)
        if not isinstance(entries, dict):
            raise ValueError("it holds no deployments")  # noqa: TRY004 -- as json's own errors
        self._seen = (mark, entries)
        return entries

    def _tell(self, policy: str, reason: str) -> None:
        """Log once why a kept deployment is not used."""
        if policy not in self._told:
            self._told.add(policy)
            logger.warning(
                "deployment_not_used",
                extra={"path": str(self._path), "policy": policy, "reason": reason},
            )
