"""The files by which workers share their counts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from policy_server.files.atomic import UNFINISHED
from policy_server.metrics.counts import Counts, Labels
from policy_server.metrics.sharing import SharedCounts
from tests.support.processes import Child, child

PROGRAM = """
import sys
from pathlib import Path
from policy_server.metrics.counts import Counts, Labels
from policy_server.metrics.sharing import SharedCounts
counts = Counts()
counts.count("requests", ("/predict", "200", "walker"), 3)
counts.observe("batch_size", ("walker",), 4)
counts.numbers["queue_depth"] = {("walker",): 7.0}
shared = SharedCounts(Path(sys.argv[1]))
shared.write(counts)
print("written", flush=True)
if sys.stdin.readline() == "leave\\n":
    shared.leave(counts)
"""
REQUESTS: dict[Labels, float] = {("/predict", "200", "walker"): 3.0}


@contextmanager
def other_worker(folder: Path) -> Iterator[Child]:
    """Run a process that has written its counts, until it is told to leave or killed."""
    with child(sys.executable, "-c", PROGRAM, folder) as started:
        assert started.read_line() == "written"
        yield started
        started.process.kill()


def leave(process: Child) -> None:
    status, _, err = process.finish("leave\n")
    assert (status, err) == (0, "")


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_counts_of_another_worker_are_read_and_ones_own_are_not(tmp_path: Path) -> None:
    ours = SharedCounts(tmp_path)
    own = Counts(numbers={"requests": {("/", "200", ""): 1.0}})
    ours.write(own)

    with other_worker(tmp_path):
        read = ours.read_others()

    assert read.numbers == {"requests": REQUESTS, "queue_depth": {("walker",): 7.0}}


def test_killed_worker_leaves_its_counters_once_and_no_gauge(tmp_path: Path) -> None:
    ours = SharedCounts(tmp_path)
    with other_worker(tmp_path):
        pass

    for _ in range(3):
        read = ours.read_others()

        assert read.numbers == {"requests": REQUESTS}
        assert read.histograms["batch_size"]["walker",].total == 4
    assert file_names(tmp_path) == ["departed.json"]


def test_counters_of_several_that_were_killed_add_up(tmp_path: Path) -> None:
    ours = SharedCounts(tmp_path)
    for _ in range(3):
        with other_worker(tmp_path):
            pass
        ours.read_others()

    assert ours.read_others().numbers["requests"] == {("/predict", "200", "walker"): 9}


def lost_replicas(number: float) -> Counts:
    return Counts(numbers={"replica_restarts": {("walker",): number}})


def test_common_counter_goes_on_where_the_workers_before_left_it(tmp_path: Path) -> None:
    departed = {"counts": lost_replicas(5).to_document(), "names": []}
    (tmp_path / "departed.json").write_text(json.dumps(departed))
    ours = SharedCounts(tmp_path)

    shown = []
    for lost in (0.0, 1.0, 2.0):
        counts = lost_replicas(lost)
        ours.write(counts)
        counts.add(ours.read_others())
        shown.append(counts.numbers["replica_restarts"]["walker",])

    assert shown == [5, 6, 7]


def test_loss_that_a_worker_has_seen_itself_is_not_counted_twice(tmp_path: Path) -> None:
    departed = {"counts": lost_replicas(1).to_document(), "names": []}
    (tmp_path / "departed.json").write_text(json.dumps(departed))
    counts = lost_replicas(1)

    SharedCounts(tmp_path).write(counts)

    assert counts == lost_replicas(1)


def test_interrupted_keeping_counts_nobody_twice(tmp_path: Path) -> None:
    ours = SharedCounts(tmp_path)
    with other_worker(tmp_path):
        (file,) = tmp_path.iterdir()
        content = file.read_text()
    ours.read_others()
    # As if the process had been killed before it removed the file whose counts it had kept.
    departed = tmp_path / "departed.json"
    document = json.loads(departed.read_text())
    departed.write_text(json.dumps({**document, "names": [file.name]}))
    file.write_text(content)

    assert ours.read_others().numbers == {"requests": REQUESTS}
    assert file_names(tmp_path) == ["departed.json"]


def test_process_id_that_came_again_is_no_living_worker(tmp_path: Path) -> None:
    ours = SharedCounts(tmp_path)
    ours.write(Counts(numbers={"queue_depth": {("walker",): 7.0}}))
    (own,) = tmp_path.iterdir()
    own.rename(tmp_path / f"metrics-{os.getpid()}-1.json")

    assert ours.read_others().numbers == {}


def test_worker_that_leaves_keeps_its_counters_for_the_others(tmp_path: Path) -> None:
    ours = SharedCounts(tmp_path)
    ours.write(Counts())
    with other_worker(tmp_path) as process:
        leave(process)

    assert ours.read_others().numbers == {"requests": REQUESTS}


def test_last_worker_leaves_no_file(tmp_path: Path) -> None:
    ours = SharedCounts(tmp_path)
    ours.write(Counts())
    with other_worker(tmp_path):
        pass
    ours.read_others()
    ours.leave(Counts())

    assert file_names(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        *('{"numbers": [', "[]", "\0", "", "[" * 100_000),
        f'{{"numbers": [["x", [], {10**400}]], "histograms": []}}',
        '{"numbers": [], "histograms": [["x", [], [Infinity], 1]]}',
    ],
    ids=["cut off", "list", "zero", "empty", "deep", "huge", "infinite"],
)
def test_broken_file_is_left_out_with_one_line(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = SharedCounts(tmp_path)
    with other_worker(tmp_path), other_worker(tmp_path):
        broken = next(tmp_path.iterdir())
        broken.write_text(content)
        read = [ours.read_others() for _ in range(3)]

    assert [counts.numbers["requests"] for counts in read] == [REQUESTS] * 3
    assert [vars(record)["file"] for record in caplog.records] == [broken.name]


def test_broken_file_of_the_departed_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = SharedCounts(tmp_path)
    (tmp_path / "departed.json").write_text("{}")
    with other_worker(tmp_path):
        pass

    assert ours.read_others().numbers == {"requests": REQUESTS}
    assert ours.read_others().numbers == {"requests": REQUESTS}
    assert [vars(record)["file"] for record in caplog.records] == ["departed.json"]


def test_link_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "shared", tmp_path / "elsewhere"
    folder.mkdir()
    ours = SharedCounts(folder)
    ours.write(Counts(numbers={"requests": REQUESTS}))
    (own,) = folder.iterdir()
    elsewhere.write_text(own.read_text())
    own.unlink()
    own.symlink_to(elsewhere)
    (folder / f"metrics-{os.getppid()}-1.json").symlink_to(elsewhere)

    read = ours.read_others()
    ours.write(Counts())

    assert read.numbers == {}
    assert not own.is_symlink()
    assert json.loads(elsewhere.read_text())["numbers"]


def test_last_worker_removes_what_a_killed_one_was_writing(tmp_path: Path) -> None:
    ours = SharedCounts(tmp_path)
    ours.write(Counts())
    (tmp_path / UNFINISHED.replace("*", "1")).touch()
    ours.leave(Counts())

    assert file_names(tmp_path) == []
