"""Many requests, one call: batches, limits, deadlines, and one bad observation among good ones."""

from __future__ import annotations

import asyncio
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

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
from policy_server.metrics import Metrics, PolicyMetrics
from policy_server.policy import (
    ANSWER_KINDS,
    DEFAULT_POLICY,
    PolicyBackend,
    PolicyInputs,
    PolicyOutputs,
)
from policy_server.serving import AnsweredCall, Limits, Question, Scheduler, Waiting
from tests.support.fakes import (
    FakeBackend,
    Sending,
    immediate_backend,
    integer_backend,
    sending_backend,
    summing_backend,
)
from tests.support.waiting import turns, until


def scheduler_of(
    backend: PolicyBackend,
    *,
    metrics: PolicyMetrics | None = None,
    **changes: Any,  # noqa: ANN401 -- limits
) -> Scheduler:
    """Return a scheduler with limits that a test changes."""
    usual = {"max_batch_size": 4, "max_queue_size": 100, "timeout_s": 5.0, "max_wait_s": 1e9}
    limits = {**usual, **changes}
    return Scheduler(backend, Limits(**limits), metrics or Metrics().of(DEFAULT_POLICY))


def question(start: float = 0.0, *, width: int = 2) -> Question:
    """Return a question about the mode for an observation that starts with a number."""
    return Question([start, *[0.0] * (width - 1)], "predict_deterministic")


async def ask(scheduler: Scheduler, *starts: float) -> list[Any]:
    """Ask for several observations at once; give the actions, or the errors."""
    asked = [scheduler.answer(question(start)) for start in starts]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return [
        answer
        if isinstance(answer, BaseException)
        else answer.call.outputs.actions[answer.index, 0]
        for answer in answers
    ]


async def occupied(scheduler: Scheduler, backend: FakeBackend) -> list[asyncio.Task[list[Any]]]:
    """Start as many calls as the scheduler has in flight at once; they wait at the gate."""
    tasks = []
    for _ in range(2):
        tasks.append(asyncio.create_task(ask(scheduler, 0.0)))
        await until(lambda: len(backend.batches) == len(tasks))
    return tasks


async def test_requests_of_one_moment_share_calls_and_get_their_own_answers() -> None:
    backend = integer_backend()
    scheduler = scheduler_of(backend)

    answers = await ask(scheduler, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0)

    assert answers == [2, 0, 2, 0, 0, 2]
    assert backend.batches == [4, 2]


async def test_lone_request_is_called_at_once() -> None:
    backend = integer_backend()

    assert await ask(scheduler_of(backend), 0.0) == [2]
    assert backend.batches == [1]


async def test_what_arrives_during_a_call_rides_in_the_next() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    scheduler = scheduler_of(backend)

    first = await occupied(scheduler, backend)
    later = [asyncio.create_task(ask(scheduler, 9.0)) for _ in range(3)]
    await turns()
    during = list(backend.batches)
    backend.gate.set()

    assert [await task for task in first] == [[2]] * 2
    assert [await task for task in later] == [[0]] * 3
    assert (during, backend.batches) == ([1, 1], [1, 1, 3])


async def test_rows_of_different_widths_never_share_a_call() -> None:
    backend = integer_backend()
    scheduler = scheduler_of(backend)

    await asyncio.gather(*(scheduler.ask(question(width=width)) for width in (2, 2, 3, 2)))

    assert backend.batches == [2, 1, 1]


async def test_seeds_and_kinds_stay_with_their_rows() -> None:
    scheduler = scheduler_of(integer_backend((0.0, 0.0, 0.0, 0.0)))

    async def draw(seed: int) -> float:
        answer = await scheduler.ask(Question([0.0, 0.0], "predict", seed))
        return float(answer.call.outputs.actions[answer.index, 0])

    alone = [await draw(seed) for seed in range(8)]

    assert await asyncio.gather(*map(draw, range(8))) == alone
    assert len(set(alone)) > 1


OF_ONE_ROW = [
    PolicyFailedError("no"),
    DistributionError("no"),
    UnsupportedAnswerError("no"),
    PolicyServerError("no"),
    ValueError("no"),
    IndexError("no"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OF_ONE_ROW, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", range(4))
async def test_one_bad_observation_fails_alone(error: Exception, place: int) -> None:
    backend = integer_backend()
    backend.error = error
    starts = [9.0] * 4
    starts[place] = backend.poison

    answers = await ask(scheduler_of(backend), *starts)

    expected = type(error) if isinstance(error, PolicyServerError) else PolicyFailedError
    assert type(answers.pop(place)) is expected
    assert answers == [0, 0, 0]
    assert len(backend.batches) <= 1 + 2 * 2


@pytest.mark.parametrize("place", [0, 77, 255])
async def test_one_bad_observation_of_many_is_found_in_logarithmically_many_calls(
    place: int,
) -> None:
    backend = integer_backend()
    backend.error = IndexError("no")
    starts = [9.0] * 256
    starts[place] = backend.poison

    answers = await ask(scheduler_of(backend, max_batch_size=256, max_queue_size=256), *starts)

    assert [index for index, answer in enumerate(answers) if answer != 0] == [place]
    assert len(backend.batches) == 1 + 2 * 8


async def test_search_for_a_bad_observation_keeps_the_deadline() -> None:
    class Slow(FakeBackend):
        async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
            await asyncio.sleep(0.04)
            return await super().infer(inputs)

    known = integer_backend()
    backend = Slow(known.signature, known.bias, error=ValueError("no"))
    loop = asyncio.get_running_loop()
    started = loop.time()

    answers = await ask(
        scheduler_of(backend, max_batch_size=64, timeout_s=0.15), *[backend.poison] * 64
    )

    assert loop.time() - started < 3
    assert {type(answer) for answer in answers} == {OverloadedError}
    assert len(backend.batches) < 10


async def test_who_gives_up_during_the_search_is_not_asked_for_again() -> None:
    backend = integer_backend()
    backend.error = ValueError("no")
    backend.gate = asyncio.Event()
    scheduler = scheduler_of(backend)

    tasks = [
        asyncio.create_task(ask(scheduler, start)) for start in (backend.poison, 9.0, 9.0, 9.0)
    ]
    await turns()
    for task in tasks[1:]:
        task.cancel()
    await turns()
    backend.gate.set()

    (answer,) = await tasks[0]
    assert isinstance(answer, PolicyFailedError)
    assert backend.batches == [4, 1]


async def test_error_of_all_is_given_to_all_without_asking_again() -> None:
    backend = integer_backend()
    backend.error = NotReadyError("no replica")

    answers = await ask(scheduler_of(backend), backend.poison, 0.0)

    assert [type(answer) for answer in answers] == [NotReadyError] * 2
    assert backend.batches == [2]


async def test_foreign_error_is_hidden_and_kept_for_the_log() -> None:
    backend = integer_backend()
    backend.error = ValueError("secret path")

    answers = await ask(scheduler_of(backend), backend.poison, 9.0, 9.0)

    assert isinstance(answers[0], PolicyFailedError)
    assert answers[0].message == "the policy failed; the server's log has the reason"
    # Once: the errors of the calls that looked for the observation don't follow from each other.
    told = "".join(traceback.format_exception(answers[0]))
    assert told.count("ValueError: secret path") == 1


async def test_full_queue_refuses_and_frees_its_places() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    scheduler = scheduler_of(backend, max_queue_size=2)

    waiting = asyncio.create_task(ask(scheduler, 0.0, 0.0))
    await turns()
    (refused,) = await ask(scheduler, 0.0)
    backend.gate.set()

    assert isinstance(refused, OverloadedError)
    assert refused.message == "2 observations are waiting already; try again in a second"
    assert await waiting == [2, 2]
    assert await ask(scheduler, 0.0, 0.0) == [2, 2]


@dataclass
class SlowBackend(FakeBackend):
    """A policy whose calls take 20 ms, one after the other."""

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer after the time of the calls before this one."""
        async with self.turn:
            await asyncio.sleep(0.02)
            return await super().infer(inputs)

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


async def bounded(*, max_wait_s: float) -> tuple[SlowBackend, Metrics, Scheduler]:
    """Return a slow policy behind a scheduler that knows its rate, from four calls."""
    usual = integer_backend()
    backend, metrics = SlowBackend(usual.signature, usual.bias), Metrics()
    scheduler = scheduler_of(
        backend, metrics=metrics.of(DEFAULT_POLICY), max_wait_s=max_wait_s, max_batch_size=1
    )
    for _ in range(4):
        assert await ask(scheduler, 0.0) == [2]
    return backend, metrics, scheduler


async def test_question_that_would_wait_too_long_is_refused_at_once() -> None:
    backend, _, scheduler = await bounded(max_wait_s=0.05)

    answered = await ask(scheduler, *[0.0] * 20)

    assert answered[0] == 2
    refused = [answer for answer in answered if isinstance(answer, OverloadedError)]
    assert len(refused) >= 18
    assert refused == answered[-len(refused) :]
    assert refused[0].message.endswith(
        " observations are waiting, and no answer is to be expected within 0.05 s; "
        "try again in a second"
    )
    assert refused[0].headers == {"retry-after": "1"}
    assert len(backend.batches) == 4 + 20 - len(refused)
    assert await ask(scheduler, 0.0) == [2]


async def test_question_that_can_be_answered_in_time_no_more_is_not_computed() -> None:
    backend, metrics, scheduler = await bounded(max_wait_s=0.5)

    # The policy stands still, longer than the questions may wait.
    async with backend.turn:
        asked = asyncio.create_task(ask(scheduler, *[0.0] * 5))
        await until(lambda: scheduler.waiting == 5)
        await asyncio.sleep(0.55)
    answered = await asked

    # Two were in calls already.
    assert answered[:2] == [2, 2]
    assert [type(answer) for answer in answered[2:]] == [OverloadedError] * 3
    assert answered[2].message.endswith(" within 0.5 s; try again in a second")
    assert sum(backend.batches) == 4 + 2
    assert metrics.snapshot().numbers["rejected"] == {("queue_slow", DEFAULT_POLICY): 3}
    assert await ask(scheduler, 0.0) == [2]


async def test_late_answer_is_an_overload() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()

    (answer,) = await ask(scheduler_of(backend, timeout_s=0.02), 0.0)

    assert isinstance(answer, OverloadedError)
    assert answer.message == "no answer within 0.02 s; try again in a second"


async def test_calls_that_hang_give_their_places_up() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    scheduler = scheduler_of(backend, timeout_s=0.2)

    late = [await task for task in await occupied(scheduler, backend)]
    backend.gate = None

    assert [type(error) for (error,) in late] == [OverloadedError] * 2
    assert await ask(scheduler, 0.0) == [2]


async def test_request_that_gave_up_takes_no_place_in_a_batch() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    scheduler = scheduler_of(backend)

    first = await occupied(scheduler, backend)
    abandoned = [asyncio.create_task(ask(scheduler, 0.0)) for _ in range(2)]
    kept = asyncio.create_task(ask(scheduler, 9.0))
    await turns()
    for task in abandoned:
        task.cancel()
    await turns()
    backend.gate.set()

    assert ([await task for task in first], await kept) == ([[2]] * 2, [0])
    assert backend.batches == [1, 1, 1]


async def test_request_that_gives_up_during_its_call_is_forgotten() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    scheduler = scheduler_of(backend)

    both = [asyncio.create_task(ask(scheduler, 0.0)) for _ in range(2)]
    await turns()
    both[0].cancel()
    await turns()
    backend.gate.set()

    assert await both[1] == [2]
    assert both[0].cancelled()


async def test_request_that_gives_up_before_a_failing_call_is_forgotten() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    backend.error = PolicyFailedError("no")
    scheduler = scheduler_of(backend)

    both = [asyncio.create_task(ask(scheduler, backend.poison)) for _ in range(2)]
    await turns()
    both[0].cancel()
    await turns()
    backend.gate.set()

    (answer,) = await both[1]
    assert isinstance(answer, PolicyFailedError)


async def test_queue_of_abandoned_requests_makes_no_call() -> None:
    backend = integer_backend()
    scheduler = scheduler_of(backend)

    answer = scheduler.ask(question())
    answer.cancel()
    await turns()

    assert answer.cancelled()
    assert backend.batches == []


async def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    scheduler = scheduler_of(backend, max_batch_size=1)

    waiting = asyncio.create_task(ask(scheduler, 0.0, 9.0, 0.0))
    await turns()
    closing = asyncio.create_task(scheduler.aclose())
    await turns()
    (refused,) = await ask(scheduler, 0.0)
    backend.gate.set()
    await closing

    assert isinstance(refused, NotReadyError)
    assert await waiting == [2, 0, 2]


async def test_rows_have_the_policys_own_precision() -> None:
    known = integer_backend()
    seen = []
    for dtype in ("float32", "int64"):
        backend = FakeBackend(replace(known.signature, observation_dtype=dtype), known.bias)
        await ask(scheduler_of(backend), 0.0)
        seen += [inputs.observations.dtype for inputs in backend.calls]

    assert seen == [np.float32, np.float64]


async def test_every_observation_of_a_call_that_hangs_is_counted() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    metrics = Metrics()
    scheduler = scheduler_of(backend, timeout_s=0.05, metrics=metrics.of("walker"))

    answers = await ask(scheduler, 0.0, 9.0, 0.0)

    assert [type(answer) for answer in answers] == [OverloadedError] * 3
    assert metrics.snapshot().numbers["rejected"] == {("timeout", "walker"): 3.0}


async def test_observation_rides_along_and_leaves_its_place_when_it_is_done() -> None:
    backend = integer_backend()
    scheduler = scheduler_of(backend, max_queue_size=2)

    asked = [scheduler.ask(question(float(i))) for i in range(2)]
    with pytest.raises(OverloadedError):
        scheduler.ask(question())
    indices = [(await answer).index for answer in asked]

    assert indices == [0, 1]
    assert backend.batches == [2]
    await scheduler.ask(question())


async def test_cancelled_question_frees_its_place() -> None:
    backend = integer_backend()
    scheduler = scheduler_of(backend, max_queue_size=1)

    scheduler.ask(question()).cancel()
    await turns(1)
    answer = await scheduler.ask(question())

    assert len(answer.call.outputs) == 1
    assert backend.batches == [1]


async def test_abandoned_observations_do_not_pile_up_behind_a_call_that_hangs() -> None:
    class Row(list[float]):
        """An observation that can be seen to be gone."""

    backend = integer_backend()
    backend.gate = asyncio.Event()
    metrics = Metrics()
    scheduler = scheduler_of(
        backend,
        max_queue_size=10,
        timeout_s=0.2,
        metrics=metrics.of("walker"),
    )
    hanging = asyncio.create_task(ask(scheduler, 0.0))
    await until(lambda: backend.batches == [1])
    rows: list[weakref.ref[Row]] = []

    for _ in range(3000):
        row = Row([0.0, 0.0])
        rows.append(weakref.ref(row))
        scheduler.ask(Question(row, "predict")).cancel()
        del row
        await turns(1)

    assert sum(row() is not None for row in rows) < 100
    assert isinstance((await hanging)[0], OverloadedError)
    backend.gate = None
    assert await ask(scheduler, 0.0) == [2]
    assert metrics.snapshot().numbers["rejected"] == {("timeout", "walker"): 1.0}


def rows_of(count: int, *, first: int = 0) -> PolicyInputs:
    """Return observations whose first number is their index in the batch."""
    observations = np.zeros((count, 2), np.float32)
    observations[:, 0] = np.arange(first, first + count)
    return PolicyInputs.of(observations, is_deterministic=True)


async def test_rows_are_answered_by_one_call() -> None:
    backend = integer_backend()

    outputs = await scheduler_of(backend).infer(rows_of(100))

    assert backend.batches == [100]
    assert outputs.actions[:, 0].tolist() == [2, 2] + [0] * 98


async def test_no_more_than_two_calls_run_at_once() -> None:
    backend = replace(integer_backend(), gate=asyncio.Event())
    assert backend.gate is not None
    scheduler = scheduler_of(backend)
    tasks = [asyncio.create_task(scheduler.infer(rows_of(3))) for _ in range(5)]
    await turns()

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
        await scheduler_of(backend).infer(rows_of(100, first=40), first=40)

    assert caught.value.__cause__ is error
    assert len(backend.batches) <= 1 + 2 * 7


async def test_rows_that_fail_only_together_are_answered() -> None:
    class TooMany(FakeBackend):
        async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
            if len(inputs) > 1:
                raise PolicyFailedError("too many")
            return await super().infer(inputs)

    known = integer_backend()

    outputs = await scheduler_of(TooMany(known.signature, known.bias)).infer(rows_of(4))

    assert outputs.actions[:, 0].tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize(
    "error",
    [NotReadyError("gone"), OverloadedError("gone"), UnsupportedAnswerError("gone")],
    ids=lambda error: type(error).__name__,
)
async def test_other_errors_are_the_whole_batchs(error: PolicyServerError) -> None:
    backend = replace(integer_backend(), error=error, poison=3.0)

    with pytest.raises(type(error), match=r"^gone$"):
        await scheduler_of(backend).infer(rows_of(10))
    assert backend.batches == [10]


async def test_late_call_is_an_overload_and_frees_its_place() -> None:
    backend = replace(integer_backend(), gate=asyncio.Event())
    assert backend.gate is not None
    scheduler = scheduler_of(backend, timeout_s=0.05)

    late = await asyncio.gather(
        *(scheduler.infer(rows_of(3)) for _ in range(3)), return_exceptions=True
    )
    backend.gate.set()
    outputs = await scheduler.infer(rows_of(3))

    assert [type(error) for error in late] == [OverloadedError] * 3
    assert len(outputs.actions) == 3


async def test_batch_is_cut_into_calls_and_put_together_in_order() -> None:
    backend = integer_backend()

    outputs = await scheduler_of(backend).infer(rows_of(2500))

    assert backend.batches == [1024, 1024, 452]
    assert outputs.actions[:, 0].tolist() == [2, 2] + [0] * 2498


async def test_single_question_does_not_wait_for_a_batch() -> None:
    backend = replace(integer_backend(), gate=asyncio.Event())
    assert backend.gate is not None
    scheduler = scheduler_of(backend)
    batch = asyncio.create_task(scheduler.infer(rows_of(10_240)))
    await until(lambda: len(backend.batches) == 2)

    single = asyncio.create_task(ask(scheduler, 9.0))
    await until(lambda: len(backend.batches) == 3)
    during = list(backend.batches)
    backend.gate.set()

    assert (await single, len(await batch)) == ([0], 10_240)
    assert during == [1024, 1024, 1]


async def test_batch_does_not_wait_for_single_questions() -> None:
    backend = replace(integer_backend(), gate=asyncio.Event())
    assert backend.gate is not None
    scheduler = scheduler_of(backend, max_batch_size=1)
    singles = asyncio.create_task(ask(scheduler, *[0.0] * 50))
    await until(lambda: len(backend.batches) == 2)

    batch = asyncio.create_task(scheduler.infer(rows_of(7)))
    await until(lambda: len(backend.batches) == 3)
    during = list(backend.batches)
    backend.gate.set()

    assert (await singles, len(await batch)) == ([2] * 50, 7)
    assert during == [1, 1, 7]


async def test_distribution_travels_only_when_it_was_asked_for() -> None:
    backend = integer_backend()
    scheduler = scheduler_of(backend)

    without = await scheduler.ask(Question([0.0, 0.0], "predict"))
    among = [scheduler.ask(Question([0.0, 0.0], kind)) for kind in ANSWER_KINDS]
    answers = await asyncio.gather(*among)

    assert without.call.outputs.distribution is None
    assert answers[2].call.outputs.distribution is not None
    assert [inputs.wants_distribution for inputs in backend.calls] == [False, True]


@dataclass
class Replicas(FakeBackend):
    """Replicas, each of which takes a millisecond for an observation, one call after another.

    Attributes:
        most_busy: how many of them computed at once.
    """

    most_busy: int = 0
    _busy: int = 0

    def __post_init__(self) -> None:
        self._is_free = asyncio.Semaphore(self.capacity)

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        async with self._is_free:
            self._busy += 1
            self.most_busy = max(self.most_busy, self._busy)
            await asyncio.sleep(len(inputs) * 1e-3)
            self._busy -= 1
            return await super().infer(inputs)


@pytest.mark.parametrize("replicas", [1, 2, 8])
async def test_replicas_share_what_waits(replicas: int) -> None:
    known = integer_backend()
    backend = Replicas(known.signature, known.bias, capacity=replicas)
    scheduler = scheduler_of(backend, max_batch_size=1024, max_queue_size=1024)
    # What a row costs is known from the first call on.
    await ask(scheduler, 0.0)

    answers = await ask(scheduler, *[9.0] * 1024)

    assert answers == [0] * 1024
    shares = backend.batches[1:]
    assert max(shares) == 1024 // replicas
    assert backend.most_busy == replicas


async def test_questions_of_a_fast_policy_stay_together_whatever_the_replicas() -> None:
    known = integer_backend()
    backend = replace(known, capacity=8)
    scheduler = scheduler_of(backend, max_batch_size=256)
    # One of them is quick, however busy the machine is.
    for _ in range(100):
        await ask(scheduler, 0.0)

    await ask(scheduler, *[9.0] * 8)

    assert backend.batches[100:] == [8]


async def test_closing_waits_for_a_batch_whose_body_is_still_read() -> None:
    scheduler = scheduler_of(integer_backend())
    with scheduler.held():
        closing = asyncio.create_task(scheduler.aclose())
        await turns()
        outputs = await scheduler.infer(rows_of(5))
        was_closed = closing.done()
    await closing

    assert (len(outputs), was_closed) == (5, False)


async def test_queue_is_watched_until_the_scheduler_is_closed() -> None:
    metrics = Metrics()
    schedulers = [scheduler_of(integer_backend(), metrics=metrics.of(name)) for name in ("a", "b")]

    before = metrics.snapshot().numbers["queue_depth"]
    await schedulers[0].aclose()

    assert before == {("a",): 0.0, ("b",): 0.0}
    assert metrics.snapshot().numbers["queue_depth"] == {("b",): 0.0}


class OddBackend(FakeBackend):
    """A policy whose answers are as many as a test says, or that is cancelled within."""

    rows = 0
    is_cancelled = False

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer other rows than were asked for."""
        if self.is_cancelled:
            raise asyncio.CancelledError
        width = inputs.observations.shape[1]
        return await super().infer(PolicyInputs.of(np.zeros((self.rows, width), np.float32)))


def odd_backend(*, rows: int = 0, is_cancelled: bool = False) -> OddBackend:
    """Return a policy that does not keep to `PolicyBackend.infer`."""
    plain = integer_backend()
    backend = OddBackend(plain.signature, plain.bias)
    backend.rows, backend.is_cancelled = rows, is_cancelled
    return backend


@pytest.mark.parametrize("rows", [0, 5])
async def test_answers_of_another_number_than_the_questions_are_a_failure(rows: int) -> None:
    scheduler = scheduler_of(odd_backend(rows=rows))

    (single,) = await ask(scheduler, 0.0)
    with pytest.raises(PolicyFailedError, match=f"observation 0: expected 1 answers .* got {rows}"):
        await scheduler.infer(PolicyInputs.of(np.zeros((3, 2), np.float32)))

    assert isinstance(single, PolicyFailedError)
    assert single.message == f"expected 1 answers of the policy, got {rows}"
    await scheduler.aclose()


async def test_call_that_the_backend_cancels_is_an_error_for_all_who_wait() -> None:
    scheduler = scheduler_of(odd_backend(is_cancelled=True))

    singles = await ask(scheduler, 0.0, 1.0)
    with pytest.raises(NotReadyError, match="cancelled; try again"):
        await scheduler.infer(PolicyInputs.of(np.zeros((3, 2), np.float32)))

    assert [type(error) for error in singles] == [NotReadyError] * 2
    await scheduler.aclose()


async def test_inputs_without_a_row_have_outputs_without_one() -> None:
    scheduler = scheduler_of(integer_backend())

    outputs = await scheduler.infer(PolicyInputs.of(np.zeros((0, 2), np.float32)))

    assert (outputs.actions.shape, len(outputs)) == ((0, 1), 0)


async def test_rows_are_refused_once_closed_unless_held_open() -> None:
    scheduler, rows = scheduler_of(integer_backend()), PolicyInputs.of(np.zeros((2, 2), np.float32))
    with scheduler.held():
        closing = asyncio.create_task(scheduler.aclose())
        await turns()
        held = await scheduler.infer(rows)
    await closing

    with pytest.raises(NotReadyError, match="shutting down"):
        await scheduler.infer(rows)
    assert len(held) == 2


async def test_each_question_of_a_call_that_hangs_has_its_own_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The clock is put forward by minutes: no turn of the loop comes so late, whatever else runs.
    loop, ahead = asyncio.get_running_loop(), 0.0
    monkeypatch.setattr(loop, "time", lambda: time.monotonic() + ahead)
    backend = integer_backend()
    backend.gate = asyncio.Event()
    metrics = Metrics()
    scheduler = scheduler_of(backend, timeout_s=1000.0, metrics=metrics.of("walker"))
    blocking = await occupied(scheduler, backend)
    ahead = 400.0
    early = scheduler.ask(question())
    ahead = 800.0
    late = scheduler.ask(question())
    ahead = 1200.0
    # Both ride in the call that follows when the two that hang are given up.
    await blocking[0]
    await until(lambda: backend.batches == [1, 1, 2])

    ahead = 1600.0
    with pytest.raises(OverloadedError):
        await early
    was_waiting = not late.done()
    ahead = 2000.0
    with pytest.raises(OverloadedError):
        await late

    assert was_waiting
    await until(lambda: metrics.snapshot().numbers["rejected"] == {("timeout", "walker"): 4.0})


# Memory


async def test_states_of_many_episodes_ride_in_one_call_a_row_each() -> None:
    backend = summing_backend()
    scheduler = scheduler_of(backend)
    states: list[float | None] = [2.0, None, 1.0]

    answers = await asyncio.gather(
        *(
            scheduler.answer(
                replace(question(1.0), state=None if sum_ is None else np.array([sum_], np.float32))
            )
            for sum_ in states
        )
    )

    assert backend.batches == [3]
    assert [answer.call.outputs.actions[answer.index, 0] for answer in answers] == [0, 1, 2]
    assert [None if answer.state is None else answer.state.tolist() for answer in answers] == [
        [0.0],
        [1.0],
        [2.0],
    ]


async def test_questions_without_state_ask_for_none() -> None:
    backend = summing_backend()

    answers = [await scheduler_of(backend).answer(question(1.0)) for _ in range(2)]

    assert [call.state for call in backend.calls] == [None, None]
    assert [answer.state for answer in answers] == [None, None]


# Backends that answer short calls at once


class Heard(Waiting):
    """A question that keeps what it is told."""

    def __init__(self, asked: Question) -> None:
        super().__init__(asked)
        self.told: list[object] = []

    def take(self, call: AnsweredCall, index: int) -> None:
        self.told.append(call.outputs.actions[index, 0])

    def take_error(self, error: PolicyServerError) -> None:
        self.told.append(type(error))


async def test_short_calls_are_computed_without_a_task_and_other_work_comes_in_between() -> None:
    backend = immediate_backend()
    scheduler = scheduler_of(backend)
    order: list[str] = []
    waiting = [Heard(question(start)) for start in (0.0, 9.0) * 4]
    for item in waiting:
        scheduler.put(item)
    asyncio.get_running_loop().call_soon(lambda: order.append(f"after {backend.at_once}"))

    await until(lambda: all(item.told for item in waiting))

    assert [item.told for item in waiting] == [[2], [0]] * 4
    assert backend.at_once == [4, 4]
    assert order == ["after [4]"]
    assert scheduler.waiting == 0


@pytest.mark.parametrize("place", range(4))
async def test_one_bad_observation_of_a_call_at_once_fails_alone(place: int) -> None:
    backend = immediate_backend(IndexError("no"))
    starts = [9.0] * 4
    starts[place] = backend.poison
    waiting = [Heard(question(start)) for start in starts]
    scheduler = scheduler_of(backend)
    for item in waiting:
        scheduler.put(item)

    await until(lambda: all(item.told for item in waiting))

    assert waiting.pop(place).told == [PolicyFailedError]
    assert [item.told for item in waiting] == [[0]] * 3
    assert backend.at_once == [4]
    assert len(backend.batches) <= 1 + 2 * 2


class Deaf(Heard):
    """A question whose answer is not taken: that raises."""

    def take(self, call: AnsweredCall, index: int) -> None:
        super().take(call, index)
        raise AttributeError("no")

    def take_error(self, error: PolicyServerError) -> None:
        super().take_error(error)
        raise AttributeError("no")

    def abort(self) -> None:
        self.told.append("aborted")
        raise AttributeError("neither")


@pytest.mark.parametrize("make_backend", [integer_backend, immediate_backend])
@pytest.mark.parametrize("places", [(0,), (2, 3), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("is_failing", [False, True], ids=["answer", "error"])
async def test_question_that_does_not_take_its_answer_keeps_back_nobody_elses(
    make_backend: Callable[[], FakeBackend],
    places: tuple[int, ...],
    caplog: pytest.LogCaptureFixture,
    *,
    is_failing: bool,
) -> None:
    backend = make_backend()
    if is_failing:
        backend.error = NotReadyError("no replica")
    scheduler = scheduler_of(backend)
    start = backend.poison if is_failing else 9.0
    waiting = [(Deaf if place in places else Heard)(question(start)) for place in range(4)]
    for item in waiting:
        scheduler.put(item)

    await until(lambda: all(item.told for item in waiting))
    later = Heard(question(start))
    scheduler.put(later)
    await until(lambda: later.told)

    told = NotReadyError if is_failing else 0
    for place, item in enumerate(waiting):
        assert item.told == ([told, "aborted"] if place in places else [told])
    assert (later.told, scheduler.waiting) == ([told], 0)
    messages = [record.message for record in caplog.records if record.exc_info]
    assert messages == ["answer_not_taken", "answer_not_taken"] * len(places)


async def test_question_that_was_given_up_frees_its_place_at_once() -> None:
    scheduler = scheduler_of(immediate_backend(), max_queue_size=1)
    first, second = Heard(question(9.0)), Heard(question(0.0))

    scheduler.put(first)
    first.give_up()
    scheduler.put(second)
    await until(lambda: second.told)

    assert (first.told, second.told) == ([], [2])
    assert scheduler.waiting == 0


async def test_question_that_follows_a_refused_one_has_no_other_computed_twice() -> None:
    class Followed(Heard):
        """A question whose client asks the next one when it is refused."""

        def take_error(self, error: PolicyServerError) -> None:
            super().take_error(error)
            scheduler.put(follower)

    backend = integer_backend()
    backend.gate = asyncio.Event()
    scheduler = scheduler_of(backend, max_queue_size=1000, max_wait_s=0.02)
    busy = await occupied(scheduler, backend)
    follower, refused = Heard(question(9.0)), Followed(question())
    for item in (*(Heard(question()) for _ in range(9)), refused):
        scheduler.put(item)
    # So many that the queue is searched for them when the others before them are refused.
    abandoned = [Heard(question()) for _ in range(76)]
    for item in abandoned:
        scheduler.put(item)
    for item in abandoned:
        item.give_up()
    asked = time.perf_counter()
    await until(lambda: time.perf_counter() > asked + 0.02)
    # A question that waits a moment only: more replicas have come, and take it up at once.
    backend.capacity = 3
    young = [Heard(question(9.0)) for _ in range(3)]
    for item in young:
        scheduler.put(item)
    await until(lambda: len(backend.batches) >= 3)
    backend.gate.set()
    await asyncio.gather(*busy)
    await until(lambda: scheduler.waiting == 0)
    await scheduler.aclose()

    assert refused.told == [OverloadedError]
    assert sum(backend.batches) == len(busy) + len(young) + 1
    assert [item.told for item in (*young, follower)] == [[0]] * 4


async def test_late_question_is_told_of_the_overload_once() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    scheduler = scheduler_of(backend, timeout_s=0.05)
    waiting = Heard(question())
    scheduler.put(waiting)

    await until(lambda: waiting.told)
    backend.gate.set()
    await turns()

    assert waiting.told == [OverloadedError]
    assert scheduler.waiting == 0


async def test_closing_answers_every_call_that_is_computed_at_once() -> None:
    scheduler = scheduler_of(immediate_backend())
    waiting = [Heard(question(9.0)) for _ in range(10)]
    for item in waiting:
        scheduler.put(item)

    await scheduler.aclose()

    assert [item.told for item in waiting] == [[0]] * 10


# Backends that tell of their answers


async def test_questions_are_sent_together_and_told_of_their_answers() -> None:
    backend = sending_backend()
    scheduler = scheduler_of(backend)

    answers = await ask(scheduler, *(0.0, 9.0) * 5)

    assert answers == [2, 0] * 5
    assert sum(backend.sent) == 10
    assert max(backend.sent) == 4


async def test_no_more_than_two_calls_of_questions_are_sent_before_an_answer() -> None:
    backend = sending_backend(gate=asyncio.Event())
    scheduler = scheduler_of(backend)
    waiting = [Heard(question(9.0)) for _ in range(20)]
    for item in waiting:
        scheduler.put(item)
    await turns()
    before = list(backend.sent)
    assert backend.gate is not None
    backend.gate.set()
    await until(lambda: all(item.told for item in waiting))

    assert before == [4, 4]
    assert sum(backend.sent) == 20


@pytest.mark.parametrize("change", [{"is_taking": False}, {"losses": 1}], ids=["full", "lost"])
async def test_call_that_can_not_be_sent_or_is_lost_is_made_all_the_same(
    change: dict[str, Any],
) -> None:
    scheduler = scheduler_of(sending_backend(**change))

    assert await ask(scheduler, 0.0, 9.0) == [2, 0]


@pytest.mark.parametrize("place", range(4))
async def test_one_bad_observation_of_a_call_that_was_sent_fails_alone(place: int) -> None:
    backend = sending_backend(error=IndexError("no"))
    starts = [9.0] * 4
    starts[place] = backend.poison

    answers = await ask(scheduler_of(backend), *starts)

    assert isinstance(answers.pop(place), PolicyFailedError)
    assert answers == [0] * 3


async def test_call_that_was_sent_and_is_too_late_is_counted_and_occupies_nothing() -> None:
    metrics = Metrics()
    backend = sending_backend(error=OverloadedError("no replica answered within 1 s"))
    scheduler = scheduler_of(backend, metrics=metrics.of("walker"))
    late = Heard(question(backend.poison))
    scheduler.put(late)
    await until(lambda: late.told)

    assert late.told == [OverloadedError]
    assert metrics.snapshot().numbers["rejected"] == {("timeout", "walker"): 1.0}
    assert await ask(scheduler, 9.0) == [0]


async def test_answer_of_a_backend_with_too_few_rows_fails_the_call() -> None:
    class Odd(Sending):
        async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
            outputs = await super().infer(inputs)
            return replace(outputs, actions=outputs.actions[1:])

    known = integer_backend()
    [answer] = await ask(scheduler_of(Odd(known.signature, known.bias)), 9.0)

    assert isinstance(answer, PolicyFailedError)
    assert str(answer) == "expected 1 answers of the policy, got 0"


async def test_closing_waits_for_the_calls_that_were_sent() -> None:
    backend = sending_backend(gate=asyncio.Event())
    scheduler = scheduler_of(backend)
    waiting = [Heard(question(9.0)) for _ in range(20)]
    for item in waiting:
        scheduler.put(item)
    await turns()
    closing = asyncio.create_task(scheduler.aclose())
    await turns()
    is_early = closing.done()
    assert backend.gate is not None
    backend.gate.set()
    await closing

    assert not is_early
    assert [item.told for item in waiting] == [[0]] * 20
