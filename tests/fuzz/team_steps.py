"""Requests for steps of teams, answered in three ways: in the protocol, over ASGI, by FastAPI."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import orjson

from policy_server.web import Application
from tests.fuzz.watching import without_complaints
from tests.support.connections import Server, answers_in
from tests.support.hot_bytes import HALF_A_BYTE, cut, cut_alike, mutated, own_lines, shown
from tests.support.teams import build_team
from tests.support.web import KEY, running

__all__ = [
    "HUNTER",
    "TEAM",
    "begin",
    "compare_team_mutants",
    "compare_teams",
    "numbers_in",
    "team_request",
]

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
        more = own_lines(choose) + choose.choice(_MORE)
        return team_request(b"/" + choose.choice(_ENDS[1:3]), body, more)
    numbers += [b"x-step: %d\r\n" % (step + change) for change in (-1, 0, 0, 1)]
    more = choose.choice(numbers) + own_lines(choose) + choose.choice(_MORE)
    return team_request(b"/sessions/%b/%b" % (_ZEROS, end), body, more)


async def begin(server: Server, **start: object) -> bytes:
    """Begin a session of the team, and return its name."""
    sent = await server.exchange([team_request(b"/sessions", orjson.dumps(start))])
    (answer,) = answers_in(sent.written)
    assert answer.status == 201, answer
    return bytes(orjson.loads(answer.body)["session_id"].encode())


@asynccontextmanager
async def served(*, has_fast_path: bool) -> AsyncIterator[Application]:
    """Serve a team whose sessions this process keeps."""
    app, _, _ = build_team(has_fast_path=has_fast_path)
    async with running(app):
        yield app


async def compare_teams(
    cases: int,
    seed: int,
    *,
    serve: Callable[..., AbstractAsyncContextManager[Application]] = served,
) -> Counter[int]:
    """Hold connections of one to three steps three ways against each other.

    Args:
        cases: how many connections.
        seed: of the draws.
        serve: serves a team; see `served`.

    Returns:
        How often each status was answered.
    """
    return await _compare(cases, seed, serve, is_mutated=False)


async def compare_team_mutants(cases: int, seed: int) -> Counter[int]:
    """Hold connections with changed bytes three ways against each other.

    Args:
        cases: how many connections.
        seed: of the draws.

    Returns:
        How often each status was answered.
    """
    return await _compare(cases, seed, served, is_mutated=True)


async def _compare(
    cases: int,
    seed: int,
    serve: Callable[..., AbstractAsyncContextManager[Application]],
    *,
    is_mutated: bool,
) -> Counter[int]:
    choose = random.Random(seed)  # noqa: S311 -- reproducible requests, no secret
    statuses: Counter[int] = Counter()
    with without_complaints():
        async with serve(has_fast_path=True) as app, serve(has_fast_path=False) as slow:
            servers = (Server(app), Server(app, is_hot=True), Server(slow))
            names = [await begin(server, seed=7) for server in servers]
            step = 0
            for number in range(cases):
                drawn = [request_of(choose, step) for _ in range(choose.choice([1, 1, 2, 3]))]
                whole = mutated(b"".join(drawn), choose) if is_mutated else b"".join(drawn)
                if HALF_A_BYTE in whole:
                    continue
                segments = cut(whole, choose)
                sent = [
                    await server.exchange(cut_alike(segments, whole.replace(_ZEROS, name)))
                    for server, name in zip(servers, names, strict=True)
                ]

                found = [
                    shown(answers_in(transport.written.replace(name, _ZEROS)), b"")
                    for transport, name in zip(sent, names, strict=True)
                ]
                where = (seed, number, whole)
                assert found[0] == found[1], where
                assert found[0] == found[2], where
                assert len({transport.is_gone for transport in sent}) == 1, where
                statuses.update(status for status, _, _ in found[0])
                step = max([step, *numbers_in(sent[0].written)])
            assert servers[1].heads is not None
            assert len(servers[1].heads) > min(10, cases // 100)
    return statuses


def numbers_in(written: bytes) -> list[int]:
    """Return the numbers of the steps after those that were answered."""
    headers = (dict(answer.headers) for answer in answers_in(written))
    return [int(found[b"x-step"]) + 1 for found in headers if b"x-step" in found]
