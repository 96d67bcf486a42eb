"""Counts: adding up, and their way to another process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from policy_server.metrics.counts import Counts


def counted(requests: float, depth: float) -> Counts:
    counts = Counts()
    counts.count("requests", ("/predict", "200", "walker"), requests)
    counts.observe("batch_size", ("walker",), 3)
    counts.numbers["queue_depth"] = {("walker",): depth}
    return counts


def test_counters_gauges_and_histograms_of_two_processes_add_up() -> None:
    total = counted(2, 5)
    total.add(counted(3, 1))

    assert total.numbers["requests"] == {("/predict", "200", "walker"): 5}
    assert total.numbers["queue_depth"] == {("walker",): 6}
    assert total.histograms["batch_size"]["walker",].counts[:4] == [0, 0, 2, 0]
    assert total.histograms["batch_size"]["walker",].total == 6


@pytest.mark.parametrize("name", ["replica_restarts", "model_load_seconds"])
def test_largest_counts_where_every_process_sees_the_same(name: str) -> None:
    total = Counts(numbers={name: {("walker",): 2.0}})
    for value in (3.0, 1.0):
        total.add(Counts(numbers={name: {("walker",): value}}))

    assert total.numbers[name] == {("walker",): 3}


def test_many_values_at_once_fall_into_the_buckets_of_each() -> None:
    values = [1.0, 1.5, 2.0, 64.0, 65.0, 1024.0, 5000.0] * 100
    at_once, one_by_one = Counts(), Counts()

    at_once.observe("batch_size", ("walker",), *values)
    for value in values:
        one_by_one.observe("batch_size", ("walker",), value)

    assert at_once == one_by_one


def test_adding_leaves_the_other_counts_as_they_are() -> None:
    other, total = counted(1, 1), Counts()
    total.add(other)
    total.add(other)

    assert other == counted(1, 1)


def test_without_gauges_is_what_only_grows() -> None:
    kept = counted(2, 5).without_gauges()

    assert kept.numbers == {"requests": {("/predict", "200", "walker"): 2}}
    assert set(kept.histograms) == {"batch_size"}


def test_counts_come_back_from_json() -> None:
    counts = counted(2, 5)

    assert Counts.from_document(json.loads(json.dumps(counts.to_document()))) == counts


@pytest.mark.parametrize(
    "document",
    [
        pytest.param([], id="no object"),
        pytest.param({}, id="nothing"),
        pytest.param({"numbers": 3, "histograms": []}, id="no list"),
        pytest.param({"numbers": [["other", [], 1]], "histograms": []}, id="no metric of ours"),
        pytest.param({"numbers": [["requests", ["/"], 1]], "histograms": []}, id="few labels"),
        pytest.param(
            {"numbers": [["batch_size", ["walker"], 1]], "histograms": []}, id="no number"
        ),
        pytest.param(
            {"numbers": [], "histograms": [["batch_size", ["walker"], [1, 2], 3]]},
            id="other buckets",
        ),
        pytest.param(
            {"numbers": [["requests", ["/", "200", ""], "x"]], "histograms": []}, id="no figure"
        ),
    ],
)
def test_other_documents_are_refused(document: Any) -> None:  # noqa: ANN401 -- any JSON
    with pytest.raises(ValueError, match="expected the counts of a worker"):
        Counts.from_document(document)
