"""Many requests, one call: batches, limits, deadlines, and one bad observation among good ones."""

from __future__ import annotations

import asyncio
import traceback
import weakref
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
from policy_server.metrics import Metrics
from policy_server.policy import DEFAULT_POLICY, PolicyInputs, PolicyOutputs
from policy_server.serving.batching import MicroBatcher
from tests.fakes import FakeBackend, integer_backend


def batcher_of(backend: FakeBackend, **changes: Any) -> MicroBatcher[PolicyOutputs]:  # noqa: ANN401 -- options
    """Return a batcher with limits that a test changes."""
    limits = {"max_batch_size": 4, "max_queue_size": 100, "timeout_s": 5.0}
    changes.setdefault("metrics", Metrics().of(DEFAULT_POLICY))
    return MicroBatcher(backend, lambda outputs: outputs, **{**limits, **changes})


async def ask(batcher: MicroBatcher[PolicyOutputs], *starts: float) -> list[Any]:
    """Ask for several observations at once; give the actions, or the errors."""
    answers = await asyncio.gather(
        *(batcher.infer([start, 0.0], is_deterministic=True, seed=-1) for start in starts),
        return_exceptions=True,
    )
    return [
        answer if isinstance(answer, BaseException) else answer[0].actions[answer[1], 0]
        for answer in answers
    ]


async def test_requests_of_one_moment_share_calls_and_get_their_own_answers() -> None:
    backend = integer_backend()
    batcher = batcher_of(backend)

    answers = await ask(batcher, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0)

    assert answers == [2, 0, 2, 0, 0, 2]
    assert backend.batches == [4, 2]


async def test_lone_request_is_called_at_once() -> None:
    backend = integer_backend()

    assert await ask(batcher_of(backend), 0.0) == [2]
    assert backend.batches == [1]


async def test_what_arrives_during_a_call_rides_in_the_next() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    batcher = batcher_of(backend, max_calls_in_flight=1)

    first = asyncio.create_task(ask(batcher, 0.0))
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(ask(batcher, 9.0)) for _ in range(3)]
    await asyncio.sleep(0.01)
    during = list(backend.batches)
    backend.gate.set()

    assert (await first, [await task for task in later]) == ([2], [[0]] * 3)
    assert (during, backend.batches) == ([1], [1, 3])


async def test_rows_of_different_widths_never_share_a_call() -> None:
    backend = integer_backend()
    batcher = batcher_of(backend)

    await asyncio.gather(
        *(batcher.infer([0.0] * width, is_deterministic=True, seed=-1) for width in (2, 2, 3, 2))
    )

    assert backend.batches == [2, 1, 1]


async def test_seeds_and_kinds_stay_with_their_rows() -> None:
    batcher = batcher_of(integer_backend((0.0, 0.0, 0.0, 0.0)))

    async def draw(seed: int) -> float:
        outputs, index = await batcher.infer([0.0, 0.0], is_deterministic=False, seed=seed)
        return float(outputs.actions[index, 0])

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

    answers = await ask(batcher_of(backend), *starts)

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

    answers = await ask(batcher_of(backend, max_batch_size=256, max_queue_size=256), *starts)

    assert [index for index, answer in enumerate(answers) if answer != 0] == [place]
    assert len(backend.batches) == 1 + 2 * 8


@pytest.mark.parametrize("error", [DistributionError("no"), ValueError("no")], ids=["ours", "bug"])
async def test_observation_whose_answer_cannot_be_finished_fails_alone(error: Exception) -> None:
    def finish(outputs: PolicyOutputs) -> PolicyOutputs:
        if (outputs.actions == 2).any():
            raise error
        return outputs

    backend = integer_backend()
    batcher = MicroBatcher(
        backend,
        finish,
        max_batch_size=4,
        max_queue_size=9,
        timeout_s=5.0,
        metrics=Metrics().of(DEFAULT_POLICY),
    )

    answers = await ask(batcher, 9.0, 0.0, 9.0, 9.0)

    assert isinstance(answers.pop(1), DistributionError | PolicyFailedError)
    assert answers == [0, 0, 0]


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
        batcher_of(backend, max_batch_size=64, timeout_s=0.15), *[backend.poison] * 64
    )

    assert loop.time() - started < 0.5
    assert {type(answer) for answer in answers} == {OverloadedError}
    assert len(backend.batches) < 10


async def test_who_gives_up_during_the_search_is_not_asked_for_again() -> None:
    backend = integer_backend()
    backend.error = ValueError("no")
    backend.gate = asyncio.Event()
    batcher = batcher_of(backend)

    tasks = [asyncio.create_task(ask(batcher, start)) for start in (backend.poison, 9.0, 9.0, 9.0)]
    await asyncio.sleep(0.01)
    for task in tasks[1:]:
        task.cancel()
    await asyncio.sleep(0.01)
    backend.gate.set()

    (answer,) = await tasks[0]
    assert isinstance(answer, PolicyFailedError)
    assert backend.batches == [4, 1]


async def test_error_of_all_is_given_to_all_without_asking_again() -> None:
    backend = integer_backend()
    backend.error = NotReadyError("no replica")

    answers = await ask(batcher_of(backend), backend.poison, 0.0)

    assert [type(answer) for answer in answers] == [NotReadyError] * 2
    assert backend.batches == [2]


async def test_foreign_error_is_hidden_and_kept_for_the_log() -> None:
    backend = integer_backend()
    backend.error = ValueError("secret path")

    answers = await ask(batcher_of(backend), backend.poison, 9.0, 9.0)

    assert isinstance(answers[0], PolicyFailedError)
    assert answers[0].message == "the policy failed; the server's log has the reason"
    # Once: the errors of the calls that looked for the observation don't follow from each other.
    told = "".join(traceback.format_exception(answers[0]))
    assert told.count("ValueError: secret path") == 1


async def test_full_queue_refuses_and_frees_its_places() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    batcher = batcher_of(backend, max_queue_size=2)

    waiting = asyncio.create_task(ask(batcher, 0.0, 0.0))
    await asyncio.sleep(0.01)
    (refused,) = await ask(batcher, 0.0)
    backend.gate.set()

    assert isinstance(refused, OverloadedError)
    assert refused.message == "2 observations are waiting already; try again in a second"
    assert await waiting == [2, 2]
    assert await ask(batcher, 0.0, 0.0) == [2, 2]


async def test_late_answer_is_an_overload() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()

    (answer,) = await ask(batcher_of(backend, timeout_s=0.02), 0.0)

    assert isinstance(answer, OverloadedError)
    assert answer.message == "no answer within 0.02 s; try again in a second"


async def test_call_that_hangs_gives_its_place_up() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    batcher = batcher_of(backend, timeout_s=0.05, max_calls_in_flight=1)

    late = await ask(batcher, 0.0)
    await asyncio.sleep(0.05)
    backend.gate = None

    assert isinstance(late[0], OverloadedError)
    assert await ask(batcher, 0.0) == [2]


async def test_request_that_gave_up_takes_no_place_in_a_batch() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    batcher = batcher_of(backend, max_calls_in_flight=1)

    first = asyncio.create_task(ask(batcher, 0.0))
    await asyncio.sleep(0.01)
    abandoned = [asyncio.create_task(ask(batcher, 0.0)) for _ in range(2)]
    kept = asyncio.create_task(ask(batcher, 9.0))
    await asyncio.sleep(0.01)
    for task in abandoned:
        task.cancel()
    await asyncio.sleep(0.01)
    backend.gate.set()

    assert (await first, await kept) == ([2], [0])
    assert backend.batches == [1, 1]


async def test_request_that_gives_up_during_its_call_is_forgotten() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    batcher = batcher_of(backend)

    both = [asyncio.create_task(ask(batcher, 0.0)) for _ in range(2)]
    await asyncio.sleep(0.01)
    both[0].cancel()
    await asyncio.sleep(0.01)
    backend.gate.set()

    assert await both[1] == [2]
    assert both[0].cancelled()


async def test_request_that_gives_up_before_a_failing_call_is_forgotten() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    backend.error = PolicyFailedError("no")
    batcher = batcher_of(backend)

    both = [asyncio.create_task(ask(batcher, backend.poison)) for _ in range(2)]
    await asyncio.sleep(0.01)
    both[0].cancel()
    await asyncio.sleep(0.01)
    backend.gate.set()

    (answer,) = await both[1]
    assert isinstance(answer, PolicyFailedError)


async def test_queue_of_abandoned_requests_makes_no_call() -> None:
    backend = integer_backend()
    batcher = batcher_of(backend)

    task = asyncio.create_task(batcher.infer([0.0, 0.0], is_deterministic=True, seed=-1))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0.01)

    assert task.cancelled()
    assert backend.batches == []


async def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    batcher = batcher_of(backend, max_batch_size=1, max_calls_in_flight=1)

    waiting = asyncio.create_task(ask(batcher, 0.0, 9.0, 0.0))
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(batcher.aclose())
    await asyncio.sleep(0.01)
    (refused,) = await ask(batcher, 0.0)
    backend.gate.set()
    await closing

    assert isinstance(refused, NotReadyError)
    assert await waiting == [2, 0, 2]


async def test_rows_have_the_policys_own_precision() -> None:
    seen: list[np.dtype[Any]] = []

    class Recording(FakeBackend):
        async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
            seen.append(inputs.observations.dtype)
            return await super().infer(inputs)

    fake = integer_backend()
    for dtype in ("float32", "int64"):
        signature = type(fake.signature)(**{**vars(fake.signature), "observation_dtype": dtype})
        await ask(batcher_of(Recording(signature, fake.bias)), 0.0)

    assert seen == [np.float32, np.float64]


async def test_every_observation_of_a_call_that_hangs_is_counted() -> None:
    backend = integer_backend()
    backend.gate = asyncio.Event()
    metrics = Metrics()
    batcher = batcher_of(backend, timeout_s=0.05, metrics=metrics.of("walker"))

    answers = await ask(batcher, 0.0, 9.0, 0.0)

    assert [type(answer) for answer in answers] == [OverloadedError] * 3
    assert metrics.snapshot().numbers["rejected"] == {("timeout", "walker"): 3.0}


async def test_submitted_observation_rides_along_and_leaves_its_place_when_it_is_done() -> None:
    backend = integer_backend()
    batcher = batcher_of(backend, max_queue_size=2)

    asked = [batcher.submit([float(i), 0.0], is_deterministic=True, seed=-1) for i in range(2)]
    with pytest.raises(OverloadedError):
        batcher.submit([0.0, 0.0], is_deterministic=True, seed=-1)
    indices = [(await answer)[1] for answer in asked]

    assert indices == [0, 1]
    assert backend.batches == [2]
    await batcher.submit([0.0, 0.0], is_deterministic=True, seed=-1)


async def test_cancelled_submission_frees_its_place() -> None:
    backend = integer_backend()
    batcher = batcher_of(backend, max_queue_size=1)

    batcher.submit([0.0, 0.0], is_deterministic=True, seed=-1).cancel()
    await asyncio.sleep(0)
    answer, _ = await batcher.submit([0.0, 0.0], is_deterministic=True, seed=-1)

    assert len(answer.actions) == 1
    assert backend.batches == [1]


async def test_abandoned_observations_do_not_pile_up_behind_a_call_that_hangs() -> None:
    class Row(list[float]):
        """An observation that can be seen to be gone."""

    backend = integer_backend()
    backend.gate = asyncio.Event()
    metrics = Metrics()
    batcher = batcher_of(
        backend,
        max_queue_size=10,
        timeout_s=0.2,
        max_calls_in_flight=1,
        metrics=metrics.of("walker"),
    )
    hanging = asyncio.create_task(ask(batcher, 0.0))
    await asyncio.sleep(0)
    rows: list[weakref.ref[Row]] = []

    for _ in range(3000):
        row = Row([0.0, 0.0])
        rows.append(weakref.ref(row))
        batcher.submit(row, is_deterministic=True, seed=-1).cancel()
        del row
        await asyncio.sleep(0)

    assert sum(row() is not None for row in rows) < 100
    assert isinstance((await hanging)[0], OverloadedError)
    await asyncio.sleep(0.1)
    backend.gate = None
    assert await ask(batcher, 0.0) == [2]
    assert metrics.snapshot().numbers["rejected"] == {("timeout", "walker"): 1.0}
