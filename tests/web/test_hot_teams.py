"""Hot steps of teams give what ASGI gives, by themselves and in sessions."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest

from tests.support.connections import Server, answers_in
from tests.support.fakes import gated, hold
from tests.support.hot_bytes import cut, shown
from tests.support.teams import build_team, usual_backends
from tests.support.waiting import turns, until
from tests.support.web import KEY, running

REQUESTS = 500
HUNTER, PREY, DRONE = {"cat": 1, "mouse": 1.5}, {"distance": 1.0, "is_seen": True}, {"obs": [1, 2]}
TEAM = {"hunter_1": HUNTER, "hunter_2": HUNTER, "prey": PREY, "drone_7": DRONE}
_ZEROS = b"0" * 32
_BODIES: list[Any] = [
    TEAM,
    {"prey": PREY},
    {"drone_1": DRONE, "hunter_1": HUNTER},
    {},
    {"stranger": HUNTER},
    {"hunter_1": {"cat": 1}, "prey": {}},
    {"prey": {**PREY, "x": 1}},
    [],
    None,
]
_ENDS = [b"predict", b"predict_deterministic", b"distribution", b"predict_raw"]
_MORE = [b""] * 8 + [
    b"x-episode-id: e\r\n",
    b"x-policy-version: hunter=v1\r\n",
    b"x-policy-version: nobody\r\n",
    b"x-state: new\r\n",
    b"x-state:\r\n",
    b"content-type: application/x-npy\r\n",
    b"x-request-id: a:b.c\r\n",
    b"x-observation-stamp: 7\r\n",
    b"x-observation-stamp: a b\r\n",
    b"x-request-timeout-ms: 60000\r\n",
    b"x-request-timeout-ms: 6_0\r\n",
    b"Connection: close\r\n",
    b"x-step: 1_0\r\n",
    b"x-step: 0\r\nx-step: 0\r\n",
    b"x-previous-reward: 1\r\n",
]


def team_request(path: bytes, body: bytes, more: bytes = b"") -> bytes:
    """Return a request of a team."""
    return b"POST %b/agents HTTP/1.1\r\n%baccess-token: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        path,
        more,
        KEY.encode(),
        len(body),
        body,
    )


def request_of(choose: random.Random, step: int) -> bytes:
    """Return a request for a step: of a session often, and mostly a plain one."""
    body = orjson.dumps(choose.choice(_BODIES[:3] if choose.random() < 0.7 else _BODIES))
    end, numbers = choose.choice(_ENDS), [b""] * 3
    if choose.random() < 0.4:
        # A draw of its own would differ.
        return team_request(b"/" + choose.choice(_ENDS[1:3]), body, choose.choice(_MORE))
    numbers += [b"x-step: %d\r\n" % (step + change) for change in (-1, 0, 0, 1)]
    more = choose.choice(numbers) + choose.choice(_MORE)
    return team_request(b"/sessions/%b/%b" % (_ZEROS, end), body, more)


async def begin(server: Server, **start: object) -> bytes:
    """Begin a session of the team, and return its name."""
    sent = await server.exchange([team_request(b"/sessions", orjson.dumps(start))])
    (answer,) = answers_in(sent.written)
    assert answer.status == 201, answer
    return bytes(orjson.loads(answer.body)["session_id"].encode())


async def test_hundreds_of_steps_of_a_team_get_the_same_bytes_three_ways() -> None:
    choose = random.Random(27)  # noqa: S311 -- reproducible requests, no secret
    (app, _, _), (slow, _, _) = build_team(), build_team(has_fast_path=False)
    seen: set[int] = set()
    async with running(app), running(slow):
        servers = (Server(app), Server(app, is_hot=True), Server(slow))
        names = [await begin(server, seed=7) for server in servers]
        step = 0
        for _ in range(REQUESTS):
            requests = [request_of(choose, step) for _ in range(choose.choice([1, 1, 2, 3]))]
            segments = cut(b"".join(requests), choose)
            sent = [
                await server.exchange(_named(segments, name))
                for server, name in zip(servers, names, strict=True)
            ]

            found = [
                shown(answers_in(transport.written.replace(name, _ZEROS)), b"")
                for transport, name in zip(sent, names, strict=True)
            ]
            assert found[0] == found[1], requests
            assert found[0] == found[2], requests
            assert len({transport.is_gone for transport in sent}) == 1, requests
            seen |= {status for status, _, _ in found[0]}
            step = max([step, *_numbers_in(sent[0].written)])
        assert servers[1].heads is not None
        assert len(servers[1].heads) > 10

    assert step > 100
    assert seen >= {200, 409, 415, 422}


def _named(segments: list[bytes], name: bytes) -> list[bytes]:
    whole, at, cuts = b"".join(segments).replace(_ZEROS, name), 0, []
    for segment in segments:
        cuts.append(whole[at : at + len(segment)])
        at += len(segment)
    return cuts


def _numbers_in(written: bytes) -> list[int]:
    headers = (dict(answer.headers) for answer in answers_in(written))
    return [int(found[b"x-step"]) + 1 for found in headers if b"x-step" in found]


async def test_agents_of_one_policy_ride_in_one_call() -> None:
    backends = usual_backends()
    app, _, _ = build_team(backends)
    async with running(app):
        before = len(backends["hunter"].batches)
        server = Server(app, is_hot=True)
        sent = await server.exchange([team_request(b"/predict", orjson.dumps(TEAM)) * 3])

    assert [answer.status for answer in answers_in(sent.written)] == [200] * 3
    assert backends["hunter"].batches[before:] == [6]


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
    assert _numbers_in(again.written) == [1, 2]


@pytest.mark.parametrize("is_session", [False, True], ids=["step", "session"])
async def test_agent_that_fails_fails_the_team(*, is_session: bool) -> None:
    app, _, _ = build_team(max_queue_size=3)
    async with running(app):
        server = Server(app, is_hot=True)
        session = b"/sessions/%b" % await begin(server) if is_session else b""
        bodies = [orjson.dumps({f"hunter_{i}": HUNTER for i in range(size)}) for size in (5, 3)]
        sent = await server.exchange(
            [b"".join(team_request(b"%b/predict" % session, body) for body in bodies)]
        )

    answers = answers_in(sent.written)
    assert [answer.status for answer in answers] == [503, 200]
    assert b"agent 'hunter_3'" in answers[0].body
    assert not server.state.tasks
