"""Deadlines that clients set: what comes too late is not computed, and never holds others up."""

from __future__ import annotations

import asyncio
import time

import pytest

from policy_server.errors import DeadlineError, OverloadedError
from policy_server.metrics import Metrics, PolicyMetrics
from policy_server.policy import DEFAULT_POLICY
from policy_server.serving import Limits, Question, Scheduler
from policy_server.serving.deadlines import Deadlines, within
from policy_server.serving.questions import FutureWaiting
from tests.support.fakes import FakeBackend, integer_backend
from tests.support.pages import rendered
from tests.support.waiting import until

LIMITS = Limits(max_batch_size=4, max_queue_size=100, timeout_s=5.0, max_wait_s=1e9)


def question(timeout_s: float | None = None) -> Question:
    """Return a question that is of use for so many seconds."""
    asked = Question([0.0, 0.0], "predict_deterministic")
    asked.deadline = None if timeout_s is None else time.perf_counter() + timeout_s
    return asked


def held_up() -> FakeBackend:
    """Return a backend whose calls wait at a gate."""
    backend = integer_backend()
    backend.gate = asyncio.Event()
    return backend


async def busy(scheduler: Scheduler, backend: FakeBackend) -> list[asyncio.Task[object]]:
    """Start as many calls as are in flight at once."""
    tasks: list[asyncio.Task[object]] = []
    for _ in range(2):
        tasks.append(asyncio.create_task(scheduler.answer(question())))
        await until(lambda: len(backend.batches) == len(tasks))
    return tasks


async def test_question_that_waits_longer_than_its_deadline_is_not_computed() -> None:
    backend, metrics = held_up(), Metrics()
    scheduler = Scheduler(backend, LIMITS, metrics.of(DEFAULT_POLICY))
    assert backend.gate is not None
    first = await busy(scheduler, backend)
    patient = asyncio.create_task(scheduler.answer(question()))

    with pytest.raises(DeadlineError, match="x-request-timeout-ms"):
        await scheduler.answer(question(0.1))

    assert scheduler.waiting == 3
    backend.gate.set()
    await asyncio.gather(*first, patient)
    assert backend.batches == [1, 1, 1]
    counted = rendered(metrics)
    assert counted[f"rejected_total policy={DEFAULT_POLICY} reason=deadline"] == 1


async def test_question_whose_deadline_passes_while_it_is_computed_fails() -> None:
    backend = held_up()
    scheduler = Scheduler(backend, LIMITS, Metrics().of(DEFAULT_POLICY))
    assert backend.gate is not None
    patient = asyncio.create_task(scheduler.answer(question()))

    with pytest.raises(DeadlineError):
        await scheduler.answer(question(0.1))

    assert backend.batches == [2]
    backend.gate.set()
    assert (await patient).index == 1
    assert scheduler.waiting == 0


async def test_question_with_a_passed_deadline_is_refused_at_once() -> None:
    backend = integer_backend()
    scheduler = Scheduler(backend, LIMITS, Metrics().of(DEFAULT_POLICY))

    with pytest.raises(DeadlineError):
        await scheduler.answer(question(-0.001))

    assert backend.batches == []
    assert scheduler.waiting == 0


async def test_answer_after_its_deadline_fails_though_the_event_loop_was_busy() -> None:
    class Slow(FakeBackend):
        async def infer(self, inputs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 -- as its base
            end = time.perf_counter() + 0.03
            while time.perf_counter() < end:
                """Keep the event loop, as a policy in this process does."""
            return await super().infer(inputs)

    usual = integer_backend()
    scheduler = Scheduler(Slow(usual.signature, usual.bias), LIMITS, Metrics().of(DEFAULT_POLICY))

    with pytest.raises(DeadlineError):
        await scheduler.answer(question(0.01))


async def test_answer_before_its_deadline_is_given() -> None:
    scheduler = Scheduler(integer_backend(), LIMITS, Metrics().of(DEFAULT_POLICY))

    assert (await scheduler.answer(question(4.0))).index == 0


async def test_limit_of_the_server_stays_an_overload() -> None:
    backend = held_up()
    limits = Limits(max_batch_size=4, max_queue_size=100, timeout_s=0.02, max_wait_s=1e9)
    scheduler = Scheduler(backend, limits, Metrics().of(DEFAULT_POLICY))

    with pytest.raises(OverloadedError, match=r"no answer within 0\.02 s"):
        await scheduler.answer(question(60.0))


async def test_answered_questions_are_not_kept_until_their_deadlines() -> None:
    deadlines = Deadlines(Metrics().of(DEFAULT_POLICY))
    for _ in range(1000):
        waiting = FutureWaiting(question())
        deadlines.add(waiting, time.perf_counter() + 60)
        waiting.future.cancel()

    assert len(deadlines.waiting) < 130


async def test_earlier_deadline_behind_a_later_one_is_kept() -> None:
    deadlines = Deadlines(Metrics().of(DEFAULT_POLICY))
    late, early = FutureWaiting(question()), FutureWaiting(question())
    deadlines.add(late, time.perf_counter() + 60)
    deadlines.add(early, time.perf_counter() + 0.005)

    with pytest.raises(DeadlineError):
        await early.future

    assert not late.is_done


@pytest.mark.parametrize("timeout_s", [-0.001, 0.005], ids=["before", "in it"])
async def test_block_ends_at_its_deadline(timeout_s: float) -> None:
    metrics = Metrics()
    never = asyncio.Event()

    with pytest.raises(DeadlineError):
        async with within(time.perf_counter() + timeout_s, metrics.of(DEFAULT_POLICY)):
            await never.wait()

    assert rendered(metrics)[f"rejected_total policy={DEFAULT_POLICY} reason=deadline"] == 1


async def test_timeout_of_a_block_itself_is_its_own() -> None:
    counted: PolicyMetrics = Metrics().of(DEFAULT_POLICY)

    with pytest.raises(TimeoutError, match="its own"):
        async with within(time.perf_counter() + 60, counted):
            raise TimeoutError("its own")
