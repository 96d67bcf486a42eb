"""Scenarios: requests that have to be refused, each with its status, and broken protocol."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from benchmarks.soak.raw import connected, encode_request
from benchmarks.soak.traffic import Trouble, Visitor
from benchmarks.subjects import KEY, OBSERVATION
from benchmarks.websocket import TEXT, encode_frame

__all__ = [
    "MAX_BATCH_ROWS",
    "MISTAKES",
    "Mistake",
    "break_frames",
    "break_protocol",
    "make_mistake",
]

# The server's own limit in this run.
MAX_BATCH_ROWS = 1_000
_JSON = orjson.dumps(OBSERVATION)
_WRONG = {"access-token": "a wrong key"}


@dataclass(frozen=True)
class Mistake:
    """A request that has to be refused.

    Attributes:
        status: the refusal's.
        path: with the query.
        body: its bytes.
        method: GET and so on.
        headers: beside the key.
    """

    status: int
    path: str
    body: bytes | None = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)


def _changed(**fields: object) -> bytes:
    return orjson.dumps({**OBSERVATION, **fields})


MISTAKES = (
    Mistake(401, "/predict", _JSON, headers=_WRONG),
    Mistake(401, "/no/such/route", headers=_WRONG),
    Mistake(401, "/admin/policies", method="GET"),
    Mistake(404, "/no/such/route"),
    Mistake(404, "/policies/nobody/predict", _JSON),
    Mistake(404, "/policies/stock/predict", _JSON),
    Mistake(404, "/sessions/ffff/predict", _JSON),
    Mistake(404, "/sessions/ffff", method="DELETE"),
    Mistake(405, "/predict", method="GET"),
    Mistake(405, "/predict", method="OPTIONS"),
    Mistake(409, "/predict", _JSON, headers={"x-policy-version": "nobody"}),
    Mistake(413, "/predict", b" " * (1 << 20) + _JSON),
    Mistake(413, "/predict/batch", orjson.dumps([OBSERVATION] * (MAX_BATCH_ROWS + 1))),
    Mistake(415, "/predict", _JSON, headers={"content-encoding": "br"}),
    Mistake(415, "/predict", _JSON.decode().encode("utf-16")),
    Mistake(422, "/predict", b""),
    Mistake(422, "/predict", _JSON[:-1]),
    Mistake(422, "/predict", b"[" * 5_000),
    Mistake(415, "/predict", b"\xff" + _JSON),
    Mistake(422, "/predict", _JSON.replace(b"cat_row", b"cat\xffrow")),
    Mistake(422, "/predict", _changed(mouse_row="5")),
    Mistake(422, "/predict", _changed(mouse_row=6)),
    Mistake(422, "/predict", _changed(dog=1)),
    Mistake(422, "/predict", _JSON.replace(b'"cat_row":3', b'"cat_row":NaN')),
    Mistake(422, "/predict", _JSON.replace(b'"cat_row":3', b'"cat_row":1e400')),
    Mistake(422, "/predict?seed=-1", _JSON),
    Mistake(422, "/predict?seeed=7", _JSON),
    Mistake(422, "/predict_raw", b'{"obs":[1,2,3]}'),
    Mistake(422, "/predict_raw", b"no array", headers={"content-type": "application/x-npy"}),
    Mistake(422, "/predict", gzip.compress(_JSON)[:-9], headers={"content-encoding": "gzip"}),
    Mistake(422, "/predict/batch", orjson.dumps([OBSERVATION, {}])),
    Mistake(422, "/predict/batch", b"[{"),
    Mistake(422, "/predict/agents", b'{"nobody":{"row":1}}'),
    Mistake(422, "/predict/agents", b'{"prey":{"row":1}}'),
    Mistake(422, "/policies/conveyor/predict", b"{}", headers={"x-state": "new"}),
    Mistake(
        422,
        "/policies/conveyor/predict",
        b'{"scanned":[true,true,true],"is_at_gate":true}',
        headers={"x-state": "forged"},
    ),
    Mistake(422, "/sessions", b'{"seed":"x"}'),
    Mistake(422, "/clients/cobol", method="GET"),
    Mistake(426, "/predict/stream", method="GET"),
)

# Requests that are none, and the status of the refusal; None where the connection just ends.
_BROKEN: tuple[tuple[int | None, bytes], ...] = (
    (400, b"NONSENSE\r\n\r\n"),
    (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    (400, encode_request("/predict", _JSON, headers={"content-length": "many"})),
    (400, encode_request("/predict", _JSON, headers={"transfer-encoding": "chunked"})),
    (431, encode_request("/predict", _JSON, headers={"x-long": "x" * 100_000})),
    (None, b"\r\n" * 3),
)


async def make_mistake(visitor: Visitor) -> None:
    """Send a request that has to be refused."""
    mistake = visitor.chance.choice(MISTAKES)
    await visitor.ask(
        mistake.method,
        mistake.path,
        mistake.body,
        status=mistake.status,
        headers=mistake.headers,
    )


async def break_protocol(visitor: Visitor) -> None:
    """Send what is no HTTP; the connection has to end, after a refusal where there is one."""
    status, data = visitor.chance.choice(_BROKEN)
    async with connected(visitor.port) as link:
        await link.send(data)
        if status is None:
            link.half_close()
            visitor.leave()
        else:
            outcome = await link.answer()
            visitor.hold(outcome, status, f"{data[:40]!r}")
        await link.ended()


async def break_frames(visitor: Visitor) -> None:
    """Open a web socket without the key, or send frames that the protocol forbids."""
    url = f"ws://127.0.0.1:{visitor.port}/predict/stream"
    if visitor.chance.random() < 0.3:
        try:
            async with connect(url, additional_headers=_WRONG, proxy=None):
                raise Trouble("a web socket without the key was opened")
        except InvalidStatus as error:
            if error.response.status_code != 401:
                raise Trouble(f"{url}: expected 401, got {error.response.status_code}") from error
            visitor.counts.refused[visitor.name] += 1
            return
    bad = visitor.chance.choice(
        (
            b"\x81\x05hello",  # not masked
            b"\x83\x80\0\0\0\0",  # a kind that there is not
            encode_frame(TEXT, b"\xff\xfe"),
            b"\xc1\x80\0\0\0\0",  # a reserved bit
            b"\x89\xfe\x00\x80\0\0\0\0" + bytes(128),  # a ping that is too long
        )
    )
    stream = await connect(
        url, additional_headers={"access-token": KEY}, proxy=None, compression=None
    )
    try:
        stream.transport.write(bad)
        # What the server says before its end is read by the library.
        await stream.wait_closed()
        if stream.close_code not in (1002, 1007):
            raise Trouble(f"{bad!r}: expected close code 1002 or 1007, got {stream.close_code}")
    finally:
        with suppress(OSError):
            stream.transport.abort()
    visitor.counts.refused[visitor.name] += 1
