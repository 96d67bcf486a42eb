"""Calls of batches: few at once, each with a deadline, and the row to blame is named."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from policy_server.errors import (
    DistributionError,
    NotReadyError,
    OverloadedError,
    PolicyFailedError,
    PolicyServerError,
    UnsupportedAnswerError,
)
from policy_server.metrics import Metrics
from policy_server.policy import DEFAULT_POLICY, PolicyInputs, PolicyOutputs
from policy_server.serving.bulk_calls import BulkCalls, BulkRows
from tests.fakes import FakeBackend, integer_backend


def calls_of(backend: FakeBackend, *, timeout_s: float = 5.0) -> BulkCalls:
    """Return the calls of a backend."""
    return BulkCalls(backend, timeout_s=timeout_s, metrics=Metrics().of(DEFAULT_POLICY))


def rows_of(count: int, *, first: int = 0) -> BulkRows:
    """Return observations whose first number is their index in the batch."""
    observations = np.zeros((count, 2), np.float32)
    observations[:, 0] = np.arange(first, first + count)
    return BulkRows(observations, first, is_deterministic=True, seeds=np.full(count, -1, np.int64))


async def test_rows_are_answered_by_one_call() -> None:
    backend = integer_backend()

    outputs = await calls_of(backend).infer(rows_of(100))

    assert backend.batches == [100]
    assert outputs.actions[:, 0].tolist() == [2, 2] + [0] * 98


async def test_no_more_than_two_calls_run_at_once() -> None:
    backend = replace(integer_backend(), gate=asyncio.Event())
    assert backend.gate is not None
    calls = calls_of(backend)
    tasks = [asyncio.create_task(calls.infer(rows_of(3))) for _ in range(5)]
    for _ in range(10):
        await asyncio.sleep(0)

    running = len(backend.batches)
    backend.gate.set()
    await asyncio.gather(*tasks)

    assert (running, len(backend.batches)) == (2, 5)


HIDDEN = "the policy failed; the server's log has the reason"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (PolicyFailedError("is wrong"), PolicyFailedError, "is wrong"),
        (DistributionError("is wrong"), DistributionError, "is wrong"),
        (PolicyServerError("is wrong"), PolicyFailedError, "is wrong"),
        (IndexError("secret"), PolicyFailedError, HIDDEN),
        (ValueError("secret"), PolicyFailedError, HIDDEN),
    ],
    ids=["failed", "no distribution", "other", "index", "value"],
)
@pytest.mark.parametrize("row", [40, 41, 77, 139])
async def test_row_to_blame_is_named_by_its_place_in_the_batch(
    error: Exception, kind: type[PolicyServerError], message: str, row: int
) -> None:
    backend = replace(integer_backend(), error=error, poison=float(row))

    with pytest.raises(kind, match=f"^observation {row}: {message}$") as caught:
        await calls_of(backend).infer(rows_of(100, first=40))

    assert caught.value.__cause__ is error
    assert len(backend.batches) <= 1 + 2 * 7


async def test_failure_that_no_row_alone_brings_is_not_blamed_on_one() -> None:
    class TooMany(FakeBackend):
        async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
            if len(inputs) > 1:
                raise PolicyFailedError("too many")
            return await super().infer(inputs)

    known = integer_backend()

    with pytest.raises(PolicyFailedError, match=r"^too many$"):
        await calls_of(TooMany(known.signature, known.bias)).infer(rows_of(4))


@pytest.mark.parametrize(
    "error",
    [NotReadyError("gone"), OverloadedError("gone"), UnsupportedAnswerError("gone")],
    ids=lambda error: type(error).__name__,
)
async def test_other_errors_are_the_whole_batchs(error: PolicyServerError) -> None:
    backend = replace(integer_backend(), error=error, poison=3.0)

    with pytest.raises(type(error), match=r"^gone$"):
        await calls_of(backend).infer(rows_of(10))
    assert backend.batches == [10]


async def test_unforeseen_exception_is_told_without_its_text() -> None:
    class TooMany(FakeBackend):
        async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
            if len(inputs) > 1:
                raise ZeroDivisionError("secret")
            return await super().infer(inputs)

    known = integer_backend()

    with pytest.raises(PolicyFailedError, match=f"^{HIDDEN}$") as caught:
        await calls_of(TooMany(known.signature, known.bias)).infer(rows_of(4))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_late_call_is_an_overload_and_frees_its_place() -> None:
    backend = replace(integer_backend(), gate=asyncio.Event())
    assert backend.gate is not None
    calls = calls_of(backend, timeout_s=0.05)

    late = await asyncio.gather(
        *(calls.infer(rows_of(3)) for _ in range(3)), return_exceptions=True
    )
    backend.gate.set()
    outputs = await calls.infer(rows_of(3))

    assert all(isinstance(error, OverloadedError) for error in late)
    assert len(outputs.actions) == 3
