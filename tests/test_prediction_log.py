"""The prediction log: sampled, complete, and never in the way."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time

import msgpack
import pytest

from policy_server.prediction_log import PredictionLog
from tests.support.web import build, running

ANSWER = b'{"actions":[1],"probability":0.5}'


def test_every_prediction_is_recorded_at_rate_one(caplog: pytest.LogCaptureFixture) -> None:
    log = PredictionLog(rate=1.0, fluentd_host=None, fluentd_port=0)

    with caplog.at_level(logging.INFO):
        log.record("predict", [1.0, 2.0], ANSWER, request_id="abc")
    log.close()

    [record] = caplog.records
    assert record.message == "prediction"
    assert vars(record)["observation"] == [1.0, 2.0]
    assert vars(record)["answer"] == {"actions": [1], "probability": 0.5}
    assert vars(record)["request_id"] == "abc"


@pytest.mark.parametrize("name", ["name", "message", "level", "observation", "answer"])
def test_mask_that_is_named_as_a_part_of_the_record_is_recorded_as_a_mask(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = PredictionLog(rate=1.0, fluentd_host=None, fluentd_port=0, mask_name=name, mask_width=1)

    with caplog.at_level(logging.INFO):
        log.record("predict", [1.5, 1.0], ANSWER, request_id="abc")

    [record] = caplog.records
    assert vars(record)["action_mask"] == [1]
    assert vars(record)["observation"] == [1.5]


def test_nothing_is_recorded_at_rate_zero(caplog: pytest.LogCaptureFixture) -> None:
    log = PredictionLog(rate=0.0, fluentd_host="127.0.0.1", fluentd_port=9)

    with caplog.at_level(logging.INFO):
        log.record("predict", [1.0], ANSWER, request_id="abc")

    assert not caplog.records


def test_rate_is_the_share_that_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    log = PredictionLog(rate=0.5, fluentd_host=None, fluentd_port=0)

    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            log.record("predict", [1.0], ANSWER, request_id="abc")

    # Five standard errors of a fair coin.
    assert len(caplog.records) == pytest.approx(500, abs=80)


def test_collector_gets_the_prediction() -> None:
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as collector:

        def collect() -> None:
            connection, _ = collector.accept()
            with connection:
                received.append(connection.recv(65536))

        thread = threading.Thread(target=collect)
        thread.start()
        port = collector.getsockname()[1]
        log = PredictionLog(rate=1.0, fluentd_host="127.0.0.1", fluentd_port=port)
        log.record("predict", [1.0, 2.0], ANSWER, request_id="abc")
        thread.join(10)
        log.close()

    tag, _, fields = msgpack.unpackb(received[0], timestamp=3)
    assert tag == "policy_server.prediction"
    assert fields["observation"] == [1.0, 2.0]
    assert fields["request_id"] == "abc"


def test_collector_that_is_down_delays_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    log = PredictionLog(rate=1.0, fluentd_host="127.0.0.1", fluentd_port=port)

    started = time.monotonic()
    for _ in range(3000):
        log.record("predict", [1.0], ANSWER, request_id="abc")
    log.close()

    assert time.monotonic() - started < 5.0


async def test_collector_that_is_waited_for_at_the_end_delays_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, is_asked, goes_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def close(_log: PredictionLog) -> None:
        loop.call_soon_threadsafe(is_asked.set)
        went_on.append(goes_on.wait(30))

    went_on: list[bool] = []
    monkeypatch.setattr(PredictionLog, "close", close)
    app = build()
    async with running(app):
        pass_on = asyncio.create_task(is_asked.wait())
        pass_on.add_done_callback(lambda _: goes_on.set())

    assert went_on == [True]
