"""Calls of batches: how long a batch waits for its first one, and what nobody waits for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from policy_server.errors import OverloadedError
from policy_server.metrics import Metrics
from policy_server.policy import DEFAULT_POLICY, PolicyInputs, PolicyOutputs
from policy_server.serving import Limits, Scheduler
from tests.support.fakes import FakeBackend, gated, hold, integer_backend
from tests.support.waiting import turns, until

_ROW_S = 0.01


def rows_of(count: int) -> PolicyInputs:
    """Return so many observations."""
    return PolicyInputs.of(np.zeros((count, 2), np.float32))


@dataclass
class SlowBackend(FakeBackend):
    """A policy that takes 10 ms a row, one call after the other."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer after the time of the calls before this one."""
        async with self.turn:
            await asyncio.sleep(_ROW_S * len(inputs))
            return await super().infer(inputs)


def scheduler_of(backend: FakeBackend, metrics: Metrics, **changes: Any) -> Scheduler:  # noqa: ANN401 -- limits
    """Return a scheduler with limits that a test changes."""
    usual = {"max_batch_size": 4, "max_queue_size": 100, "timeout_s": 60.0, "max_wait_s": 60.0}
    return Scheduler(backend, Limits(**{**usual, **changes}), metrics.of(DEFAULT_POLICY))


async def measured(**changes: Any) -> tuple[SlowBackend, Metrics, Scheduler]:  # noqa: ANN401 -- limits
    """Return a slow policy behind a scheduler that knows its rate, from four calls."""
    usual = integer_backend()
    backend, metrics = SlowBackend(usual.signature, usual.bias), Metrics()
    scheduler = scheduler_of(backend, metrics, **changes)
    for _ in range(4):
        await scheduler.infer(rows_of(2))
    backend.batches.clear()
    return backend, metrics, scheduler


async def test_batch_that_would_wait_too_long_is_refused_at_once() -> None:
    backend, metrics, scheduler = await measured(max_wait_s=0.2)
    accepted = [asyncio.create_task(scheduler.infer(rows_of(50)))]
    await turns()

    with pytest.raises(OverloadedError) as refused:
        await scheduler.infer(rows_of(1))
    was_busy = not backend.batches
    answered = await asyncio.gather(*accepted)

    assert was_busy
    assert refused.value.message == (
        "50 observations of batches are waiting, and this batch is not to be expected to begin "
        "within 0.2 s; try again in a second"
    )
    assert refused.value.headers == {"retry-after": "1"}
    assert [len(answer) for answer in answered] == [50]
    assert metrics.snapshot().numbers["rejected"] == {("queue_slow", DEFAULT_POLICY): 1}
    # Nobody is in front of it, so that it is accepted whatever its own length.
    assert len(await scheduler.infer(rows_of(100))) == 100


async def test_rows_that_are_computed_by_now_are_in_front_of_nobody() -> None:
    backend, _, scheduler = await measured(max_wait_s=1.0)
    first = asyncio.create_task(scheduler.infer(rows_of(150)))
    await until(backend.turn.locked)
    # A call of 1.5 s that began 1.2 s ago leaves 0.3 s to wait.
    await asyncio.sleep(1.2)

    beside = await scheduler.infer(rows_of(1))

    assert (len(await first), len(beside)) == (150, 1)


async def test_later_rows_of_a_batch_that_was_accepted_are_not_refused() -> None:
    _, _, scheduler = await measured(max_wait_s=0.05)

    parts = [scheduler.infer(rows_of(10), first=first) for first in (0, 10, 20)]
    answered = await asyncio.gather(*parts)

    assert [len(answer) for answer in answered] == [10] * 3


@pytest.mark.parametrize(("max_wait_s", "room"), [(60.0, 1.0), (30.0, 0.9)])
async def test_wait_without_a_bound_of_its_own_is_accepted_up_to_the_timeout(
    max_wait_s: float, room: float
) -> None:
    _, _, scheduler = await measured(timeout_s=60.0, max_wait_s=max_wait_s)

    assert scheduler.rows_patience_s == pytest.approx(room * max_wait_s, abs=0.5)


async def test_batch_that_could_only_time_out_is_refused_when_it_comes() -> None:
    backend, _, scheduler = await measured(timeout_s=1.0, max_wait_s=1.0)
    ahead = [asyncio.create_task(scheduler.infer(rows_of(80))) for _ in range(2)]
    await turns()

    with pytest.raises(OverloadedError, match="not to be expected to begin within 1 s"):
        await scheduler.infer(rows_of(1))
    was_busy = not backend.batches
    await asyncio.gather(*ahead, return_exceptions=True)

    assert was_busy


async def test_rows_that_nobody_waits_for_are_neither_computed_nor_counted() -> None:
    backend, _, scheduler = await measured(max_wait_s=3.0)
    computed = asyncio.create_task(scheduler.infer(rows_of(40)))
    await until(backend.turn.locked)
    gone = [asyncio.create_task(scheduler.infer(rows_of(10), first=1)) for _ in range(100)]
    await turns()
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)

    answer = await scheduler.infer(rows_of(3))

    assert (len(await computed), len(answer)) == (40, 3)
    # One more had been sent already.
    assert backend.batches == [40, 10, 3]


async def test_rows_whose_deadline_has_passed_are_not_computed() -> None:
    backend = gated(integer_backend())
    scheduler = scheduler_of(backend, Metrics(), timeout_s=0.2)
    gate = hold(backend)
    late = [asyncio.create_task(scheduler.infer(rows_of(size))) for size in (1, 2, 3, 4)]
    await turns()
    begun = list(backend.batches)
    answers = await asyncio.gather(*late, return_exceptions=True)
    gate.set()
    await scheduler.infer(rows_of(5))

    assert [type(answer) for answer in answers] == [OverloadedError] * 4
    assert backend.batches == [*begun, 5]


async def test_policy_whose_calls_are_late_is_asked_for_less_until_they_are_not() -> None:
    backend, _, scheduler = await measured(max_wait_s=0.3)
    room = scheduler.rows_patience_s
    for _ in range(3):
        async with backend.turn:
            # The policy stands still, longer than batches may wait.
            waiting = [asyncio.create_task(scheduler.infer(rows_of(1))) for _ in range(3)]
            await asyncio.sleep(0.35)
        await asyncio.gather(*waiting)

    assert scheduler.rows_patience_s < room
