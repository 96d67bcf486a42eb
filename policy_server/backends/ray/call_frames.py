"""Frames of calls between a web process and a replica: a fixed layout, then arrays, no code.

A frame is a header of 16 bytes and a body of as many bytes as the header says:

    u32 length of the body | u8 kind | 3 zero bytes | u64 number of the call | body

The body of a call or an answer is a header of 24 bytes with its sizes, then its arrays one after
another, rows first, those with the widest numbers first. Errors are JSON. All numbers are little
endian. Whoever reads a frame checks that its sizes give its length before an array is made of it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server import errors
from policy_server.errors import ObservationError, PolicyFailedError, PolicyServerError
from policy_server.policy import PolicyInputs, PolicyOutputs

__all__ = [
    "HEADER",
    "MAX_BODY_BYTES",
    "Body",
    "Frame",
    "FrameError",
    "FrameKind",
    "answer_frame",
    "bare_frame",
    "call_frame",
    "error_document",
    "error_frame",
    "error_in",
    "error_of",
    "inputs_of",
    "outputs_of",
]

# The bytes of a body, writable.
Body = memoryview
# The parts of a frame, written one after another.
Frame = Sequence[bytes | memoryview]

HEADER = struct.Struct("<IB3xQ")
# A longer call goes by Ray Serve.
MAX_BODY_BYTES = 1 << 30
# Arrays of a longer frame are written from where they lie; those of a shorter one are joined.
_JOINED_BYTES = 1 << 16
_MOST_TEXT = 16_384

_CALL = struct.Struct("<IIIIBBBB4x")
_ANSWER = struct.Struct("<IIIIBB6x")
_SEEDS = np.dtype("<i8")
_BYTES = np.dtype(np.uint8)
_SINGLE = np.dtype("<f4")
_DOUBLE = np.dtype("<f8")
_FLOATS = {dtype.itemsize: dtype for dtype in (_SINGLE, _DOUBLE)}

_Array = NDArray[Any]
# The type and the width of an array.
_Part = tuple[np.dtype[Any], int]


class FrameError(Exception):
    """Bytes that are no frame, or a frame that has no place here or is too long."""


class FrameKind(IntEnum):
    """The kinds of frames."""

    CALL = 1
    ANSWER = 2
    ERROR = 3
    # The web process waits no longer for a call.
    CANCEL = 4
    PING = 5
    PONG = 6
    # The web process asks to be told when the call of that number begins to be computed.
    WATCH = 7
    BEGUN = 8


def bare_frame(kind: FrameKind, number: int) -> Frame:
    """Return a frame without a body.

    Args:
        kind: its kind.
        number: the number of the call that it is about; 0 for none.
    """
    return (HEADER.pack(0, kind, number),)


def call_frame(number: int, inputs: PolicyInputs) -> Frame:
    """Return the frame of a call.

    Args:
        number: the number of the call.
        inputs: its inputs.

    Raises:
        FrameError: if it would be too long.
    """
    observations, state, masks = inputs.observations, inputs.state, inputs.masks
    header = _CALL.pack(
        len(inputs),
        observations.shape[1],
        0 if state is None else state.shape[1],
        0 if masks is None else masks.shape[1],
        observations.itemsize,
        inputs.wants_distribution,
        state is not None,
        masks is not None,
    )
    arrays: list[_Array] = [inputs.seeds, observations]
    if state is not None:
        arrays.append(state)
    arrays.append(inputs.is_deterministic)
    if masks is not None:
        arrays.append(masks)
    return _framed(FrameKind.CALL, number, header, arrays)


def inputs_of(body: Body) -> PolicyInputs:
    """Return the inputs that a call's body holds; they refer to it.

    Args:
        body: the body.

    Raises:
        FrameError: if it is no call's.
    """
    if len(body) < _CALL.size:
        raise FrameError("a call without its sizes")
    rows, width, state_width, mask_width, itemsize, wants, has_state, has_masks = _CALL.unpack_from(
        body
    )
    dtype = _FLOATS.get(itemsize)
    if dtype is None or wants | has_state | has_masks > 1:
        raise FrameError("a call with odd flags")
    parts: list[_Part] = [(_SEEDS, 1), (dtype, width)]
    if has_state:
        parts.append((_SINGLE, state_width))
    parts.append((_BYTES, 1))
    if has_masks:
        parts.append((_BYTES, mask_width))
    arrays = _arrays(body, _CALL.size, rows, parts)
    return PolicyInputs(
        arrays[1],
        arrays[2 + has_state].reshape(rows) != 0,
        arrays[0].reshape(rows),
        bool(wants),
        arrays[2] if has_state else None,
        arrays[-1] != 0 if has_masks else None,
    )


def answer_frame(number: int, outputs: PolicyOutputs) -> Frame:
    """Return the frame of an answer.

    Args:
        number: the number of the call.
        outputs: its outputs.

    Raises:
        FrameError: if it would be too long.
    """
    distribution, state = outputs.distribution, outputs.state
    header = _ANSWER.pack(
        len(outputs),
        outputs.actions.shape[1],
        0 if distribution is None else distribution.shape[1],
        0 if state is None else state.shape[1],
        distribution is not None,
        state is not None,
    )
    arrays: list[_Array] = [
        outputs.actions.astype(_DOUBLE, copy=False),
        outputs.log_probability.astype(_DOUBLE, copy=False),
    ]
    arrays += [
        array.astype(_SINGLE, copy=False) for array in (distribution, state) if array is not None
    ]
    return _framed(FrameKind.ANSWER, number, header, arrays)


def outputs_of(body: Body) -> PolicyOutputs:
    """Return the outputs that an answer's body holds; they refer to it.

    Args:
        body: the body.

    Raises:
        FrameError: if it is no answer's.
    """
    if len(body) < _ANSWER.size:
        raise FrameError("an answer without its sizes")
    rows, actions, choices, state_width, has_distribution, has_state = _ANSWER.unpack_from(body)
    parts: list[_Part] = [(_DOUBLE, actions), (_DOUBLE, 1)]
    if has_distribution:
        parts.append((_SINGLE, choices))
    if has_state:
        parts.append((_SINGLE, state_width))
    if has_distribution | has_state > 1:
        raise FrameError("an answer with odd flags")
    arrays = _arrays(body, _ANSWER.size, rows, parts)
    return PolicyOutputs(
        arrays[0],
        arrays[1].reshape(rows),
        arrays[2] if has_distribution else None,
        arrays[-1] if has_state else None,
    )


def error_frame(number: int, error: PolicyServerError) -> Frame:
    """Return the frame of an error: the name of its kind, its text and its notes.

    Args:
        number: the number of the call.
        error: the error to raise in the process that asked.
    """
    body = json.dumps(error_document(error), default=str).encode()
    return (HEADER.pack(len(body), FrameKind.ERROR, number) + body,)


def error_document(error: PolicyServerError) -> dict[str, Any]:
    """Return the name of an error's kind, its text and its notes, as JSON has them.

    Args:
        error: the error to raise in another process.
    """
    document: dict[str, Any] = {
        "kind": type(error).__name__,
        "message": error.message[:_MOST_TEXT],
        "notes": [str(note)[-_MOST_TEXT:] for note in getattr(error, "__notes__", ())],
    }
    if isinstance(error, ObservationError):
        document["problems"] = error.problems
    return document


def error_of(body: Body) -> PolicyServerError:
    """Return the error that an error's body holds.

    Args:
        body: the body.

    Raises:
        FrameError: if it is no error's.
    """
    try:
        document = json.loads(bytes(body))
    except (ValueError, RecursionError) as reason:
        raise FrameError("an error that can't be read") from reason
    return error_in(document)


def error_in(document: Any) -> PolicyServerError:  # noqa: ANN401 -- a value of JSON
    """Return the error that `error_document` described.

    Args:
        document: the description.

    Raises:
        FrameError: if it is none.
    """
    try:
        kind, message, notes = document["kind"], str(document["message"]), document["notes"]
        found = getattr(errors, kind) if kind in errors.__all__ else PolicyFailedError
        error: PolicyServerError = (
            ObservationError(document["problems"]) if found is ObservationError else found(message)
        )
        for note in notes:
            error.add_note(note)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as reason:
        raise FrameError("an error that can't be read") from reason
    return error


def _framed(kind: FrameKind, number: int, header: bytes, arrays: Sequence[_Array]) -> Frame:
    # Lists, here and below: generators would cost a call as much as its arrays.
    length = len(header) + sum([array.nbytes for array in arrays])
    if length > MAX_BODY_BYTES:
        raise FrameError(f"a frame of {length} bytes, more than {MAX_BODY_BYTES}")
    start = HEADER.pack(length, kind, number)
    if length <= _JOINED_BYTES:
        return (b"".join([start, header, *[array.tobytes() for array in arrays]]),)
    return (start + header, *(_memory_of(array) for array in arrays if array.size))


def _memory_of(array: _Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _arrays(body: Body, offset: int, rows: int, parts: Sequence[_Part]) -> list[_Array]:
    """Return the arrays of a body, [rows, width] each.

    Args:
        body: the body.
        offset: where they begin in it.
        rows: how many rows each has.
        parts: the type and the width of each.
    """
    arrays: list[_Array] = []
    try:
        for dtype, width in parts:
            # It refuses what goes beyond the body.
            arrays.append(np.ndarray((rows, width), dtype, body, offset))
            offset += rows * width * dtype.itemsize
    except (TypeError, ValueError) as error:
        raise FrameError("sizes of more than there is") from error
    if offset != len(body):
        raise FrameError("sizes of less than there is")
    return arrays
