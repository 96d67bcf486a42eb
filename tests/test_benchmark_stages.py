"""The stages of a request as the benchmark measures them, and the connections that it drives."""

from __future__ import annotations

import io
import json
import logging

import pytest

from benchmarks.failures import BenchmarkError
from benchmarks.few_rows import ACTIONS, policy_of
from benchmarks.hot_connections import HotConnections
from benchmarks.measures.stages import FLOOR, LOG, WHOLE, stages_of
from benchmarks.results import Stage
from benchmarks.subjects import ROOT
from policy_server.schema import read_schema
from policy_server.telemetry import ACCESS_LOGGER
from tests.support.fakes import integer_backend
from tests.support.web import build, running

EXAMPLE = ROOT / "examples" / "mouse_and_cheese" / "schema.yaml"


class Log(io.StringIO):
    """Keeps each write, also when it is emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


async def measured(batch: int, log: Log) -> list[Stage]:
    schema = read_schema(EXAMPLE)
    compiled = policy_of(ACTIONS["Discrete(4)"]).compiled
    return await stages_of(compiled, schema, batch, log=log, rounds=1, block_s=0.001)


@pytest.mark.parametrize("batch", [1, 5])
async def test_stages_are_the_whole(batch: int) -> None:
    stages = await measured(batch, Log())

    names = [stage.name for stage in stages]
    at = names.index(WHOLE)
    assert {stage.batch for stage in stages} == {batch}
    assert len(set(names)) == len(names)
    assert at == 8
    assert names[at + 1] == LOG
    assert 0 < stages[0].us < stages[at].us
    assert names[-1] == FLOOR
    assert 0 < stages[-1].us < stages[at].us
    # Each is rounded to a hundredth.
    assert sum(stage.us for stage in stages[:at]) == pytest.approx(stages[at].us, abs=0.1)


async def test_lines_of_the_log_are_those_of_requests_and_are_written_together() -> None:
    access = logging.getLogger(ACCESS_LOGGER)
    before, log = access.level, Log()

    await measured(64, log)

    most = max(log.writes, key=len).splitlines()
    # At least those of one call.
    assert len(most) >= 64
    line = json.loads(most[0])
    assert (line["event"], line["route"], line["status"]) == ("request", "/predict", 200)
    assert log.getvalue() == ""
    assert access.level == before


async def test_every_connection_has_its_answer() -> None:
    schema = EXAMPLE.read_text(encoding="utf-8")
    app = build(integer_backend((0.0, 1.0, 2.0, 3.0), width=6), schema=schema)

    async with running(app):
        connections = HotConnections(app, 3)
        await connections.check()
        await connections.ask()
        known, decided = connections.find_head(), connections.decide_head()
        connections.close()

    assert known is not None
    assert known.route is connections.route
    assert type(decided) is type(known.route)


async def test_other_answers_are_told() -> None:
    # Of another policy, which has no such observation.
    app = build()

    async with running(app):
        connections = HotConnections(app, 2)
        with pytest.raises(BenchmarkError, match=r"POST /predict: answered b'HTTP/1.1 422 "):
            await connections.check()
        connections.close()


async def test_requests_that_asgi_answers_are_told() -> None:
    app = build(api_key="another-one")

    async with running(app):
        with pytest.raises(BenchmarkError, match="not answered by the protocol itself"):
            HotConnections(app, 1)
