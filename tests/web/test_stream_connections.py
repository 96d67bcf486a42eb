"""Streams by this project's protocol and by any other: the same answers in the same order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgpack
import pytest
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import ConnectionClosed

from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.web.stream_connections import MOST_IN_FLIGHT
from tests.fuzz.frames import FIN, PING, TEXT, RawStream, frame
from tests.support.fakes import integer_backend
from tests.support.streams import served
from tests.support.waiting import turns, until
from tests.support.web import OBSERVATION

PROTOCOLS = pytest.mark.parametrize(
    "web_sockets",
    [
        pytest.param(WebSocketProtocol, id="direct"),
        pytest.param(WebSocketsSansIOProtocol, id="ASGI"),
    ],
)
FRAMES: list[str | bytes] = [
    json.dumps(OBSERVATION),
    msgpack.packb(OBSERVATION),
    '{"cat": 0}',
    msgpack.packb([]),
    '{"reset": true, "seed": 7}',
    json.dumps(OBSERVATION),
    "{",
    b"\xc1",
    msgpack.packb({"reset": True}),
    json.dumps(OBSERVATION),
]


async def answers_to(frames: list[str | bytes], web_sockets: type[Any]) -> list[str | bytes]:
    async with (
        served(web_sockets=web_sockets) as server,
        server.stream("/predict/stream?seed=3") as stream,
    ):
        for frame in frames:
            await stream.send(frame)
        return [await stream.recv() for _ in frames]


async def test_both_ways_answer_the_same() -> None:
    frames = FRAMES * 60

    direct, by_asgi = [
        await answers_to(frames, kind) for kind in (WebSocketProtocol, WebSocketsSansIOProtocol)
    ]

    assert len(direct) == 600
    assert direct == by_asgi
    assert [type(answer) for answer in direct] == [type(frame) for frame in frames]


@PROTOCOLS
async def test_message_in_fragments_is_one_question(web_sockets: type[Any]) -> None:
    text = json.dumps(OBSERVATION)
    async with served(web_sockets=web_sockets) as server, server.stream() as stream:
        await stream.send([text[:3], text[3:9], "", text[9:]])
        await stream.send([b"", msgpack.packb(OBSERVATION)])
        as_text, as_bytes = json.loads(await stream.recv()), msgpack.unpackb(await stream.recv())

    assert as_text.keys() == as_bytes.keys() == {"actions", "probability", "log_probability"}


@PROTOCOLS
async def test_frames_of_all_forms_in_one_segment_are_answered_in_their_order(
    web_sockets: type[Any],
) -> None:
    texts = [
        json.dumps({**OBSERVATION, "x": 0}) if i % 3 else json.dumps(OBSERVATION) for i in range(30)
    ]
    frames = []
    for number, text in enumerate(map(str.encode, texts)):
        if number % 5 == 4:
            frames += [frame(TEXT, text[:4]), frame(FIN | PING, b"p"), frame(FIN, text[4:])]
        elif number % 5 == 3:
            frames.append(frame(FIN | TEXT, text + b" " * 70_000))
        else:
            frames.append(frame(FIN | TEXT, text))
    async with served(web_sockets=web_sockets) as server:
        raw = await RawStream.open(server)
        segment = b"".join(frames)
        for start in range(0, len(segment), 40_001):
            raw.writer.write(segment[start : start + 40_001])
        answers: list[Any] = []
        while len(answers) < len(texts):
            first, payload = await raw.next()
            if first & 0x0F == TEXT:
                answers.append(json.loads(payload))
        await raw.close()

    assert ["actions" in answer for answer in answers] == [i % 3 == 0 for i in range(30)]


async def test_server_that_stops_answers_the_frames_that_waited_for_room() -> None:
    count = MOST_IN_FLIGHT + 40
    backend = integer_backend()
    async with served(backend) as server, server.stream() as stream:
        backend.gate = asyncio.Event()
        for _ in range(count):
            await stream.send(json.dumps(OBSERVATION))
        await until(lambda: server.counted("policy_server_queue_depth") == MOST_IN_FLIGHT)
        server.server.should_exit = True
        await turns()
        backend.gate.set()
        answers = [json.loads(await stream.recv()) for _ in range(count)]
        with pytest.raises(ConnectionClosed) as closed:
            await stream.recv()

    assert all("actions" in answer for answer in answers)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


async def test_client_whose_pong_lies_behind_frames_that_are_held_back_stays() -> None:
    backend, wait_s = integer_backend(), 0.5
    # More than one read of the server's takes, so that the pong stays behind them.
    text = json.dumps(OBSERVATION) + " " * 40_000
    count = MOST_IN_FLIGHT + 40
    async with served(backend) as server:
        config = server.server.config
        config.ws_ping_interval = config.ws_ping_timeout = wait_s
        async with server.stream(ping_interval=None) as stream:
            backend.gate = asyncio.Event()
            for _ in range(count):
                await stream.send(text)
            await until(lambda: server.counted("policy_server_queue_depth") == MOST_IN_FLIGHT)
            await asyncio.sleep(3 * wait_s)
            backend.gate.set()
            answers = [json.loads(await stream.recv()) for _ in range(count)]

    assert all("actions" in answer for answer in answers)


async def test_time_of_a_pong_begins_anew_where_frames_were_held_back() -> None:
    backend = integer_backend()
    async with served(backend) as server:
        config = server.server.config
        config.ws_ping_interval, config.ws_ping_timeout = 0.01, 60.0
        async with server.stream(ping_interval=None) as stream:
            (connection,) = server.server.server_state.connections
            assert isinstance(connection, WebSocketProtocol)
            connection.pause_frames()
            await until(lambda: connection.pong_timer is not None)
            first = connection.pong_timer
            await asyncio.sleep(0.01)
            connection.resume_frames()
            second = connection.pong_timer
            await stream.send(json.dumps(OBSERVATION))
            answer = json.loads(await stream.recv())

    assert first is not None
    assert second is not None
    assert first.cancelled()
    assert second.when() > first.when()
    assert "actions" in answer


async def test_client_that_answers_no_ping_is_left() -> None:
    async with served() as server:
        config = server.server.config
        config.ws_ping_interval = config.ws_ping_timeout = 0.1
        raw = await RawStream.open(server)
        code, answers = await raw.until_closed()
        await raw.close()

    assert (code, answers) == (1011, [])
