"""Long answers, sent part by part: the server waits for the client before each."""

from __future__ import annotations

import pytest
from starlette.types import Message

from policy_server.web.parts import PartedResponse


async def sent_of(body: bytes) -> list[Message]:
    """Return the messages of an answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("it is not asked")

    await PartedResponse(body, media_type="text/plain")({"type": "http"}, receive, send)
    return sent


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (0, [0]),
        (65_536, [65_536]),
        (65_537, [65_536, 1, 0]),
        (150_000, [65_536, 65_536, 18_928, 0]),
    ],
)
async def test_long_answer_is_sent_in_parts_and_a_short_one_whole(
    size: int, parts: list[int]
) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    start, *messages = await sent_of(body)

    assert start["status"] == 200
    assert dict(start["headers"])[b"content-length"] == b"%d" % size
    assert [len(message["body"]) for message in messages] == parts
    assert b"".join(message["body"] for message in messages) == body
    more = [message.get("more_body", False) for message in messages]
    assert more == [True] * (len(parts) - 1) + [False]
