"""Hot steps of teams give what ASGI gives, by themselves and in sessions."""

from __future__ import annotations

import orjson
import pytest

from tests.fuzz.team_steps import (
    HUNTER,
    TEAM,
    begin,
    compare_team_mutants,
    compare_teams,
    numbers_in,
    team_request,
)
from tests.support.connections import Server, answers_in
from tests.support.fakes import gated, hold
from tests.support.teams import build_team, usual_backends
from tests.support.waiting import turns, until
from tests.support.web import running

REQUESTS, MUTANTS = 500, 300


async def test_hundreds_of_steps_of_a_team_get_the_same_bytes_three_ways() -> None:
    statuses = await compare_teams(REQUESTS, seed=27)

    assert statuses[200] > 200
    assert set(statuses) >= {200, 409, 415, 422}


async def test_mutated_steps_of_a_team_get_the_same_answers() -> None:
    statuses = await compare_team_mutants(MUTANTS, seed=28)

    assert set(statuses) >= {200, 400, 401, 404, 409, 422}


async def test_agents_of_one_policy_ride_in_one_call() -> None:
    backends = usual_backends()
    app, _, _ = build_team(backends)
    async with running(app):
        before = len(backends["hunter"].batches)
        server = Server(app, is_hot=True)
        sent = await server.exchange([team_request(b"/predict", orjson.dumps(TEAM)) * 3])

    assert [answer.status for answer in answers_in(sent.written)] == [200] * 3
    assert backends["hunter"].batches[before:] == [6]


async def test_connection_with_a_refused_step_behind_one_in_flight_is_left_like_any_other() -> None:
    backends = {name: gated(backend) for name, backend in usual_backends().items()}
    app, _, _ = build_team(backends)
    async with running(app):
        gate = hold(backends["hunter"])
        server = Server(app, is_hot=True)
        protocol, _ = server.connect()
        for body in (orjson.dumps({"hunter_1": HUNTER}), b'{"nobody": {}}'):
            protocol.data_received(team_request(b"/predict", body))
        await turns(5)
        protocol.connection_lost(ConnectionResetError())
        gate.set()
        await until(lambda: not server.state.tasks)

    assert not server.state.connections


async def test_team_whose_client_has_gone_frees_its_places() -> None:
    backends = {name: gated(backend) for name, backend in usual_backends().items()}
    app, _, _ = build_team(backends, max_queue_size=2)
    async with running(app):
        gate = hold(backends["hunter"])
        server = Server(app, is_hot=True)
        body = orjson.dumps({"hunter_1": HUNTER, "hunter_2": HUNTER})
        protocol, gone = server.connect()
        protocol.data_received(team_request(b"/predict", body))
        await turns()
        protocol.connection_lost(None)
        protocol, transport = server.connect()
        protocol.data_received(team_request(b"/predict", body))
        await turns()
        gate.set()
        await until(lambda: transport.written)

    assert gone.written == b""
    assert [answer.status for answer in answers_in(transport.written)] == [200]


async def test_step_of_a_team_is_made_without_its_client() -> None:
    backends = {name: gated(backend) for name, backend in usual_backends().items()}
    app, _, _ = build_team(backends)
    async with running(app):
        server = Server(app, is_hot=True)
        session = await begin(server)
        path, body = b"/sessions/%b/predict" % session, orjson.dumps(TEAM)
        gate = hold(backends["prey"])
        protocol, gone = server.connect()
        protocol.data_received(team_request(path, body, b"x-step: 0\r\n"))
        await turns(20)
        protocol.connection_lost(None)
        gate.set()
        await until(lambda: not server.state.tasks)
        again = await server.exchange(
            [team_request(path, body, b"x-step: %d\r\n" % step) for step in (0, 1)]
        )

    assert gone.written == b""
    assert numbers_in(again.written) == [1, 2]


@pytest.mark.parametrize("is_session", [False, True], ids=["step", "session"])
async def test_team_that_no_queue_holds_is_413(*, is_session: bool) -> None:
    app, _, _ = build_team(max_queue_size=3)
    async with running(app):
        server = Server(app, is_hot=True)
        session = b"/sessions/%b" % await begin(server) if is_session else b""
        bodies = [orjson.dumps({f"hunter_{i}": HUNTER for i in range(size)}) for size in (4, 3)]
        sent = await server.exchange(
            [b"".join(team_request(b"%b/predict" % session, body) for body in bodies)]
        )

    answers = answers_in(sent.written)
    assert [answer.status for answer in answers] == [413, 200]
    assert b"4 agents of the policy hunter" in answers[0].body
    assert not server.state.tasks


@pytest.mark.parametrize("is_session", [False, True], ids=["step", "session"])
async def test_agent_that_fails_fails_the_team(*, is_session: bool) -> None:
    backends = {name: gated(backend) for name, backend in usual_backends().items()}
    app, _, _ = build_team(backends, max_queue_size=3)
    async with running(app):
        server = Server(app, is_hot=True)
        session = b"/sessions/%b" % await begin(server) if is_session else b""
        body = orjson.dumps({f"hunter_{i}": HUNTER for i in range(3)})
        team = team_request(b"%b/predict" % session, body)
        gate = hold(backends["hunter"])
        protocol, before = server.connect()
        protocol.data_received(team_request(b"/predict", orjson.dumps({"hunter_9": HUNTER})))
        await turns()
        protocol, refused = server.connect()
        protocol.data_received(team)
        await until(lambda: refused.written)
        gate.set()
        await until(lambda: before.written)
        answered = await server.exchange([team])

    answers = [answer for sent in (refused, answered) for answer in answers_in(sent.written)]
    assert [answer.status for answer in answers] == [503, 200]
    assert b"agent 'hunter_2'" in answers[0].body
    assert not server.state.tasks
