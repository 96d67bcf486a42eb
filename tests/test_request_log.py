"""The access log: its fields, and the share of requests that it has."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest

from policy_server.request_log import RequestLog
from policy_server.settings import LogFormat
from policy_server.telemetry import HoldingHandler, new_formatter


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


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_line_that_is_held_back_has_the_request_too(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("policy_server")
    before, level, propagates = logger.handlers, logger.level, logger.propagate
    caplog.set_level(logging.INFO, "policy_server.access")
    handler = HoldingHandler(None)
    handler.setFormatter(new_formatter(log_format))
    logger.handlers, logger.propagate = [handler], False
    try:
        log = RequestLog()
        for client in ('a"%s', None, 'a"%s'):
            log.note("id", client, "POST", "/predict", 200, 0.0012345, "abc")
        handler.flush()
    finally:
        logger.handlers, logger.propagate = before, propagates
        logger.setLevel(level)

    lines = capsys.readouterr().err.splitlines()
    if log_format == "text":
        assert [line.partition("client=")[2].partition(" ")[0] for line in lines] == [
            'a"%s',
            "None",
            'a"%s',
        ]
        assert all("duration_ms=1.234" in line for line in lines)
    else:
        assert [json.loads(line)["client"] for line in lines] == ['a"%s', None, 'a"%s']
        assert {json.loads(line)["duration_ms"] for line in lines} == {1.234}


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
