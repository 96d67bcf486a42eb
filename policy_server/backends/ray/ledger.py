"""The ledger of a Ray's applications: their files, and the servers that use or deploy them.

Ray Serve knows its applications but not the servers that call them, so it can't tell when one may
be removed. Each server process enters the applications that it uses; the last one to leave a
retired application removes it.

An application is named after its policy and a digest of all that it is made of, such as
`policy-default-1f2e3d4c5b6a`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from policy_server.backends.ray_processes import Process
from policy_server.files.locks import FileLock

__all__ = ["FilesHere", "FolderLedger", "Ledger", "PolicyFiles", "Remove"]

Remove = Callable[[str], None]


class PolicyFiles(Protocol):
    """The way by which a replica gets a policy's files, on any machine; it is sent to replicas."""

    def opened(self) -> AbstractContextManager[Path]:
        """Give a folder with the files while the block runs.

        Raises:
            NotReadyError: if no machine has them at the moment.
        """


class Ledger(Protocol):
    """The record of one Ray's applications; its methods block."""

    def enter(self, application: str) -> None:
        """Note that this process uses an application, before it looks for the application."""

    def leave(self, application: str, *, is_retired: bool) -> None:
        """Note that this process uses an application no more.

        Args:
            application: its name.
            is_retired: remove it, unless another process uses it.
        """

    def deploying(self, application: str) -> AbstractContextManager[None]:
        """Let one process at a time deploy an application."""

    def store(self, application: str, files: Mapping[str, Path | bytes]) -> PolicyFiles:
        """Store an application's files for its replicas until it is removed.

        Args:
            application: its name.
            files: paths to files, or contents, by names such as `variables/variables.index`.
        """

    def renew(self, applications: list[str]) -> list[str]:
        """Note that this process still uses applications, and remove those that they replace.

        Args:
            applications: the names of those in use.

        Returns:
            Those whose files have been lost, and have to be stored anew.
        """


@dataclass(frozen=True)
class FilesHere:
    """Files in a folder of this machine."""

    folder: Path

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Give the folder itself."""
        yield self.folder


class FolderLedger:
    """The ledger of a Ray on this machine only: a folder that is removed with Ray's own."""

    def __init__(self, folder: Path, remove: Remove) -> None:
        """Own this process's entries in the folder.

        Args:
            folder: shared by the processes that use the Ray; made where it is missing.
            remove: removes an application from Ray Serve.
        """
        self._folder = folder
        self._remove = remove
        self._name = str(Process.of(os.getpid()))
        # What this process has stored, by application.
        self._stored: dict[str, list[Path]] = {}
        folder.mkdir(mode=0o700, exist_ok=True)

    def enter(self, application: str) -> None:
        """See `Ledger.enter`."""
        with FileLock(self._folder / "lock"):
            entries = self._entries(application)
            entries.mkdir(parents=True, exist_ok=True)
            (entries / self._name).touch()

    def leave(self, application: str, *, is_retired: bool) -> None:
        """See `Ledger.leave`."""
        entries = self._entries(application)
        with FileLock(self._folder / "lock"):
            (entries / self._name).unlink(missing_ok=True)
            self._stored.pop(application, None)
        if not is_retired:
            return
        # A deployment that nobody waits for any more goes on in its thread: removed before its
        # end, the application would come up behind that.
        with self.deploying(application), FileLock(self._folder / "lock"):
            if not any(Process.read(entry.name).is_running() for entry in entries.glob("*")):
                self._remove(application)
                shutil.rmtree(self._folder / application, ignore_errors=True)

    @contextmanager
    def deploying(self, application: str) -> Iterator[None]:
        """See `Ledger.deploying`."""
        with FileLock(self._folder / f"{application}.lock"):
            yield

    def store(self, application: str, files: Mapping[str, Path | bytes]) -> PolicyFiles:
        """See `Ledger.store`."""
        folder = self._folder / application / "files"
        self._stored[application] = [folder / name for name in files]
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)
        return FilesHere(folder)

    def renew(self, applications: list[str]) -> list[str]:
        """See `Ledger.renew`: entries here end with their processes, and files with Ray.

        What clears temporary folders leaves files that were touched lately.
        """
        for path in (*self._folder.rglob("*"), *self._folder.parent.iterdir()):
            with suppress(OSError):
                os.utime(path)
        return [name for name in applications if not all(map(Path.exists, self._files(name)))]

    def _files(self, application: str) -> list[Path]:
        """Return the files that this process has stored, else the folder that they lie in."""
        return self._stored.get(application) or [self._folder / application / "files"]

    def _entries(self, application: str) -> Path:
        return self._folder / application / "users"
