"""The records of a Ray cluster: an actor with texts that all servers of the cluster share.

Where the actor's machine dies, Ray restarts it empty; the servers that are left write their texts
again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from policy_server.backends.ray.connection import reason_of
from policy_server.backends.ray.pieces import (
    PieceKeeper,
    Pieces,
    call_actor,
    send_files,
    write_files,
)
from policy_server.backends.ray.ray_calls import RayCalls
from policy_server.errors import NotReadyError

__all__ = ["ClusterRecords", "RecordBook", "open_cluster_records"]

# A new number for methods that older servers don't know.
_ACTOR = "policy-server-records-1"
_NAMESPACE = "policy_server"
# Servers look once a second; one that waits for long can't end.
_READ_TIMEOUT_S = 10.0
# How long a look whether the actor is up may take: a server that starts looks again, and can end.
_LOOK_S = 0.5


class RecordBook(PieceKeeper):
    """The actor's contents: the texts, and the folders that belong to each."""

    def __init__(self) -> None:
        """Own the texts of all servers, and the files."""
        self._texts: dict[str, str] = {}
        self._folders: dict[str, dict[str, Pieces]] = {}

    def text(self, key: str) -> str | None:
        """Return a text; None where there is none."""
        return self._texts.get(key)

    def folders(self, key: str) -> list[str]:
        """Return the names of the folders that belong to a text."""
        return list(self._folders.get(key, ()))

    def folder(self, key: str, name: str) -> Pieces | None:
        """Return the references of a folder's files, by name; None where there is none."""
        return self._folders.get(key, {}).get(name)

    def replace(
        self,
        key: str,
        before: str | None,
        text: str,
        names: Sequence[str],
        sent: Mapping[str, Pieces],
    ) -> bool:
        """Replace a text if it is still the stated one; return whether it was replaced.

        Args:
            key: the text's.
            before: the text that is to be replaced; None for none.
            text: the new one.
            names: the folders that belong to it.
            sent: those among them that the old text does not have.
        """
        known = {**self._folders.get(key, {}), **sent}
        if self._texts.get(key) != before or not known.keys() >= set(names):
            return False
        self._texts[key] = text
        self._folders[key] = {name: known[name] for name in names}
        return True


async def open_cluster_records(ray_calls: RayCalls, *, timeout_s: float) -> ClusterRecords:
    """Return the records of the cluster that this process has joined, once their actor answers.

    Args:
        ray_calls: the calls of Ray that this process makes.
        timeout_s: the longest wait for the actor to be up, in seconds.

    Raises:
        NotReadyError: if it is not up in time, or has failed.
    """
    records = await asyncio.to_thread(ClusterRecords, ray_calls)
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(records.is_there):
        if time.monotonic() > deadline:
            raise NotReadyError(
                "ray: the cluster's records can't be had: their actor did not start within "
                f"{timeout_s:g} s; see whether the cluster has room for another process"
            )
    return records


class ClusterRecords:
    """A server process's side of the records; see `SharedRecords`."""

    def __init__(self, ray_calls: RayCalls) -> None:
        """Start the actor, unless the cluster has it; it outlives this process.

        Args:
            ray_calls: the calls of Ray that this process makes, which those of here count to.
        """
        self._ray_calls = ray_calls
        book: Any = ray.remote(RecordBook)
        with self._asking():
            self._actor = book.options(
                name=_ACTOR,
                namespace=_NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
            ).remote()
            self._first_answer = self._actor.text.remote("")

    def is_there(self) -> bool:
        """Return whether the actor has answered; waits for it, but not for long.

        Raises:
            NotReadyError: if it has failed.
        """
        with self._asking():
            answered, _ = ray.wait([self._first_answer], timeout=_LOOK_S)
            if answered:
                ray.get(self._first_answer)
        return bool(answered)

    def read(self, key: str) -> str | None:
        """See `SharedRecords.read`."""
        with self._asking():
            text: str | None = call_actor(self._actor.text, key, timeout_s=_READ_TIMEOUT_S)
        return text

    def write(
        self, key: str, text: str, *, before: str | None, folders: Mapping[str, Path]
    ) -> bool:
        """See `SharedRecords.write`."""
        with self._asking():
            known = call_actor(self._actor.folders, key)
            # The references are this process's until `replace` gives them to the actor: files of a
            # server that dies meanwhile, or comes too late, are gone.
            sent = {
                name: send_files(self._actor, _files_in(folder))
                for name, folder in folders.items()
                if name not in known and folder.is_dir()
            }
            names = [name for name in folders if name in known or name in sent]
            is_replaced: bool = call_actor(self._actor.replace, key, before, text, names, sent)
        return is_replaced

    def fetch(self, key: str, name: str, target: Path) -> bool:
        """See `SharedRecords.fetch`."""
        with self._asking():
            files: Pieces | None = call_actor(self._actor.folder, key, name)
            if files is None:
                return False
            write_files(files, target)
        return True

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Count the block among the calls of Ray, and translate the actor's errors."""
        try:
            with self._ray_calls.under_way():
                yield
        except (RayError, ValueError) as error:
            raise NotReadyError(
                f"ray: the cluster's records can't be had: {reason_of(error)}"
            ) from error


def _files_in(folder: Path) -> dict[str, Path | bytes]:
    return {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }
