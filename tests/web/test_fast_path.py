"""The fast path gives what FastAPI's own routes give: status, headers and bytes."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import orjson
import pytest

from tests.support.web import KEY, OBSERVATION, build, client_of, running

PATHS = [
    "/predict_deterministic",
    "/predict_deterministic/",
    "/predict_deterministic_raw",
    "/distribution",
    "/distribution_raw",
    "/predict",
    "/predict_raw",
]
REQUESTS = 3000
_ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    "1",
    "",
    -1,
    0,
    3,
    2**70,
    1.5,
    -0.0,
    1e39,
    float("nan"),
    float("inf"),
    [],
    [1.0],
    {},
    {"a": 1},
]
_ODD_BODIES = [
    b"",
    b"null",
    b"[]",
    b"1",
    b'"x"',
    b"{",
    b'{"cat": 1,}',
    b"\xff\xfe",
    b'{"cat": 1, "cat": 2, "mouse": 0.5}',
    b"[" * 500,
    b'{"obs": [1, 2], "obs": [3, 4]}',
    b'{"obs": [1, 2]} x',
    b'\xef\xbb\xbf{"cat": 1, "mouse": 0.5}',
]


def generated_body(choose: random.Random) -> bytes:
    """Return a body: often right, often nearly right, sometimes nothing like it."""
    kind = choose.randrange(6)
    if kind == 0:
        return choose.choice(_ODD_BODIES)
    if kind == 1:
        values = [choose.choice([*_ODD_VALUES, 0.5, 2]) for _ in range(choose.randrange(4))]
        return json.dumps({"obs": values}).encode()
    document: dict[str, Any] = {"cat": choose.randrange(9), "mouse": choose.uniform(-9, 9)}
    if kind == 2:
        document[choose.choice(["cat", "mouse", "dog"])] = choose.choice(_ODD_VALUES)
    if kind == 3:
        del document[choose.choice(["cat", "mouse"])]
    if kind == 4:
        return orjson.dumps({"obs": [choose.uniform(-9, 9), choose.uniform(-9, 9)]})
    return json.dumps(document).encode()


def generated_headers(choose: random.Random) -> dict[str, str]:
    """Return headers: the right key most of the time."""
    key = {"access-token": KEY}
    some = [
        {},
        {"access-token": "wrong"},
        {"authorization": f"Bearer {KEY}"},
        {"authorization": KEY},
    ]
    headers = choose.choice([key] * 8 + some)
    return {
        **headers,
        "x-request-id": "same",
        **choose.choice([{}, {"content-type": "text/plain"}]),
    }


def shown(
    response: httpx.Response, *, has_draw: bool
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return what two answers have to share; a draw is its own."""
    if has_draw and response.status_code == httpx.codes.OK:
        return response.status_code, [], b""
    return response.status_code, response.headers.raw, response.content


async def test_thousands_of_requests_get_the_same_bytes_both_ways() -> None:
    choose = random.Random(4)  # noqa: S311 -- reproducible requests, no secret
    fast, slow = build(), build(has_fast_path=False)
    statuses = set()
    async with (
        running(fast),
        running(slow),
        client_of(fast, key=None) as a,
        client_of(slow, key=None) as b,
    ):
        for _ in range(REQUESTS):
            path, method = choose.choice(PATHS), choose.choice(["POST"] * 12 + ["GET", "PUT"])
            request = {"content": generated_body(choose), "headers": generated_headers(choose)}

            answers = [await client.request(method, path, **request) for client in (a, b)]  # type: ignore[arg-type]

            has_draw = path.startswith("/predict") and "deterministic" not in path
            ours, fastapis = (shown(answer, has_draw=has_draw) for answer in answers)
            assert ours == fastapis, (method, path, request)
            statuses.add(ours[0])

    assert statuses == {200, 401, 405, 415, 422}


@pytest.mark.parametrize("length", ["9", None], ids=["stated", "chunked"])
async def test_body_over_the_limit_is_refused_both_ways(length: str | None) -> None:
    async def parts() -> Any:  # noqa: ANN401 -- an asynchronous generator
        yield b'{"cat":'
        yield b"1" * 100

    headers = {"access-token": KEY, "x-request-id": "same"}
    answers = []
    for has_fast_path in (True, False):
        app = build(has_fast_path=has_fast_path, max_body_bytes=8)
        async with running(app), client_of(app, key=None) as client:
            content = b"123456789" if length else parts()
            answers.append(await client.post("/predict", content=content, headers=headers))

    assert [answer.status_code for answer in answers] == [413, 413]
    assert answers[0].content == answers[1].content
    assert answers[0].headers.raw == answers[1].headers.raw


async def test_chunked_body_is_answered() -> None:
    async def parts() -> Any:  # noqa: ANN401 -- an asynchronous generator
        whole = json.dumps(OBSERVATION).encode()
        yield whole[:5]
        yield whole[5:]

    app = build()
    async with running(app), client_of(app) as client:
        answer = await client.post("/predict_deterministic", content=parts())

    assert answer.status_code == httpx.codes.OK
