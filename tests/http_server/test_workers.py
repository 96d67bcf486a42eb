"""The web processes that one parent started."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

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
    workers = [
        spawning.Process(target=stop_again_and_again, args=(theirs, together))
        for _, theirs in pipes
    ]
    for worker in workers:
        worker.start()
    said = [ours.recv() if ours.poll(120) else [] for ours, _ in pipes]
    for worker in workers:
        worker.join(60)

    assert [one + other for one, other in zip(*said, strict=True)] == [1] * ROUNDS
    assert list(tmp_path.iterdir()) == []
