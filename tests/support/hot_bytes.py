"""Bytes of requests that a test cuts and mutates, and what two ways of answering them share."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from http import HTTPStatus

from tests.support.connections import Answer

__all__ = ["HALF_A_BYTE", "cut", "cut_alike", "mutated", "own_lines", "shown"]

# What stands for a session's name would be another byte of each name.
HALF_A_BYTE = b"%0"

# Headers that differ from request to request, as the hot path cuts them out of a head.
_OWN = [
    b"x-request-id: r%d",
    b"X-Observation-Stamp:%d",
    b"x-request-timeout-ms: 6000%d",
    b"X-REQUEST-TIMEOUT-MS:359999%d",
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e473%d-00f067aa0ba902b7-01",
]
# Those that it leaves there, or that are none.
_ODD_OWN = [
    b"x-request-id: bad id",
    b"x-request-id:",
    b"X-Request-Id:  two-spaces",
    b"x-request-id: " + b"a" * 129,
    b"x-request-id: a\r\n folded",
    b"X-Request-Id: a:b.c\r\nx-request-id: second",
    b"x-request-id: bad id\r\nx-request-id: second",
    b"x-request-id: first\r\nx-request-id: bad id",
    b"x-observation-stamp: two:parts+1",
    b"X-Observation-Stamp:  two:spaces+1",
    b"x-observation-stamp: a b",
    b"x-observation-stamp:",
    b"x-observation-stamp: " + b"a" * 65,
    b"x-observation-stamp: 7\r\nX-Observation-Stamp: 8",
    b"x-request-timeout-ms: 3600000",
    b"x-request-timeout-ms: 3600001",
    b"x-request-timeout-ms: 3700000",
    b"x-request-timeout-ms: 9999999",
    b"x-request-timeout-ms: 0060000",
    b"x-request-timeout-ms: 0",
    b"x-request-timeout-ms: -1",
    b"x-request-timeout-ms: +60000",
    b"x-request-timeout-ms: 6_0000",
    b"x-request-timeout-ms: 60000.0",
    b"x-request-timeout-ms: \xd9\xa3",
    b"x-request-timeout-ms:",
    b"x-request-timeout-ms:  60000",
    b"x-request-timeout-ms:\t60000 ",
    b"x-request-timeout-ms : 60000",
    b"x-request-timeout-ms: 60000\r\n 0",
    b"x-request-timeout-ms: 60000\r\nX-Request-Timeout-Ms: 60000",
    b"x-request-timeout-ms: 60000\r\nx-request-timeout-ms: 0",
    b"x-request-timeout-ms: 5.0\r\nx-request-timeout-ms: 60000",
]
_DRAWING = re.compile(rb"/predict(?!_deterministic)(?!\S*seed=\d)")
_HELD = re.compile(rb"[0-9]+\.[0-9]{3}")
_RANDOM_ID = re.compile(rb"[0-9a-f]{32}")


def shown(answers: Sequence[Answer], data: bytes) -> list[tuple[int, object, bytes]]:
    """Return what two connections have to share: a draw is its own, and so is a random id.

    Args:
        answers: those of a connection.
        data: what was asked on it: where a request draws, predictions are left out.
    """
    is_drawing = _DRAWING.search(data) is not None
    return [_shown(answer, is_draw=is_drawing and _is_prediction(answer)) for answer in answers]


def _is_prediction(answer: Answer) -> bool:
    return answer.status == HTTPStatus.OK and answer.body.startswith(b'{"actions"')


def _shown(answer: Answer, *, is_draw: bool) -> tuple[int, object, bytes]:
    headers = [
        # The length is that of the draw.
        (name, b"#" if is_draw and name == b"content-length" else _shown_value(name, value))
        for name, value in answer.headers
    ]
    return answer.status, headers, b"" if is_draw else answer.body


def _shown_value(name: bytes, value: bytes) -> bytes:
    if name == b"Date":
        # Of the web sockets' library; the server's own answers have none.
        return b"#"
    return _HELD.sub(b"#", value) if name == b"x-held-ms" else _RANDOM_ID.sub(b"#", value)


def own_lines(choose: random.Random) -> bytes:
    """Return the headers that are a request's own, each ended by CRLF: few, and odd ones too."""
    lines = [line % choose.randrange(10) for line in _OWN if choose.random() < 0.15]
    if choose.random() < 0.2:
        lines.append(choose.choice(_ODD_OWN))
    choose.shuffle(lines)
    return b"".join(line + b"\r\n" for line in lines)


def cut(data: bytes, choose: random.Random) -> list[bytes]:
    """Return data in a few segments."""
    ends = sorted(choose.randrange(len(data) + 1) for _ in range(choose.choice([0, 0, 1, 2, 5])))
    return [
        data[start:end]
        for start, end in zip([0, *ends], [*ends, len(data)], strict=True)
        if end > start
    ]


def cut_alike(segments: Sequence[bytes], data: bytes) -> list[bytes]:
    """Return data of the same length as some segments have together, cut where these are."""
    ends = list(itertools.accumulate(map(len, segments)))
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def mutated(data: bytes, choose: random.Random) -> bytes:
    """Return data with a few bytes changed, left out, doubled or added."""
    for _ in range(choose.choice([1, 1, 2, 4])):
        at, length = choose.randrange(len(data)), choose.choice([1, 1, 1, 2, 8])
        new = choose.choice(
            [
                b"",
                bytes(choose.randrange(256) for _ in range(length)),
                choose.choice(
                    [b"\r\n", b"\r", b"\n", b" ", b":", b"\r\n\r\n", b"0", b"\x00", b"%"]
                ),
                data[at : at + length] * 2,
            ]
        )
        data = data[:at] + new + data[at + length :]
    return data
