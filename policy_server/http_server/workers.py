"""One of several web processes that one parent started, as `uvicorn --workers N` does."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing import parent_process
from pathlib import Path

from policy_server.errors import SettingsError
from policy_server.files.atomic import write_whole
from policy_server.files.locks import FileLock
from policy_server.files.shared_folders import share_folder

__all__ = ["Worker"]

logger = logging.getLogger(__name__)

_PURPOSE = "metrics"
_LAST_WORD = "failed"
_SERVING = "serving-"
_DIGESTS = "digests.json"
_OTHERS_TIMEOUT_S = 60.0
_POLL_S = 0.05
# An argument of each worker; multiprocessing's other child, which tracks resources, has none.
_WORKERS_ARGUMENT = "--multiprocessing-fork"
# Not one of those that uvicorn's supervisor catches.
_FATAL = signal.SIGALRM


class Worker:
    """This web process, one of several that `uvicorn --workers N` started.

    Attributes:
        supervisor: the id of the process that started it.
        folder: shared by all workers of one uvicorn; the last one that leaves removes it.
        is_first: whether this worker was there before any other.
    """

    # Whether the supervisor was seen to end.
    _is_orphan = False

    def __init__(self) -> None:
        """Own a share in the workers' folder, from now until `leave`.

        Raises:
            SettingsError: if the folder can't be private.
        """
        parent = parent_process()
        assert parent is not None, "a worker has a supervisor"
        assert parent.pid is not None, "it was started"
        self.supervisor: int = parent.pid
        self._parents_end = parent.sentinel
        shared = share_folder(_PURPOSE, parent=self.supervisor)
        self.folder, self.is_first = shared.path, shared.is_new

    def share_digests(self, digests: Mapping[str, str]) -> Callable[[str], Sequence[str]]:
        """Note for all workers the digests of the files that this one has found.

        One that takes the place of a worker finds other files where somebody has replaced them.

        Args:
            digests: those of the files, each by a name.

        Returns:
            A function that returns the digests which the workers have found under a name by now,
            each once, the latest last. It reads a file.

        Raises:
            OSError: if the workers' folder can't be used.
        """
        # A worker that was the last one may have removed it.
        share_folder(_PURPOSE, parent=self.supervisor)
        path = self.folder / _DIGESTS
        with FileLock(self.folder, is_folder=True):
            shared = json.loads(path.read_text()) if path.exists() else {}
            for name, digest in digests.items():
                others = [known for known in shared.get(name, ()) if known != digest]
                shared[name] = [*others, digest]
            write_whole(path, json.dumps(shared))
        # The folder may be removed while this worker still runs.
        latest: dict[str, Sequence[str]] = shared

        def digests_of(name: str) -> Sequence[str]:
            with suppress(OSError):
                latest.update(json.loads(path.read_text()))
            return latest[name]

        return digests_of

    def note_serving(self) -> None:
        """Note that this worker serves: one that can't start does not end it any more."""
        (self.folder / f"{_SERVING}{os.getpid()}").touch()

    def end_with_supervisor(self) -> None:
        """Stop, as by SIGTERM, once the supervisor was killed; called from the event loop.

        Otherwise its workers would keep the port, and the next server could not start there.
        """
        loop = asyncio.get_running_loop()

        def end() -> None:
            # Its pipes are closed some time before the kernel gives its children to another parent.
            self._is_orphan = True
            loop.remove_reader(self._parents_end)
            logger.warning("supervisor_lost")
            os.kill(os.getpid(), signal.SIGTERM)

        loop.add_reader(self._parents_end, end)

    def has_supervisor(self) -> bool:
        """Return whether the process that started this one still runs."""
        return not self._is_orphan and os.getppid() == self.supervisor

    def stop_serving(self) -> bool:
        """Note that this worker serves no more; return whether it was the last one that did.

        Of workers that are stopped together, one is the last.
        """
        try:
            turn: AbstractContextManager[object] = FileLock(self.folder, is_folder=True)
        except OSError:
            # The folder is gone, with the notes of all.
            turn = nullcontext()
        with turn:
            (self.folder / f"{_SERVING}{os.getpid()}").unlink(missing_ok=True)
            return not self.has_serving_siblings()

    def has_serving_siblings(self) -> bool:
        """Return whether another worker serves."""
        pids = (int(path.name.removeprefix(_SERVING)) for path in self._serving())
        return any(pid != os.getpid() and _is_worker_of(self.supervisor, pid) for pid in pids)

    def leave(self) -> None:
        """Remove the workers' folder, if this worker is the last one in it."""
        if self.stop_serving():
            # Those that were killed could not remove theirs.
            for path in self._serving():
                path.unlink(missing_ok=True)
            (self.folder / _DIGESTS).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def end_all(self, *, uds: str | None = None) -> None:
        """End uvicorn's supervisor and its other workers, since each new one would fail too.

        The supervisor ends with status 0 whatever its workers ended with. So it is told to
        stop them, and when this is the last of them a signal that it doesn't catch ends it.

        Args:
            uds: the UNIX socket that the supervisor opened, which it would have removed.
        """
        if not self.has_supervisor():
            return
        os.kill(self.supervisor, signal.SIGTERM)
        try:
            # Another worker that has left may have removed the folder.
            share_folder(_PURPOSE, parent=self.supervisor)
            (self.folder / _LAST_WORD).touch(exist_ok=False)
        except (OSError, SettingsError):
            # Another worker fails too, and is the one that ends the supervisor.
            return
        deadline = time.monotonic() + _OTHERS_TIMEOUT_S
        while self._has_other_workers() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if uds is not None:
            Path(uds).unlink(missing_ok=True)
        (self.folder / _LAST_WORD).unlink(missing_ok=True)
        if self.has_supervisor():
            os.kill(self.supervisor, _FATAL)

    def _serving(self) -> Sequence[Path]:
        """Return the notes of the workers that serve; none once the folder is gone."""
        try:
            return [path for path in self.folder.iterdir() if path.name.startswith(_SERVING)]
        except OSError:
            return []

    def _has_other_workers(self) -> bool:
        return any(
            pid != os.getpid() and _is_worker_of(self.supervisor, pid)
            for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        )


def _is_worker_of(parent: int, pid: int) -> bool:
    try:
        # From the process's state on (proc(5), field 3): the parent is the second.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        is_child = int(fields[1]) == parent
        # It is empty where the process has ended.
        return is_child and _WORKERS_ARGUMENT in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
