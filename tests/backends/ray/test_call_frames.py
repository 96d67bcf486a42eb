"""Frames: what is sent arrives bit for bit, and whatever else arrives is refused."""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from policy_server.backends.ray.call_frames import (
    HEADER,
    Body,
    Frame,
    FrameError,
    FrameKind,
    answer_frame,
    bare_frame,
    call_frame,
    error_frame,
    error_of,
    inputs_of,
    outputs_of,
)
from policy_server.errors import (
    DistributionError,
    ObservationError,
    PolicyFailedError,
    PolicyServerError,
    UnsupportedAnswerError,
)
from policy_server.policy import Float32Array, Float64Array, PolicyInputs, PolicyOutputs

Columns = PolicyInputs | PolicyOutputs


def body_of(frame: Frame) -> Body:
    """Return a frame's body, whose length its header has to say."""
    whole = b"".join(frame)
    length, _, _ = HEADER.unpack_from(whole)
    assert length == len(whole) - HEADER.size
    return memoryview(bytearray(whole[HEADER.size :]))


def inputs_with(
    rows: int,
    *,
    dtype: type[np.float32 | np.float64] = np.float32,
    state: int | None = None,
    masks: int | None = None,
) -> PolicyInputs:
    numbers = np.random.default_rng(rows)
    observations: Float32Array | Float64Array = numbers.random((rows, 7), dtype)
    return PolicyInputs(
        observations,
        numbers.random(rows) < 0.5,
        numbers.integers(-1, 2**63 - 1, rows, dtype=np.int64),
        wants_distribution=rows % 2 == 0,
        state=None if state is None else numbers.random((rows, state), np.float32),
        masks=None if masks is None else numbers.random((rows, masks)) < 0.5,
    )


def outputs_with(
    rows: int, *, choices: int | None = None, state: int | None = None
) -> PolicyOutputs:
    numbers = np.random.default_rng(rows)
    actions = numbers.normal(size=(rows, 3))
    actions[:1, 0] = np.nan
    return PolicyOutputs(
        actions,
        numbers.normal(size=rows),
        None if choices is None else numbers.random((rows, choices), np.float32),
        None if state is None else numbers.random((rows, state), np.float32),
    )


def equal(one: Columns, other: Columns) -> bool:
    """Return whether two inputs or outputs are the same, bit for bit."""
    for name in (each.name for each in fields(one)):
        first, second = getattr(one, name), getattr(other, name)
        if isinstance(first, np.ndarray):
            same = (first.dtype, first.shape) == (second.dtype, second.shape)
            if not same or first.tobytes() != second.tobytes():
                return False
        elif first is not second:
            return False
    return True


@pytest.mark.parametrize("rows", [0, 1, 3, 64, 5000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": np.float64},
        {"state": 5},
        {"masks": 9},
        {"state": 4, "masks": 3, "dtype": np.float64},
        {"state": 0},
    ],
    ids=str,
)
def test_inputs_cross_bit_for_bit(rows: int, options: dict[str, Any]) -> None:
    inputs = inputs_with(rows, **options)

    assert equal(inputs_of(body_of(call_frame(7, inputs))), inputs)


@pytest.mark.parametrize("rows", [0, 1, 3, 5000])
@pytest.mark.parametrize(
    "options", [{}, {"choices": 6}, {"state": 5}, {"choices": 6, "state": 5}], ids=str
)
def test_outputs_cross_bit_for_bit(rows: int, options: dict[str, Any]) -> None:
    outputs = outputs_with(rows, **options)

    assert equal(outputs_of(body_of(answer_frame(7, outputs))), outputs)


def test_rows_that_lie_apart_in_memory_cross_too() -> None:
    whole = inputs_with(5000, state=3, masks=3)
    inputs = PolicyInputs(
        whole.observations.T.copy().T[::3],
        whole.is_deterministic[::3],
        whole.seeds[::3],
        whole.wants_distribution,
        None if whole.state is None else whole.state[::3],
        None if whole.masks is None else whole.masks[::3, ::-1],
    )

    assert equal(inputs_of(body_of(call_frame(1, inputs))), inputs)


@pytest.mark.parametrize(
    "error",
    [
        PolicyFailedError("is wrong"),
        UnsupportedAnswerError("takes no state"),
        DistributionError("NaN é 日本"),
        ObservationError([{"type": "t", "loc": ["body", 3], "msg": "odd"}]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_crosses_by_its_kind_its_text_and_its_notes(error: PolicyServerError) -> None:
    error.add_note("In the replica:\nTraceback")

    found = error_of(body_of(error_frame(7, error)))

    assert type(found) is type(error)
    assert (found.message, found.__notes__) == (error.message, error.__notes__)
    assert getattr(found, "problems", None) == getattr(error, "problems", None)


def test_error_of_a_kind_that_is_unknown_here_is_one_of_the_policy() -> None:
    class LaterError(PolicyServerError):
        """An error that an older web process does not know."""

    found = error_of(body_of(error_frame(7, LaterError("new"))))

    assert type(found) is PolicyFailedError
    assert found.message == "new"


def test_header_names_kind_and_number() -> None:
    length, kind, number = HEADER.unpack(b"".join(bare_frame(FrameKind.CANCEL, 2**63)))

    assert (length, kind, number) == (0, FrameKind.CANCEL, 2**63)


BODIES = {
    "call": (inputs_of, body_of(call_frame(1, inputs_with(3, state=4, masks=5)))),
    "answer": (outputs_of, body_of(answer_frame(1, outputs_with(3, choices=6, state=2)))),
    "error": (error_of, body_of(error_frame(1, PolicyFailedError("is wrong")))),
}


@pytest.mark.parametrize("kind", BODIES)
def test_body_that_lacks_an_end_is_refused_wherever_it_is_cut(kind: str) -> None:
    read, body = BODIES[kind]

    for length in range(len(body)):
        with pytest.raises(FrameError):
            read(body[:length])
    with pytest.raises(FrameError):
        read(memoryview(bytes(body) + b"\0"))


@pytest.mark.parametrize("kind", BODIES)
def test_body_with_other_bytes_is_read_or_refused(kind: str) -> None:
    read, body = BODIES[kind]
    chance = np.random.default_rng(7)
    outcomes = {"read": 0, "refused": 0}

    for _ in range(5000):
        mutated = bytearray(body)
        for _ in range(chance.integers(1, 5)):
            mutated[chance.integers(len(mutated))] = chance.integers(256)
        try:
            read(memoryview(mutated))
            outcomes["read"] += 1
        except FrameError:
            outcomes["refused"] += 1

    assert min(outcomes.values()) > 50


@pytest.mark.parametrize(
    "sizes",
    [
        (2**32 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1, 8, 1, 1, 1),
        (2**31, 0, 0, 0, 4, 1, 0, 0),
        (1, 2, 0, 0, 2, 1, 0, 0),
        (1, 2, 0, 0, 4, 7, 0, 0),
    ],
    ids=str,
)
def test_sizes_that_do_not_give_the_length_make_no_array(sizes: tuple[int, ...]) -> None:
    with pytest.raises(FrameError):
        inputs_of(memoryview(struct.pack("<IIIIBBBB4x", *sizes) + b"\0" * 17))


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"kind": "ObservationError", "message": "m", "notes": [], "problems": [{}]}',
        b'{"kind": "PolicyFailedError", "message": "m", "notes": [3]}',
        b'{"kind": "PolicyFailedError", "message": "m", "notes": 3}',
    ],
    ids=lambda body: body[:60],
)
def test_error_that_is_no_error_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        error_of(memoryview(body))
