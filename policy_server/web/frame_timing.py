"""The times that a frame of a stream gives: how long its answer is of use, and a stamp.

They stand beside the observation, as in `{"observation": {...}, "timeout_ms": 20, "stamp": 17}`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import Message

from policy_server.errors import ObservationError
from policy_server.observations import problem
from policy_server.schema import EXACT_INTEGER_MAX
from policy_server.web.frames import FRAME_WORDS, OBSERVATION, value_of, written_again
from policy_server.web.request_timing import LONGEST_TIMEOUT_MS, STAMP

__all__ = [
    "NO_TIMING",
    "FrameTiming",
    "Stamp",
    "gives_times",
    "split_timing",
    "stamped",
    "timing_in",
]

Stamp = str | int | float

_TIMEOUT, _STAMP = "timeout_ms", "stamp"
_WORDS = FRAME_WORDS | {_TIMEOUT, _STAMP}


@dataclass(frozen=True, slots=True)
class FrameTiming:
    """The times that a frame gives.

    Attributes:
        timeout_ms: for how many milliseconds its answer is of use; None where it does not say.
        stamp: the client's own, which the answer repeats; None for none.
    """

    timeout_ms: float | None = None
    stamp: Stamp | None = None

    def deadline(self, received: float) -> float | None:
        """Return the deadline of the answer, by `time.perf_counter`; None for none.

        Args:
            received: when the frame came, by the same clock.
        """
        return None if self.timeout_ms is None else received + self.timeout_ms / 1000


NO_TIMING = FrameTiming()


def split_timing(message: Message) -> tuple[Message, FrameTiming]:
    """Return a frame without its times, and these.

    Args:
        message: a frame; one that gives no times is returned as it is.

    Raises:
        ObservationError: if a time is none.
    """
    value = value_of(message)
    rest, timing = timing_in(value)
    if rest is value:
        return message, timing
    return written_again(message, rest), timing


def gives_times(message: Message) -> bool:
    """Return whether a frame gives any of the times.

    Args:
        message: the frame.
    """
    return _has_times(value_of(message))


def timing_in(value: Any) -> tuple[Any, FrameTiming]:  # noqa: ANN401 -- what the client sent
    """Return the value of a frame without its times, and these; see `split_timing`.

    Args:
        value: the frame's.

    Raises:
        ObservationError: if a time is none.
    """
    if not _has_times(value):
        return value, NO_TIMING
    timeout_ms, stamp = value.get(_TIMEOUT), value.get(_STAMP)
    if timeout_ms is not None and not _is_timeout(timeout_ms):
        message = f"Input should be a whole number of milliseconds from 1 to {LONGEST_TIMEOUT_MS}"
        raise ObservationError([problem("request_timeout", ["body", _TIMEOUT], message)])
    if stamp is not None and not _is_stamp(stamp):
        message = (
            f"Input should be a number of at most {EXACT_INTEGER_MAX} in absolute value, or 1 to "
            "64 letters, digits and any of . _ : + -"
        )
        raise ObservationError([problem("observation_stamp", ["body", _STAMP], message)])
    rest = {name: item for name, item in value.items() if name in FRAME_WORDS}
    return rest if len(rest) > 1 else rest[OBSERVATION], FrameTiming(timeout_ms, stamp)


def stamped(answer: bytes, stamp: Stamp, received: float) -> bytes:
    """Return the JSON of an answer with the stamp of its frame, and the time that it was held.

    Args:
        answer: an object that is not empty.
        stamp: the frame's.
        received: when the frame came, by `time.perf_counter`.
    """
    held_ms = (time.perf_counter() - received) * 1000
    return b'%b,"stamp":%b,"held_ms":%.3f}' % (answer[:-1], orjson.dumps(stamp), held_ms)


def _has_times(value: object) -> bool:
    return (
        isinstance(value, dict)
        and OBSERVATION in value
        and not value.keys().isdisjoint((_TIMEOUT, _STAMP))
        and value.keys() <= _WORDS
    )


def _is_timeout(value: object) -> bool:
    # A whole number however JSON writes it: `20.0` too, as JSON Schema has it.
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 1 <= value <= LONGEST_TIMEOUT_MS and float(value).is_integer()


def _is_stamp(value: object) -> bool:
    if isinstance(value, str):
        return STAMP.fullmatch(value) is not None
    # A whole number of more than 64 bits is read as a float, whose last digits are others.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= EXACT_INTEGER_MAX  # type: ignore[arg-type]  # it is a number
