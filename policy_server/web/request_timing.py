"""The times that a client gives with its request: a deadline, and a stamp of its observation."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping

from policy_server.errors import ObservationError
from policy_server.observations import problem

__all__ = [
    "HELD_HEADER",
    "LONGEST_TIMEOUT_MS",
    "STAMP",
    "STAMP_HEADER",
    "TIMEOUT_HEADER",
    "check_stamp",
    "given_timeout_s",
    "refuse_request_headers",
    "sensible_stamp",
    "stamp_lines",
]

TIMEOUT_HEADER = "x-request-timeout-ms"
STAMP_HEADER = "x-observation-stamp"
HELD_HEADER = "x-held-ms"
LONGEST_TIMEOUT_MS = 3_600_000
STAMP = re.compile(r"[A-Za-z0-9._:+-]{1,64}")
_WHOLE = re.compile(r"[0-9]{1,7}")
_TIMEOUT_NAME, _STAMP_NAME = TIMEOUT_HEADER.encode(), STAMP_HEADER.encode()
# Headers of one request, and the word that each frame of a stream has instead; None for none.
_OF_REQUESTS = {
    _TIMEOUT_NAME: "timeout_ms",
    _STAMP_NAME: "stamp",
    b"x-previous-action": "previous_action",
    b"x-previous-reward": "previous_reward",
    b"x-state": None,
    b"x-step": None,
}


def given_timeout_s(headers: Mapping[bytes, str]) -> float | None:
    """Return how long a client waits for its answer, in seconds; None where it does not say.

    Args:
        headers: as `read_headers` gives them.

    Raises:
        ObservationError: if the header is no whole number of milliseconds in its range.
    """
    given = headers.get(_TIMEOUT_NAME)
    if given is None:
        return None
    if not _WHOLE.fullmatch(given) or not 1 <= int(given) <= LONGEST_TIMEOUT_MS:
        message = f"Input should be a whole number of milliseconds from 1 to {LONGEST_TIMEOUT_MS}"
        raise ObservationError([problem("request_timeout", ["header", TIMEOUT_HEADER], message)])
    return int(given) / 1000


def sensible_stamp(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the stamp of a client's observation; empty where it has none, or one that is refused.

    Args:
        headers: as ASGI has them: names in lower case.
    """
    given = [value.decode("latin-1") for name, value in headers if name == _STAMP_NAME]
    return given[0] if len(given) == 1 and STAMP.fullmatch(given[0]) else ""


def check_stamp(headers: Mapping[bytes, str]) -> None:
    """Refuse a header that is no stamp.

    Args:
        headers: as `read_headers` gives them.

    Raises:
        ObservationError: if the header is there, and is no stamp.
    """
    given = headers.get(_STAMP_NAME)
    if given is not None and not STAMP.fullmatch(given):
        message = "Input should be 1 to 64 letters, digits and any of . _ : + -"
        raise ObservationError([problem("observation_stamp", ["header", STAMP_HEADER], message)])


def refuse_request_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse the headers of one request at a handshake: a stream would pass over them.

    Args:
        headers: as ASGI has them: names in lower case.

    Raises:
        ObservationError: naming each of them.
    """
    given = {name for name, _ in headers} & _OF_REQUESTS.keys()
    if given:
        raise ObservationError(
            [
                problem("not_allowed", ["header", name.decode()], _remedy(_OF_REQUESTS[name]))
                for name in sorted(given)
            ]
        )


def _remedy(word: str | None) -> str:
    if word is None:
        return "A stream keeps its own memory and counts its own steps; leave it out"
    return f"A stream takes the word {word} in each frame instead"


def stamp_lines(stamp: str, started: float) -> list[tuple[bytes, bytes]]:
    """Return the headers of the answer to an observation that has a stamp.

    Args:
        stamp: the stamp, which the answer repeats.
        started: when its request came, by `time.perf_counter`.
    """
    held_ms = (time.perf_counter() - started) * 1000
    return [(_STAMP_NAME, stamp.encode()), (HELD_HEADER.encode(), b"%.3f" % held_ms)]
