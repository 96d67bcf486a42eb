"""Recording: what is counted, and under which labels."""

from __future__ import annotations

import threading

import pytest

from policy_server.metrics import Metrics
from tests.support.pages import rendered
from tests.support.servers import in_thread


def test_requests_are_counted_by_policy_route_and_status() -> None:
    metrics = Metrics()
    for status in (200, 200, 422):
        metrics.observe_request("walker", "/predict", status, 0.01)
    metrics.observe_request("", "/clients", 200, 9.0)

    page = rendered(metrics)

    assert page["requests_total policy=walker route=/predict status=200"] == 2
    assert page["requests_total policy=walker route=/predict status=422"] == 1
    assert page["requests_total policy= route=/clients status=200"] == 1


def test_seconds_of_requests_stand_apart_by_route() -> None:
    metrics = Metrics()
    for seconds in (0.00003, 0.0004, 0.002):
        metrics.observe_request("walker", "/predict", 200, seconds)
    metrics.observe_request("walker", "/predict/batch", 200, 8.0)
    metrics.observe_request("", "/clients", 200, 9.9)

    page = rendered(metrics)

    predict = "request_seconds_{} policy=walker route=/predict"
    assert page[predict.format("count")] == 3
    assert page[predict.format("sum")] == pytest.approx(0.00243)
    within = {
        float(name.split()[1].removeprefix("le=")): count
        for name, count in page.items()
        if name.startswith("request_seconds_bucket") and name.endswith("route=/predict")
    }
    bounds = (
        5e-5,
        1e-4,
        2e-4,
        5e-4,
        1e-3,
        2e-3,
        5e-3,
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.5,
        1,
        2,
        5,
        10,
    )
    assert list(within) == [*bounds, float("inf")]
    assert [within[bound] for bound in bounds[:6]] == [1, 1, 1, 2, 2, 3]
    assert page["request_seconds_bucket le=10.0 policy= route=/clients"] == 1
    assert page["request_seconds_bucket le=5.0 policy= route=/clients"] == 0


def test_stages_of_a_call_are_a_metric_of_their_own() -> None:
    metrics = Metrics()
    for stage, seconds in (("validate", 0.00002), ("queue", 0.0001), ("policy", 0.0004)):
        metrics.of("walker").observe_stage(stage, seconds)

    page = rendered(metrics)

    assert page["stage_seconds_bucket le=5e-05 policy=walker stage=validate"] == 1
    assert page["stage_seconds_bucket le=5e-05 policy=walker stage=queue"] == 0
    assert page["stage_seconds_sum policy=walker stage=policy"] == 0.0004
    assert not any(name.startswith("request_seconds") for name in page)


def test_many_requests_are_folded_without_losing_one() -> None:
    metrics = Metrics()
    for _ in range(10_000):
        metrics.observe_request("", "/", 200, 0.5)

    assert rendered(metrics)["requests_total policy= route=/ status=200"] == 1e4


def test_requests_that_come_while_a_page_is_rendered_are_not_lost() -> None:
    metrics = Metrics()
    is_over = threading.Event()
    looks = 0

    def look() -> None:
        nonlocal looks
        while not is_over.is_set():
            metrics.snapshot()
            looks += 1

    with in_thread(look, is_over.set), in_thread(look, is_over.set):
        for _ in range(50_000):
            metrics.observe_request("", "/", 200, 0.5)

    assert looks > 10
    assert rendered(metrics)["requests_total policy= route=/ status=200"] == 5e4


def test_calls_and_refusals_and_lost_replicas_are_counted_by_policy() -> None:
    metrics = Metrics()
    for name, size in (("walker", 3), ("runner", 8)):
        policy = metrics.of(name)
        policy.observe_batch(size)
        policy.observe_stage("policy", 0.001)
        policy.count_rejected("queue_full", size)
        policy.count_replica_lost()

    page = rendered(metrics)

    assert page["batch_size_bucket le=4.0 policy=walker"] == 1
    assert page["batch_size_bucket le=4.0 policy=runner"] == 0
    assert page["batch_size_sum policy=runner"] == 8
    assert page["rejected_total policy=walker reason=queue_full"] == 3
    assert page["rejected_total policy=runner reason=queue_full"] == 8
    assert page["replica_restarts_total policy=walker"] == 1


def test_no_lost_replica_is_a_zero_from_the_start() -> None:
    metrics = Metrics()
    metrics.of("walker")

    assert rendered(metrics)["replica_restarts_total policy=walker"] == 0


def test_open_streams_are_a_gauge() -> None:
    metrics = Metrics()
    for change in (1, 1, -1):
        metrics.count_stream(change)

    assert rendered(metrics)["stream_connections"] == 1


def test_one_policy_has_one_recorder() -> None:
    metrics = Metrics()

    assert metrics.of("walker") is metrics.of("walker")
    assert metrics.of("walker") is not metrics.of("runner")


def test_queues_of_one_policy_add_up_and_those_of_another_stand_apart() -> None:
    metrics = Metrics()
    for policy, depth in (("walker", 7), ("walker", 2), ("runner", 4)):
        metrics.of(policy).watch_queue(lambda depth=depth: depth)  # type: ignore[misc]  # mypy doesn't infer such a lambda

    page = rendered(metrics)

    assert page["queue_depth policy=walker"] == 9
    assert page["queue_depth policy=runner"] == 4


def test_queue_of_a_scheduler_that_is_closed_is_gone() -> None:
    metrics = Metrics()
    forget = metrics.of("walker").watch_queue(lambda: 7)
    metrics.of("runner").watch_queue(lambda: 4)
    forget()

    page = rendered(metrics)

    assert "queue_depth policy=walker" not in page
    assert page["queue_depth policy=runner"] == 4


def test_actions_beyond_a_bound_share_one_series() -> None:
    metrics = Metrics()
    metrics.of("walker").count_actions("move", {0: 2, **dict.fromkeys(range(2, 103), 1)})

    page = rendered(metrics)

    series = "actions_total action={} component=move policy=walker"
    assert page[series.format(0)] == 2
    assert series.format(1) not in page
    assert page[series.format("other")] == 39
    assert sum("actions_total" in name for name in page) == 64


def test_model_is_described_by_policy() -> None:
    metrics = Metrics()
    metrics.of("walker").describe_model(version="abc", family="categorical(2)", load_seconds=1.5)
    metrics.of("runner").describe_model(version="def", family="normal(1)", load_seconds=2.5)

    page = rendered(metrics)

    assert page["model_info family=categorical(2) policy=walker version=abc"] == 1
    assert page["model_info family=normal(1) policy=runner version=def"] == 1
    assert page["model_load_seconds policy=walker"] == 1.5
    assert page["model_load_seconds policy=runner"] == 2.5


def test_description_of_a_new_model_replaces_that_of_the_one_before() -> None:
    metrics = Metrics()
    for version in ("abc", "def"):
        metrics.of("walker").describe_model(version=version, family="normal(1)", load_seconds=1.0)

    infos = [name for name in rendered(metrics) if name.startswith("model_info")]

    assert infos == ["model_info family=normal(1) policy=walker version=def"]


@pytest.mark.parametrize(("policy", "version"), [("walker", "abc"), ("runner", "")])
def test_version_of_a_model_is_known_once_it_is_described(policy: str, version: str) -> None:
    metrics = Metrics()
    metrics.of("walker").describe_model(version="abc", family="normal(1)", load_seconds=1.0)

    assert metrics.model_version(policy) == version
