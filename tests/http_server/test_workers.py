"""The web processes that one parent started."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policy_server.http_server import workers
from policy_server.http_server.workers import Worker

ROUNDS = 200


def stop_again_and_again(results: Any, together: Barrier) -> None:  # noqa: ANN401 -- a pipe
    """Serve and stop with another worker, and tell each time whether this was the last one."""
    worker = Worker()
    said = []
    for _ in range(ROUNDS):
        worker.note_serving()
        together.wait(60)
        said.append(worker.stop_serving())
        together.wait(60)
    worker.leave()
    results.send(said)


def test_one_of_workers_that_stop_together_is_the_last(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    spawning = multiprocessing.get_context("spawn")
    together = spawning.Barrier(2)
    pipes = [spawning.Pipe() for _ in range(2)]
    processes = [
        spawning.Process(target=stop_again_and_again, args=(theirs, together))
        for _, theirs in pipes
    ]
    for process in processes:
        process.start()
    said = [ours.recv() if ours.poll(120) else [] for ours, _ in pipes]
    for process in processes:
        process.join(60)

    assert [one + other for one, other in zip(*said, strict=True)] == [1] * ROUNDS
    assert list(tmp_path.iterdir()) == []


def test_workers_know_the_digests_of_all_files_that_any_of_them_has_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    parent = SimpleNamespace(pid=os.getppid(), sentinel=0)
    monkeypatch.setattr(workers, "parent_process", lambda: parent)
    first, later = Worker(), Worker()

    in_first = first.share_digests({"door": "old"})
    begun = in_first("door")
    in_later = later.share_digests({"door": "new", "gate": "first"})
    joined = [in_first("door"), in_later("door"), in_first("gate")]
    later.share_digests({"door": "old"})
    restored = [in_first("door"), in_later("door")]
    first.leave()
    is_left = list(tmp_path.iterdir())
    after_all = in_first("door")
    anew = Worker()
    afterwards = anew.share_digests({"door": "newer"})("door")
    anew.leave()

    assert begun == ["old"]
    assert joined == [["old", "new"], ["old", "new"], ["first"]]
    assert restored == [["new", "old"]] * 2
    assert after_all == ["new", "old"]
    assert afterwards == ["newer"]
    assert is_left == list(tmp_path.iterdir()) == []


async def test_supervisor_that_is_ending_is_none_though_it_is_still_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    of_parent, by_parent = os.pipe()
    parent = SimpleNamespace(pid=os.getppid(), sentinel=of_parent)
    monkeypatch.setattr(workers, "parent_process", lambda: parent)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    worker = Worker()
    worker.end_with_supervisor()
    before = worker.has_supervisor()

    os.close(by_parent)
    await asyncio.wait_for(told.wait(), 30)

    assert (before, worker.has_supervisor()) == (True, False)
    worker.leave()
    os.close(of_parent)
