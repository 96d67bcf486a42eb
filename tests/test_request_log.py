"""The access log: its fields, and the share of requests that it has."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from policy_server.request_log import RequestLog


def noted(log: RequestLog, *statuses: int) -> None:
    for status in statuses:
        log.note("id", "127.0.0.1", "POST", "/predict", status, 0.0012345, "abc")


def test_line_has_the_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "policy_server.access")

    noted(RequestLog(), 200)

    (line,) = (vars(item) for item in caplog.records)
    assert line["message"] == "request"
    expected = {
        "request_id": "id",
        "client": "127.0.0.1",
        "method": "POST",
        "route": "/predict",
        "status": 200,
        "duration_ms": 1.234,
        "model_version": "abc",
    }
    assert {name: line[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("rate", "least", "most"), [(0.0, 0, 0), (0.5, 300, 700), (1.0, 1000, 1000)]
)
def test_share_of_requests_and_every_error_has_a_line(
    rate: float, least: int, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "policy_server.access")

    noted(RequestLog(rate=rate), *[200] * 1000, 401, 503)

    counts = Counter(vars(item)["status"] for item in caplog.records)
    assert least <= counts.pop(200, 0) <= most
    assert counts == {401: 1, 503: 1}
