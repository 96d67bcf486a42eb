"""The folders of versions while several processes bring files and remove them."""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from policy_server.errors import DeploymentError
from policy_server.files.locks import FileLock, is_locked

__all__ = ["VersionFolders", "version_of"]

logger = logging.getLogger(__name__)

_INCOMING = ".incoming-"
_GONE = ".gone-"
# Their names, all that this module removes: `versions` may lie where others have folders too.
_NAMES = re.compile(
    rf"(schema\.model|[A-Za-z0-9][A-Za-z0-9_-]*)\.[0-9a-f]{{12}}"
    rf"|{re.escape(_INCOMING)}[A-Za-z0-9][A-Za-z0-9_-]*\.[a-z0-9_]{{8}}"
    rf"|{re.escape(_GONE)}[0-9a-f]{{12}}"
)


class VersionFolders:
    """The folders `versions/POLICY/VERSION.ID`, which the processes of a server share."""

    def __init__(self, root: Path) -> None:
        """Own nothing: the folders belong to the server's folder.

        Args:
            root: the folder with one for each policy.
        """
        self._root = root

    @contextmanager
    def incoming(self, policy: str, version: str) -> Iterator[Path]:
        """Give a folder for files on their way; no process removes the version's files meanwhile.

        Args:
            policy: the policy's name.
            version: the version's name.

        Yields:
            The folder, which is gone at the end of the block.
        """
        folder = self._root / policy
        prefix = f"{_INCOMING}{version}."
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                with self._turn(policy):
                    # What can't be removed changes nothing of a deployment; the next start clears
                    # it.
                    scratch = stack.enter_context(
                        tempfile.TemporaryDirectory(
                            prefix=prefix, dir=folder, ignore_cleanup_errors=True
                        )
                    )
                    stack.enter_context(FileLock(Path(scratch), is_folder=True))
                yield Path(scratch)
        except OSError as error:
            raise DeploymentError(
                f"{folder}: can't be written: {error.strerror or error}; nothing has changed"
            ) from error

    def remove(
        self,
        policy: str,
        kept: Callable[[], Collection[str]],
        is_unused: Callable[[Path, Collection[str]], bool],
    ) -> list[str]:
        """Remove folders that nobody needs; none where that can't be told.

        Links, files and folders with names that no server gives are somebody else's, and stay.

        Args:
            policy: the policy's name.
            kept: returns the names of those that stay; may raise a DeploymentError.
            is_unused: returns whether another one may go; its second argument has the names of the
                versions that are on their way.

        Returns:
            The names of the versions' own folders that were removed.
        """
        folder = self._root / policy
        gone: dict[str, Path] = {}
        # What can't be removed now goes at the next start.
        with suppress(OSError), self._turn(policy):
            found = [path for path in folder.iterdir() if _is_own(path)]
            # In this order, since other processes go on: what is deployed meanwhile is on its way
            # first, and is in the deployment when it has arrived.
            coming = {version_of(path) for path in found if is_locked(path)}
            try:
                known = kept()
            except DeploymentError as error:
                logger.warning("versions_not_cleared", extra={"reason": error.message})
                return []
            for path in found:
                if path.name not in known and is_unused(path, coming):
                    # Another process may bring the same files as soon as it has its turn.
                    aside = folder / f"{_GONE}{secrets.token_hex(6)}"
                    gone[path.name] = path.rename(aside)
        for path in gone.values():
            shutil.rmtree(path, ignore_errors=True)
        return sorted(name for name in gone if not name.startswith((_INCOMING, _GONE)))

    def _turn(self, policy: str) -> FileLock:
        """Return the lock under which files are announced, or removed; it is held for a moment."""
        return FileLock(self._root / f".{policy}.lock")


def _is_own(path: Path) -> bool:
    is_folder = path.is_dir() and not path.is_symlink()
    return is_folder and _NAMES.fullmatch(path.name) is not None


def version_of(folder: Path) -> str:
    """Return the name of the version that a folder belongs to.

    Args:
        folder: the version's own, or that of its files on their way.
    """
    return folder.name.removeprefix(_INCOMING).partition(".")[0]
