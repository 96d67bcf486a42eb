"""The backend: as many calls at a time as there are replicas, and each death counted once."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from policy_server.backends.ray import backend as ray_backend
from policy_server.backends.ray import direct_calls
from policy_server.backends.ray.backend import RayBackend
from policy_server.backends.ray.serve_handle import Handle
from policy_server.errors import (
    NotReadyError,
    OverloadedError,
    PolicyFailedError,
    PolicyServerError,
)
from policy_server.policy import PolicyInputs, PolicyOutputs
from tests.support.call_replicas import Infer, Replicas, doubled, inputs_of, number_in
from tests.support.fakes import components_of, signature_of, summing_backend
from tests.support.waiting import turns, until

SIGNATURE = signature_of(components_of(("categorical", 2)))
INPUTS = PolicyInputs.of(np.zeros((1, 2), np.float32), is_deterministic=True)
ANSWER = PolicyOutputs(np.zeros((1, 1)), np.zeros(1), None)
# Until a call is late, its replica is asked whether it lives, and owes the answer for `_HUNG_S`.
_UNTIL_HUNG_S = 0.5


class RaysHandle:
    """Ray Serve's handle of replicas that answer.

    Attributes:
        is_whole: whether it takes the private options of Ray's own.
        errors: raised by calls, one after another, before replicas answer.
    """

    def __init__(self, *, is_whole: bool = True) -> None:
        self.is_whole = is_whole
        self.errors: list[Exception] = []
        self.asked = 0

    def _init(self, **options: object) -> None:
        if options and not self.is_whole:
            raise TypeError("got an unexpected keyword argument")

    def options(self, **options: object) -> _Method:
        """Return the method of any replica."""
        if set(options) > {"method_name"} and not self.is_whole:
            raise TypeError("got an unexpected keyword argument")
        return _Method(self)

    async def call(self) -> object:
        """Answer as a replica does."""
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return ANSWER


class HangingHandle(RaysHandle):
    """Ray Serve's handle of replicas that never answer."""

    async def call(self) -> object:
        self.asked += 1
        return await asyncio.Event().wait()


class _Method:
    def __init__(self, handle: RaysHandle) -> None:
        self._handle = handle

    async def remote(self, *_: object) -> object:
        return await self._handle.call()


def backend_over(
    handle: RaysHandle, source: Replicas | None = None, *, replicas: int = 1, timeout_s: float = 10
) -> tuple[RayBackend, list[None]]:
    """Return a backend, and one entry for each replica that it counts as lost."""
    lost: list[None] = []
    backend = RayBackend(
        Handle(handle),
        SIGNATURE,
        application="policy-default-0123456789ab",
        replicas=replicas,
        calls=None if source is None else source.calls(replicas, timeout_s=timeout_s),
        timeout_s=timeout_s,
        count_lost=lambda: lost.append(None),
    )
    return backend, lost


@asynccontextmanager
async def connected(
    infer: Infer, count: int
) -> AsyncIterator[tuple[RayBackend, RaysHandle, Replicas, list[None]]]:
    """Connect a backend to as many replicas."""
    replicas, handle = Replicas(*[infer] * count), RaysHandle()
    backend, lost = backend_over(handle, replicas, replicas=count)
    await backend.connect()
    try:
        await until(lambda: backend.capacity == count)
        yield backend, handle, replicas, lost
    finally:
        await backend.aclose()
        replicas.end()


async def test_eight_replicas_compute_eight_calls_at_a_time() -> None:
    # Each waits until all eight compute, or the call fails.
    together = threading.Barrier(8)

    def slow(_: PolicyInputs) -> PolicyOutputs:
        together.wait(20)
        return ANSWER

    async with connected(slow, 8) as (backend, handle, _, _):
        answers = await asyncio.gather(*(backend.infer(INPUTS) for _ in range(2 * 8)))

    assert len(answers) == 16
    assert handle.asked == 0


async def test_capacity_is_what_ray_serve_may_scale_to() -> None:
    backend, _ = backend_over(RaysHandle(), replicas=6)

    await backend.connect()

    assert backend.capacity == 6


async def test_death_of_a_replica_is_counted_once_however_many_calls_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{RayBackend.__module__}._CONNECTED_WITHIN_S", 0.05)
    async with connected(lambda _: ANSWER, 1) as (backend, handle, replicas, lost):
        replicas.threads[0].freeze()
        calls = [asyncio.create_task(backend.infer(INPUTS)) for _ in range(4)]
        await turns()
        replicas.listed.clear()
        # Ray Serve's router tells of the same death.
        handle.errors = [_died("a0"), _died("a0")]
        replicas.threads[0].end_without_answers()
        answers = await asyncio.gather(*calls)

    assert answers == [ANSWER] * 4
    assert len(lost) == 1


def _died(actor: str) -> ActorDiedError:
    """Return the error that a call raises whose replica has died."""
    error = ActorDiedError()
    error.args = (f"The actor died unexpectedly.\n\tactor_id: {actor}\n",)
    error.error_msg = error.args[0]
    return error


async def test_each_replica_that_ray_serve_lost_is_counted_once() -> None:
    handle = RaysHandle()
    backend, lost = backend_over(handle)
    handle.errors = [_died("a1"), _died("a1")]
    await backend.infer(INPUTS)
    handle.errors = [_died("a1"), _died("b2")]
    await backend.infer(INPUTS)

    assert len(lost) == 2


async def test_call_is_given_up_when_no_replica_is_alive() -> None:
    handle = RaysHandle()
    backend, _ = backend_over(handle)
    handle.errors = [_died("a1")] * 3

    with pytest.raises(NotReadyError, match="no replica of the policy is alive"):
        await backend.infer(INPUTS)


async def test_handle_without_its_private_options_calls_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        backend, _ = backend_over(RaysHandle(is_whole=False))
        answer = await backend.infer(INPUTS)

    assert answer is ANSWER
    assert [record.message for record in caplog.records] == ["ray_handle_plain"]


async def test_call_that_is_sent_is_told_of_its_answer_or_of_its_loss() -> None:
    told: list[object] = []
    async with connected(lambda _: ANSWER, 1) as (backend, _, replicas, _):
        is_sent = backend.send(INPUTS, told.append, within_s=60)
        await until(lambda: told)
        replicas.threads[0].freeze()
        backend.send(INPUTS, told.append, within_s=60)
        await turns()
        replicas.listed.clear()
        replicas.threads[0].end_without_answers()
        await until(lambda: len(told) == 2)
        is_sent_without = backend.send(INPUTS, told.append, within_s=60)

    assert is_sent
    assert isinstance(told[0], PolicyOutputs)
    assert told[1] is None
    assert not is_sent_without


async def test_call_by_ray_serve_waits_for_the_next_ray_where_its_own_dies() -> None:
    hanging, answering = HangingHandle(), RaysHandle()
    backend, _ = backend_over(hanging)
    call = asyncio.create_task(backend.infer(INPUTS))
    await until(lambda: hanging.asked)

    backend.suspend()
    later = asyncio.create_task(backend.infer(INPUTS))
    await turns()
    is_ready = await backend.is_ready()
    await backend.resume(Handle(answering))

    assert [await call, await later] == [ANSWER] * 2
    assert (hanging.asked, answering.asked, is_ready) == (1, 2, False)


async def test_call_whose_replicas_death_is_heard_of_before_their_rays_is_asked_again() -> None:
    dying, answering = RaysHandle(), RaysHandle()
    dying.errors = [_died("a1")] * 3
    backend, _ = backend_over(dying)
    call = asyncio.create_task(backend.infer(INPUTS))
    await until(lambda: not dying.errors)

    # Not yet answered: the call waits for news of Ray.
    backend.suspend()
    await backend.resume(Handle(answering))

    assert await call == ANSWER


async def test_call_is_given_up_in_time_where_no_next_ray_comes() -> None:
    backend, _ = backend_over(RaysHandle(), timeout_s=0.05)
    backend.suspend()

    with pytest.raises(OverloadedError, match=r"no replica answered within 0.05 s"):
        await backend.infer(INPUTS)


async def test_backend_without_ray_is_ready_while_replicas_are_connected() -> None:
    async with connected(lambda _: ANSWER, 1) as (backend, handle, _, _):
        backend.suspend()
        is_ready, answer = await backend.is_ready(), await backend.infer(INPUTS)

    assert is_ready
    assert len(answer) == 1
    assert handle.asked == 0


async def test_backend_is_ready_while_replicas_answer_though_ray_serve_does_not() -> None:
    replicas, handle = Replicas(lambda _: ANSWER), HangingHandle()
    backend, _ = backend_over(handle, replicas)
    await backend.connect()
    try:
        is_ready_before_a_call = await backend.is_ready()
        await backend.infer(INPUTS)
        is_ready = await backend.is_ready()
    finally:
        await backend.aclose()
        replicas.end()

    assert (is_ready_before_a_call, is_ready) == (True, True)
    assert handle.asked == 0


@pytest.mark.parametrize("ends", [False, True], ids=["stands still", "ends"])
async def test_backend_is_not_ready_where_its_only_replica(ends: bool) -> None:  # noqa: FBT001 -- a parameter
    replicas, handle = Replicas(lambda _: ANSWER), HangingHandle()
    backend, _ = backend_over(handle, replicas, timeout_s=0.1)
    await backend.connect()
    try:
        replicas.threads[0].freeze()
        asking = asyncio.create_task(backend.is_ready())
        await turns()
        if ends:
            replicas.listed.clear()
            replicas.threads[0].end_without_answers()
        is_ready = await asking
    finally:
        await backend.aclose()
        replicas.end()

    assert not is_ready


async def test_policy_of_this_process_answers_while_no_ray_does() -> None:
    hanging, answering, stand_in = HangingHandle(), RaysHandle(), summing_backend()
    backend, _ = backend_over(hanging)
    waiting = asyncio.create_task(backend.infer(INPUTS))
    await until(lambda: hanging.asked)
    backend.suspend()
    later = asyncio.create_task(backend.infer(INPUTS))
    await turns()

    backend.stand_in(stand_in)
    stood_in = [await waiting, await later]
    is_ready = await backend.is_ready()
    await backend.resume(Handle(answering))
    answer = await backend.infer(INPUTS)

    expected = await stand_in.infer(INPUTS)
    assert [list(outputs.actions) for outputs in stood_in] == [list(expected.actions)] * 2
    assert (answer, is_ready, answering.asked) == (ANSWER, True, 1)


async def test_policy_of_this_process_that_is_ready_too_late_answers_nothing() -> None:
    answering, stand_in = RaysHandle(), summing_backend()
    backend, _ = backend_over(HangingHandle())
    backend.suspend()
    await backend.resume(Handle(answering))

    backend.stand_in(stand_in)

    assert await backend.infer(INPUTS) == ANSWER
    assert not stand_in.calls


async def test_replicas_that_outlive_their_ray_are_asked_before_a_policy_of_this_process() -> None:
    stand_in = summing_backend()
    async with connected(lambda _: ANSWER, 1) as (backend, _, _, _):
        backend.suspend()
        backend.stand_in(stand_in)

        answer = await backend.infer(INPUTS)

    assert len(answer) == 1
    assert not stand_in.calls


DEADLY = 13.0
DOUBLED = [[0.0], [2.0]]


@asynccontextmanager
async def ended_by(number: float) -> AsyncIterator[tuple[RayBackend, list[None]]]:
    """Connect a backend to a replica that ends when it computes a number, as its successors do.

    The list has one entry for each that has ended so.
    """
    replicas, ended = Replicas(), list[None]()

    def infer(place: int, inputs: PolicyInputs) -> PolicyOutputs:
        if (inputs.observations == number).any():
            # First: its successor is there as soon as it is not listed.
            replicas.threads[place].end_in_a_call()
            ended.append(None)
            replicas.listed.clear()
        return doubled(inputs)

    async def replace() -> None:
        while True:
            if not replicas.listed:
                place = len(replicas.threads)
                replicas.add(partial(infer, place), f"r{place}")
            await asyncio.sleep(0.01)

    replacing = asyncio.create_task(replace())
    await until(lambda: replicas.listed)
    handle = RaysHandle()
    # Ray Serve still asks those that have ended.
    handle.errors = [_died(f"a{number}") for number in range(100)]
    backend, _ = backend_over(handle, replicas, timeout_s=20)
    await backend.connect()
    try:
        yield backend, ended
    finally:
        replacing.cancel()
        await backend.aclose()
        replicas.end()


async def test_observation_that_ends_three_replicas_is_asked_of_no_more() -> None:
    async with ended_by(DEADLY) as (backend, ended):
        with pytest.raises(PolicyFailedError, match="it computed this observation"):
            await backend.infer(inputs_of(DEADLY))
        with pytest.raises(PolicyFailedError, match="ended its process"):
            await backend.infer(inputs_of(DEADLY))
        others = [await backend.infer(inputs_of(number)) for number in (0.0, 1.0)]

    assert len(ended) == 3
    assert [outputs.actions.tolist() for outputs in others] == [[row] for row in DOUBLED]


async def test_those_asked_with_one_that_ends_replicas_are_answered() -> None:
    inputs = PolicyInputs.of(np.array([[0.0], [1.0], [DEADLY], [1.0]], np.float32))
    async with ended_by(DEADLY) as (backend, ended):
        beside = [asyncio.create_task(backend.infer(inputs_of(1.0))) for _ in range(3)]
        with pytest.raises(PolicyFailedError, match="one of 4 observations"):
            await backend.infer(inputs)
        alone = [await _outcome(backend, inputs.part(index, index + 1)) for index in range(4)]
        answers = [await call for call in beside]

    assert [isinstance(outcome, PolicyFailedError) for outcome in alone] == [
        False,
        False,
        True,
        False,
    ]
    assert [outputs.actions.tolist() for outputs in answers] == [DOUBLED[1:]] * 3
    # One that has said that it begins may end before that is read: it costs one more.
    assert len(ended) in (3, 4)


async def test_batch_that_ends_two_replicas_for_certain_is_given_up() -> None:
    inputs = inputs_of(DEADLY, rows=1025)
    async with ended_by(DEADLY) as (backend, ended):
        with pytest.raises(OverloadedError, match="ask at most 1024 at once"):
            await backend.infer(inputs)

    assert len(ended) == 2


async def test_calls_whose_replicas_were_killed_are_suspected_until_they_are_answered() -> None:
    async with connected(doubled, 2) as (backend, handle, replicas, lost):
        told: list[object] = []
        for thread in replicas.threads:
            thread.freeze()
        for number in (0.0, 1.0):
            backend.send(inputs_of(number), told.append, within_s=60)
        await turns()
        for thread in replicas.threads:
            thread.end_without_answers()
        await until(lambda: len(told) == 2)
        replicas.listed.clear()
        replicas.add(doubled, "next")
        answers = [await backend.infer(inputs_of(number)) for number in (0.0, 1.0)]
        is_sent_again = backend.send(inputs_of(1.0), told.append, within_s=60)

    assert told[:2] == [None, None]
    assert [outputs.actions.tolist() for outputs in answers] == [[row] for row in DOUBLED]
    assert is_sent_again
    assert handle.asked == 0
    assert len(lost) == 2


async def test_call_that_died_with_its_ray_is_answered_by_the_stand_in_at_once() -> None:
    async with connected(doubled, 1) as (backend, handle, replicas, _):
        replicas.threads[0].freeze()
        call = asyncio.create_task(backend.infer(inputs_of(1.0)))
        await turns()
        replicas.listed.clear()
        backend.suspend()
        replicas.threads[0].end_without_answers()
        await until(lambda: not backend.send(inputs_of(2.0), lambda _: None, within_s=60))
        backend.stand_in(summing_backend())
        # Well before a call is given to Ray Serve.
        answer = await asyncio.wait_for(call, 20)

    assert len(answer) == 1
    assert handle.asked == 0


async def _outcome(backend: RayBackend, inputs: PolicyInputs) -> PolicyOutputs | PolicyServerError:
    try:
        return await backend.infer(inputs)
    except PolicyServerError as error:
        return error


@pytest.mark.parametrize("is_sent", [False, True], ids=["asked", "sent"])
@pytest.mark.parametrize("count", [1, 2], ids=["one replica", "two replicas"])
async def test_those_asked_with_one_at_which_a_replica_hung_are_answered_by_another(
    count: int,
    is_sent: bool,  # noqa: FBT001 -- a parameter
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", 0.05)
    inputs = inputs_of(1, rows=2)
    async with connected(doubled, count) as (backend, _, replicas, _):
        # So it knows when a call is late.
        await backend.infer(inputs_of(2))
        for thread in replicas.threads:
            thread.freeze()
        told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        asking = None
        if is_sent:
            assert backend.send(inputs, told.set_result, within_s=60)
        else:
            asking = asyncio.create_task(_outcome(backend, inputs))
        await asyncio.sleep(_UNTIL_HUNG_S)
        replicas.listed.clear()
        hung = [*replicas.threads]
        replicas.add(doubled, "next")
        for thread in hung:
            thread.end_without_answers()
        # What is sent becomes a task, which asks all at once first.
        outcome = await (asking or _told_as_task(told, backend, inputs))
        is_sent_again = backend.send(inputs.part(0, 1), lambda _: None, within_s=60)
        alone = [await backend.infer(inputs.part(index, index + 1)) for index in range(2)]

    assert isinstance(outcome, PolicyFailedError)
    assert not is_sent_again
    assert "took too long for one of 2 observations" in str(outcome)
    assert [outputs.actions.tolist() for outputs in alone] == [DOUBLED[1:]] * 2


async def test_observation_at_which_a_replica_may_have_hung_waits_for_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", 0.05)
    monkeypatch.setattr(ray_backend, "_CONNECTED_WITHIN_S", 0.0)
    async with connected(doubled, 1) as (backend, handle, replicas, lost):
        await _hung(backend, replicas, lost, number=3)
        suspected = asyncio.create_task(backend.infer(inputs_of(3)))
        # Ray Serve answers others meanwhile, and would not tell which call its replica computes.
        other = await backend.infer(inputs_of(1))
        asked_by_serve = handle.asked
        replicas.add(doubled, "next")
        answer = await suspected

    assert other is ANSWER
    assert asked_by_serve == handle.asked == 1
    assert number_in(answer) == 6


async def test_observation_at_which_a_replica_may_have_hung_comes_behind_those_that_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", 0.05)
    async with connected(doubled, 1) as (backend, _, replicas, lost):
        await _hung(backend, replicas, lost, number=3, behind=5)
        suspected = asyncio.create_task(backend.infer(inputs_of(3)))
        await turns()
        other = asyncio.create_task(backend.infer(inputs_of(5)))
        next_one = replicas.add(doubled, "next")
        await asyncio.gather(suspected, other)

    assert [asked.observations[0, 0] for asked in next_one.asked] == [5, 3]


async def test_observation_at_which_a_replica_may_have_hung_waits_for_the_next_connection_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", 0.05)
    monkeypatch.setattr(ray_backend, "_BEHIND_OTHERS_S", 0.3)
    async with connected(doubled, 1) as (backend, handle, replicas, lost):
        await _hung(backend, replicas, lost, number=3)
        suspected = asyncio.create_task(backend.infer(inputs_of(3)))
        # The next replica ends while those that waited for it go first.
        short = replicas.add(doubled, "short")
        await until(lambda: backend.send(inputs_of(1), lambda _: None, within_s=60))
        replicas.listed.clear()
        short.end()
        await until(lambda: len(lost) == 2)
        await asyncio.sleep(0.6)
        replicas.add(doubled, "next")
        answer = await suspected

    assert handle.asked == 0
    assert number_in(answer) == 6


async def _hung(
    backend: RayBackend,
    replicas: Replicas,
    lost: list[None],
    *,
    number: float,
    behind: float | None = None,
) -> None:
    """Have the only replica hang at a number, maybe with another one behind it, and end.

    Waits until both calls are told: the first is suspected from then on.
    """
    await backend.infer(inputs_of(2))
    replicas.threads[0].freeze()
    numbers = [asked for asked in (number, behind) if asked is not None]
    told: list[object] = []
    for asked in numbers:
        assert backend.send(inputs_of(asked), told.append, within_s=60)
    await asyncio.sleep(_UNTIL_HUNG_S)
    replicas.listed.clear()
    replicas.threads[0].end_without_answers()
    await until(lambda: lost and len(told) == len(numbers))


async def _told_as_task(
    told: asyncio.Future[object], backend: RayBackend, inputs: PolicyInputs
) -> PolicyOutputs | PolicyServerError:
    assert await told is None
    return await _outcome(backend, inputs)


async def test_observation_whose_client_did_not_wait_until_its_replica_ended_is_asked_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", 0.05)
    async with connected(doubled, 1) as (backend, _, replicas, lost):
        replicas.threads[0].freeze()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(backend.infer(inputs_of(3)), 0.05)
        await asyncio.sleep(_UNTIL_HUNG_S)
        replicas.listed.clear()
        replicas.threads[0].end_without_answers()
        await until(lambda: lost)
        replicas.add(doubled, "next")
        await until(lambda: backend.send(inputs_of(1), lambda _: None, within_s=60))

        is_sent_again = backend.send(inputs_of(3), lambda _: None, within_s=60)
        answer = await backend.infer(inputs_of(3))

    assert not is_sent_again
    assert len(answer) == 1
