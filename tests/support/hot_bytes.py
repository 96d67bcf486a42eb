"""Bytes of requests that a test cuts and mutates, and what two ways of answering them share."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence

from tests.support.connections import Answer

__all__ = ["HALF_A_BYTE", "cut", "cut_alike", "mutated", "shown"]

# What stands for a session's name would be another byte of each name.
HALF_A_BYTE = b"%0"

_HELD = re.compile(rb"[0-9]+\.[0-9]{3}")
_RANDOM_ID = re.compile(rb"[0-9a-f]{32}")


def shown(answers: Sequence[Answer], data: bytes) -> list[tuple[int, object, bytes]]:
    """Return what two connections have to share: a draw is its own, and so is a random id."""
    if b"/predict" in data.replace(b"/predict_deterministic", b""):
        return [(answer.status, [name for name, _ in answer.headers], b"") for answer in answers]
    return [
        (
            answer.status,
            [(name, _shown_value(name, value)) for name, value in answer.headers],
            answer.body,
        )
        for answer in answers
    ]


def _shown_value(name: bytes, value: bytes) -> bytes:
    if name == b"Date":
        # Of the web sockets' library; the server's own answers have none.
        return b"#"
    return _HELD.sub(b"#", value) if name == b"x-held-ms" else _RANDOM_ID.sub(b"#", value)


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
