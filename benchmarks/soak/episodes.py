"""Scenarios: episodes with memory, by sessions, state tokens and streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import orjson
from websockets.asyncio.client import connect

from benchmarks.soak.expected import Episode
from benchmarks.soak.questions import prefix_of
from benchmarks.soak.raw import connected, encode_request
from benchmarks.soak.traffic import Trouble, Visitor
from benchmarks.subjects import KEY

__all__ = ["break_stream", "play_session", "play_stream", "play_tokens", "stream_questions"]

_KIND = "predict_deterministic"
_Encode = Callable[[Any], bytes | str]
_WAYS: tuple[tuple[_Encode, Callable[[Any], Any]], ...] = (
    (lambda body: orjson.dumps(body).decode(), orjson.loads),
    (msgpack.packb, msgpack.unpackb),
)


def _episode(visitor: Visitor) -> Episode:
    return visitor.chance.choice(visitor.expected.alone + visitor.expected.teams)


async def play_session(visitor: Visitor) -> None:
    """Play an episode; some steps are sent twice, some lose their connection and are sent again."""
    chance, episode = visitor.chance, _episode(visitor)
    is_drawn = chance.random() < 0.5
    routes = f"{episode.prefix}/sessions"
    began = await visitor.ask(
        "POST", f"{routes}{episode.suffix}", {"seed": episode.seed}, status=201
    )
    session = f"{routes}/{began.json()['session_id']}"
    address = f"{session}/{'predict' if is_drawn else _KIND}{episode.suffix}"
    answers = episode.draws if is_drawn else episode.answers
    for _ in range(chance.randint(1, 2)):
        for step, (body, wanted) in enumerate(zip(episode.bodies, answers, strict=True)):
            headers = {"x-step": str(step)}
            if chance.random() < 0.1:
                await _lose(visitor, address, body, headers)
            for _ in range(1 + (chance.random() < 0.1)):
                outcome = await visitor.ask("POST", address, body, headers=headers)
                visitor.compare(outcome.json(), [wanted], f"step {step} of {address}")
        shown = await visitor.ask("GET", f"{session}{episode.suffix}")
        visitor.compare(shown.json()["steps"], [len(episode.bodies)], session)
        await visitor.ask("POST", address, body, status=409, headers={"x-step": "77"})
        await visitor.ask("POST", f"{session}/reset{episode.suffix}", {})
    # The others end by themselves, when they were idle for long enough.
    if chance.random() < 0.8:
        await visitor.ask("DELETE", f"{session}{episode.suffix}", status=204)
        await visitor.ask("GET", f"{session}{episode.suffix}", status=404)


async def _lose(visitor: Visitor, address: str, body: Any, headers: dict[str, str]) -> None:  # noqa: ANN401 -- JSON
    """Send a step, and break the connection at once: it was made, or not."""
    async with connected(visitor.port) as link:
        await link.send(encode_request(address, orjson.dumps(body), headers=headers))
        link.reset()
    visitor.leave()


async def play_tokens(visitor: Visitor) -> None:
    """Play an episode whose memory the client carries."""
    episode = visitor.chance.choice(visitor.expected.alone)
    path, token = f"{episode.prefix}/{_KIND}", "new"
    for step, (body, wanted) in enumerate(zip(episode.bodies, episode.answers, strict=True)):
        outcome = await visitor.ask("POST", path, body, headers={"x-state": token})
        visitor.compare(outcome.json(), [wanted], f"step {step} by tokens")
        token = outcome.headers["x-state"]


def _opened(visitor: Visitor, path: str) -> connect:
    is_packed = visitor.chance.random() < 0.3
    return connect(
        f"ws://127.0.0.1:{visitor.port}{path}",
        additional_headers={"access-token": KEY},
        compression="deflate" if is_packed else None,
        proxy=None,
    )


async def play_stream(visitor: Visitor) -> None:
    """Play episodes in a stream: frames one by one, or all before the first answer."""
    chance, episode = visitor.chance, _episode(visitor)
    encode, decode = chance.choice(_WAYS)
    path = f"{episode.prefix}/{_KIND}/stream{episode.suffix}"
    async with _opened(visitor, path) as stream:
        for _ in range(chance.randint(1, 3)):
            in_flight = chance.choice((1, len(episode.bodies)))
            for start in range(0, len(episode.bodies), in_flight):
                part = slice(start, start + in_flight)
                for body in episode.bodies[part]:
                    await stream.send(encode(body))
                for wanted in episode.answers[part]:
                    visitor.compare(decode(await stream.recv()), [wanted], path)
                    visitor.counts.answered[visitor.name] += 1
            await stream.send(encode({"reset": True}))
            visitor.compare(decode(await stream.recv()), [{"reset": True}], "a reset")


async def stream_questions(visitor: Visitor) -> None:
    """Ask by a stream, with mistakes in between, which are answered in their place."""
    chance = visitor.chance
    policy = chance.choice(("mouse_and_cheese", "pendulum", "prey"))
    own = [case for case in visitor.expected.cases if case.policy == policy]
    encode, decode = chance.choice(_WAYS)
    path = f"{prefix_of(visitor, policy)}/{_KIND}/stream"
    asked = [None if chance.random() < 0.1 else chance.choice(own) for _ in range(30)]
    async with _opened(visitor, path) as stream:
        for case in asked:
            await stream.send(encode({"no": 1} if case is None else case.observation))
        for case in asked:
            answer = decode(await stream.recv())
            if case is None:
                if answer.get("status") != 422:
                    raise Trouble(f"{path}: expected 422, got {answer}")
                visitor.counts.refused[visitor.name] += 1
                continue
            wanted = [each[_KIND] for each in (case.answers, case.others) if each]
            visitor.compare(answer, wanted, path)
            visitor.counts.answered[visitor.name] += 1


async def break_stream(visitor: Visitor) -> None:
    """Leave a stream with frames in flight, without a word."""
    case = visitor.case(is_named=True)
    frame = orjson.dumps(case.observation).decode()
    count = visitor.chance.randint(0, 100)
    stream = await _opened(visitor, f"/policies/{case.policy}/predict/stream")
    for _ in range(count):
        await stream.send(frame)
    stream.transport.abort()
    await stream.wait_closed()
    visitor.counts.left[visitor.name] += 1 + count
