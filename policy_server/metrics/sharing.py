"""The files by which uvicorn's workers share their counts.

Each worker writes its counts to a file of its own, and whichever holds the port adds the files up.
A worker's counts outlive it: Prometheus takes a counter that goes down for a restart. So
its counters are kept in the file of the departed, once; its gauges go with it, since the queue and
the web sockets of a process that has ended are gone. Of counters that all workers have in common
the largest is shown: there a new worker goes on from the count of those before it, or the figure of
the departed would hide its first ones.
"""

from __future__ import annotations

import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from policy_server.files.atomic import UNFINISHED, write_whole
from policy_server.files.locks import FileLock
from policy_server.files.regular import parse_json
from policy_server.files.shared_folders import beginning_of
from policy_server.metrics.counts import ALIKE_COUNTERS, Counts, Labels

__all__ = ["SharedCounts"]

logger = logging.getLogger(__name__)

_WORKERS = "metrics-*.json"
_WORKER = re.compile(r"metrics-(\d+)-(\d+)")
_DEPARTED = "departed.json"


class SharedCounts:
    """This worker's file in the folder that all workers of one uvicorn share.

    Example:
        The folder holds `metrics-4712-90211.json`, which process 4712 writes, the file of worker
        4713, and `departed.json` with the counters of worker 4710, which was killed.
    """

    def __init__(self, folder: Path) -> None:
        """Own one file of the folder, from the first `write` to `leave`.

        Args:
            folder: a folder that only this user's processes can look into.
        """
        self._folder = folder
        self._own = folder / f"metrics-{os.getpid()}-{beginning_of(os.getpid())}.json"
        self._reported: set[str] = set()
        self._before: dict[tuple[str, Labels], float] | None = None

    def write(self, counts: Counts) -> None:
        """Replace this worker's file.

        Args:
            counts: all that this worker has counted; what came before it is added to the counters
                that all workers have in common.

        Raises:
            OSError: if it can't be written.
        """
        with self._lock():
            self._go_on(counts)
            write_whole(self._own, json.dumps(counts.to_document()))

    def read_others(self) -> Counts:
        """Return the counts of the other workers, with the counters of those that have ended.

        A file that can't be used is left out, and that is logged once.

        Raises:
            OSError: if the folder can't be used.
        """
        with self._lock():
            departed = self._read_departed()
            total = Counts()
            for path in sorted(self._folder.glob(_WORKERS)):
                if path == self._own or path.name in departed.names:
                    continue
                counts = self._read_worker(path)
                if counts is None:
                    continue
                if _is_alive(path):
                    total.add(counts)
                else:
                    departed.add(path.name, counts)
            total.add(departed.counts)
            self._keep(departed)
        return total

    def leave(self, counts: Counts) -> None:
        """Save this worker's counters for the others; remove all files if it is the last.

        Args:
            counts: all that this worker has counted; see `write`.

        Raises:
            OSError: if the folder can't be used.
        """
        with self._lock():
            self._go_on(counts)
            others = [path for path in self._folder.glob(_WORKERS) if path != self._own]
            if any(_is_alive(path) for path in others):
                departed = self._read_departed()
                departed.add(self._own.name, counts)
                self._keep(departed)
            else:
                unfinished = self._folder.glob(UNFINISHED)
                for path in (*others, *unfinished, self._own, self._folder / _DEPARTED):
                    path.unlink(missing_ok=True)

    def _go_on(self, counts: Counts) -> None:
        """Add to the common counters what the others had counted before this worker's first."""
        if self._before is None:
            before = self._read_departed().counts
            for path in self._folder.glob(_WORKERS):
                if path != self._own and (other := self._read_worker(path)) is not None:
                    before.add(other)
            # A loss that this worker has seen already is one of theirs.
            self._before = {
                (name, labels): max(value - counts.numbers.get(name, {}).get(labels, 0.0), 0.0)
                for name in ALIKE_COUNTERS
                for labels, value in before.numbers.get(name, {}).items()
            }
        for name in ALIKE_COUNTERS:
            series = counts.numbers.get(name, {})
            for labels in series:
                series[labels] += self._before.get((name, labels), 0.0)

    def _keep(self, departed: _Departed) -> None:
        """Write the file of the departed workers, then remove their own files.

        The file lists the names of the files whose counters it holds, until those are gone: an
        interruption in between counts no worker twice.
        """
        files = {path.name for path in self._folder.glob(_WORKERS)}
        if departed.is_new:
            write_whole(self._folder / _DEPARTED, departed.to_json(files))
        for name in departed.names & files:
            (self._folder / name).unlink(missing_ok=True)

    def _read_departed(self) -> _Departed:
        try:
            return _Departed.from_document(_read_json(self._folder / _DEPARTED))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self._report(_DEPARTED, error)
        return _Departed(Counts(), set())

    def _read_worker(self, path: Path) -> Counts | None:
        try:
            return Counts.from_document(_read_json(path))
        except FileNotFoundError:
            # Its worker has left in this moment.
            return None
        except (OSError, ValueError) as error:
            self._report(path.name, error)
        if not _is_alive(path):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        return None

    def _report(self, name: str, error: Exception) -> None:
        if name not in self._reported:
            self._reported.add(name)
            logger.warning("metrics_file_left_out", extra={"file": name, "reason": str(error)})

    def _lock(self) -> FileLock:
        return FileLock(self._folder, is_folder=True)


class _Departed:
    """The counters of workers that have ended, and the names of the files that they are from."""

    def __init__(self, counts: Counts, names: set[str]) -> None:
        self.counts = counts
        self.names = names
        self.is_new = False

    def add(self, name: str, counts: Counts) -> None:
        self.counts.add(counts.without_gauges())
        self.names.add(name)
        self.is_new = True

    def to_json(self, files: set[str]) -> str:
        return json.dumps(
            {"counts": self.counts.to_document(), "names": sorted(self.names & files)}
        )

    @classmethod
    def from_document(cls, document: Any) -> _Departed:  # noqa: ANN401 -- any JSON
        try:
            names = set(map(str, document["names"]))
            return cls(Counts.from_document(document["counts"]), names)
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected counts and names, got {str(document)[:80]!r}") from error


def _is_alive(path: Path) -> bool:
    """Return whether the process that a worker's file is named after is still there."""
    named = _WORKER.fullmatch(path.stem)
    return named is not None and beginning_of(int(named[1])) == named[2]


def _read_json(path: Path) -> Any:  # noqa: ANN401 -- any JSON
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as file:
        return parse_json(file.read())
