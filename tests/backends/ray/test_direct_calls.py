"""Calls straight to replicas: each gets its answer, in time, whatever becomes of a replica."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.backends.ray import direct_calls
from policy_server.backends.ray.call_times import DuplicateBudget, UsualTimes
from policy_server.backends.ray.connected_replica import ConnectedReplica
from policy_server.backends.ray.direct_calls import ConnectionLostError, DirectCalls
from policy_server.backends.ray.replica_connections import ReplicaConnections
from policy_server.errors import (
    ObservationError,
    OverloadedError,
    PolicyFailedError,
    PolicyServerError,
)
from policy_server.policy import PolicyInputs, PolicyOutputs
from tests.support.call_replicas import (
    Infer,
    Replicas,
    ReplicaThread,
    connected,
    doubled,
    inputs_of,
    number_in,
)
from tests.support.waiting import turns, until

# What a call that is lost to a replica for good would take at least.
TIMEOUT_S = 20.0
SOON_S = 5.0
# After this a replica counts as hung where a test says so.
HUNG_S = 0.3


async def test_calls_in_flight_get_their_own_answers() -> None:
    async with connected(Replicas(doubled)) as calls:
        answers = await asyncio.gather(*(calls.infer(inputs_of(number)) for number in range(50)))

    assert [number_in(answer) for answer in answers] == [2 * n for n in range(50)]


@pytest.mark.parametrize("rows", [1, 50_000])
async def test_arrays_of_any_size_cross_unchanged(rows: int) -> None:
    def echo(inputs: PolicyInputs) -> PolicyOutputs:
        assert inputs.state is not None
        numbers = inputs.seeds.astype(float)
        distribution = inputs.observations.astype(np.float32, copy=False)
        return PolicyOutputs(numbers[:, None], numbers, distribution, inputs.state)

    chance = np.random.default_rng(0)
    inputs = PolicyInputs.of(
        chance.random((rows, 7)).astype(np.float32),
        seeds=np.arange(rows),
        state=chance.random((rows, 4)).astype(np.float32),
    )
    async with connected(Replicas(echo)) as calls:
        answer = await calls.infer(inputs)

    assert answer.distribution is not None
    assert answer.state is not None
    assert (answer.distribution == inputs.observations).all()
    assert (answer.state == inputs.state).all()
    assert (answer.log_probability == np.arange(rows)).all()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (PolicyFailedError("is wrong"), "is wrong"),
        (ObservationError([{"type": "t", "loc": ["body"], "msg": "odd"}]), "body: odd"),
        (ZeroDivisionError("secret"), "the policy failed; the server's log has the reason"),
    ],
    ids=["ours", "with problems", "foreign"],
)
async def test_error_of_a_replica_is_raised_and_the_connection_stays(
    raised: Exception, expected: str
) -> None:
    def failing(inputs: PolicyInputs) -> PolicyOutputs:
        if inputs.observations[0, 0] < 0:
            raise raised
        return doubled(inputs)

    async with connected(Replicas(failing)) as calls:
        results = await asyncio.gather(
            *(calls.infer(inputs_of(number)) for number in (1, -1, 2)), return_exceptions=True
        )

    error = results[1]
    assert isinstance(error, PolicyServerError)
    assert isinstance(error, type(raised) if expected in str(raised) else PolicyFailedError)
    assert str(error) == expected
    # The process that asked logs it.
    assert ("secret" in "".join(traceback.format_exception(error))) == (expected not in str(raised))
    assert [number_in(r) for r in results if isinstance(r, PolicyOutputs)] == [2, 4]


async def test_cancelled_call_does_not_shift_the_answers_of_others() -> None:
    replicas = Replicas(doubled)
    async with connected(replicas) as calls:
        replicas.threads[0].freeze()
        first, second, third = (asyncio.create_task(calls.infer(inputs_of(n))) for n in range(3))
        await turns()
        second.cancel()
        await turns()
        replicas.threads[0].thaw()
        answers = await asyncio.gather(first, third)

    assert [number_in(answer) for answer in answers] == [0, 4]
    assert second.cancelled()
    # It was withdrawn before its turn.
    assert len(replicas.threads[0].asked) == 2


async def test_replica_with_least_to_do_is_asked() -> None:
    release = threading.Event()

    def waiting(inputs: PolicyInputs) -> PolicyOutputs:
        assert release.wait(TIMEOUT_S)
        return doubled(inputs)

    replicas = Replicas(waiting, waiting, waiting)
    async with connected(replicas) as calls:
        tasks = [asyncio.create_task(calls.infer(inputs_of(number))) for number in range(9)]
        await turns()
        release.set()
        await asyncio.gather(*tasks)

    assert [len(thread.asked) for thread in replicas.threads] == [3, 3, 3]


async def test_calls_in_flight_are_told_when_their_replica_dies() -> None:
    replicas = Replicas(doubled)
    async with connected(replicas) as calls:
        replicas.threads[0].freeze()
        tasks = [asyncio.create_task(calls.infer(inputs_of(number))) for number in range(3)]
        await turns()
        replicas.listed.clear()
        replicas.threads[0].end_without_answers()
        results = await asyncio.gather(*tasks, return_exceptions=True)

        is_connected = calls.is_connected

    assert all(isinstance(result, ConnectionLostError) for result in results)
    assert not is_connected
    # Once, however many calls it had.
    assert replicas.lost == ["a0"]


async def test_connection_that_is_closed_here_is_no_lost_replica() -> None:
    replicas = Replicas(doubled, doubled)

    async with connected(replicas) as calls:
        await calls.infer(inputs_of(1))

    assert replicas.lost == []


async def test_replica_that_takes_anothers_place_is_found() -> None:
    replicas = Replicas(doubled)
    async with connected(replicas) as calls:
        replicas.listed.clear()
        await asyncio.to_thread(replicas.threads[0].end)
        await until(lambda: not calls.is_connected)
        replicas.add(doubled, "another")
        await until(lambda: calls.is_connected)

        assert number_in(await calls.infer(inputs_of(4))) == 8


async def test_thirty_two_replicas_are_connected_when_the_first_calls_are_made() -> None:
    replicas = Replicas(*[doubled] * 32)
    calls = replicas.calls()
    try:
        await calls.open()
        found = calls.capacity
    finally:
        await calls.aclose()
        replicas.end()

    assert found == 32


async def test_replica_that_can_not_be_reached_is_no_error_and_is_looked_after() -> None:
    replicas = Replicas(doubled, doubled)
    replicas.listed[0] = replace(replicas.listed[0], port=1)
    calls = replicas.calls()
    try:
        await calls.open()
        number = number_in(await calls.infer(inputs_of(3)))
    finally:
        await calls.aclose()
        replicas.end()

    assert number == 6
    assert [address.replica for address in replicas.removed] == ["a0"]


@pytest.mark.parametrize(
    "other",
    [{"key": b"y" * 32}, {"application": "policy-default-another"}, {"replica": "another"}],
    ids=lambda other: next(iter(other)),
)
async def test_replica_that_is_not_the_one_meant_gets_no_call(other: dict[str, Any]) -> None:
    replicas = Replicas(doubled)
    replicas.listed[0] = replace(replicas.listed[0], **other)
    calls = replicas.calls()
    try:
        await calls.open()
        is_connected = calls.is_connected
        with pytest.raises(ConnectionLostError):
            await calls.infer(inputs_of(1))
    finally:
        await calls.aclose()
        replicas.end()

    assert not is_connected
    assert replicas.threads[0].asked == []


async def test_call_by_a_unix_socket_is_answered(tmp_path: Path) -> None:
    replicas = Replicas()
    replicas.threads = [ReplicaThread(doubled, "a0", folder=tmp_path)]
    replicas.listed = [replicas.threads[0].address]
    async with connected(replicas) as calls:
        answers = await asyncio.gather(
            calls.infer(inputs_of(1)), calls.infer(inputs_of(2, rows=100_000))
        )

    assert replicas.listed[0].path.startswith(str(tmp_path))
    assert [(number_in(answer), len(answer)) for answer in answers] == [(2, 1), (4, 100_000)]


async def warmed(calls: DirectCalls) -> None:
    """Let the usual time of a call be known."""
    for _ in range(30):
        await calls.infer(inputs_of(1))


async def test_frozen_replica_costs_nobody_more_than_a_late_call() -> None:
    replicas = Replicas(doubled, doubled)
    async with connected(replicas) as calls:
        await warmed(calls)
        replicas.threads[0].freeze()
        slowest = 0.0
        for _ in range(10):
            asked = time.monotonic()
            answers = await asyncio.gather(*(calls.infer(inputs_of(n)) for n in range(20)))
            slowest = max(slowest, time.monotonic() - asked)
            assert [number_in(answer) for answer in answers] == [2 * n for n in range(20)]
        capacity = calls.capacity

    # The bound is that of a slow machine: a call is late after 10 ms here.
    assert slowest < SOON_S
    assert capacity == 1


async def test_frozen_replica_gets_no_further_calls_and_computes_none_that_others_have() -> None:
    replicas = Replicas(doubled, doubled)
    async with connected(replicas) as calls:
        await warmed(calls)
        replicas.threads[0].freeze()
        await asyncio.gather(*(calls.infer(inputs_of(n)) for n in range(4)))
        asked = [calls.ask(inputs_of(5), lambda _: None) for _ in range(10)]
        first = {call.first.address.replica for call in asked if call.first is not None}
        await until(lambda: not any(call.replicas for call in asked))
        before = len(replicas.threads[0].asked)
        replicas.threads[0].thaw()
        await until(lambda: calls.capacity == 2)
        await asyncio.gather(*(calls.infer(inputs_of(7)) for _ in range(20)))

    assert first == {"a1"}
    # It takes part again, and was told in time what had been answered meanwhile.
    numbers = {float(inputs.observations[0, 0]) for inputs in replicas.threads[0].asked[before:]}
    assert numbers == {7.0}


async def test_replica_that_stands_still_is_not_asked_for_a_late_call_either() -> None:
    replicas = Replicas(doubled, doubled)
    async with connected(replicas) as calls:
        await warmed(calls)
        for thread in replicas.threads:
            thread.freeze()
        waiting = [asyncio.create_task(calls.infer(inputs_of(n))) for n in range(4)]
        await until(lambda: calls.capacity == 0)
        call = calls.ask(inputs_of(5), lambda _: None)
        late_at = call.look_at
        await until(lambda: call.look_at > late_at)
        in_two_places = len(call.replicas) > 1
        for thread in replicas.threads:
            thread.thaw()
        await asyncio.gather(*waiting)

    assert not in_two_places


async def test_observation_on_which_the_policy_hangs_holds_up_few_of_many_replicas() -> None:
    is_let_go = threading.Event()

    def hanging(inputs: PolicyInputs) -> PolicyOutputs:
        if inputs.observations[0, 0] < 0:
            assert is_let_go.wait(TIMEOUT_S)
        return doubled(inputs)

    replicas = Replicas(*[hanging] * 6)
    async with connected(replicas) as calls:
        await warmed(calls)
        asked = time.monotonic()
        hung = calls.ask(inputs_of(-1), lambda _: None)
        # Longer than it takes to ask each of them, if none was spared.
        while time.monotonic() < asked + 0.8:
            assert number_in(await calls.infer(inputs_of(1))) == 2
        held_up = len(hung.replicas)
        is_let_go.set()
        await until(lambda: calls.capacity == 6)

    assert held_up == 2


async def test_call_on_which_a_replica_hung_is_not_asked_again_as_others_are(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", HUNG_S)
    replicas = Replicas(doubled)
    async with connected(replicas) as calls:
        await warmed(calls)
        replicas.threads[0].freeze()
        answers: dict[int, PolicyOutputs | Exception] = {}
        for number in range(3):
            calls.ask(inputs_of(number), partial(answers.__setitem__, number))
        # So long that it counts as hung.
        await asyncio.sleep(3 * HUNG_S)
        replicas.listed.clear()
        replicas.threads[0].end_without_answers()
        await until(lambda: len(answers) == 3)

    assert isinstance(answers[0], OverloadedError)
    assert "took too long" in str(answers[0])
    assert [type(answers[number]) for number in (1, 2)] == [ConnectionLostError] * 2
    hung = [vars(record)["replica"] for record in caplog.records if record.msg == "replica_hung"]
    assert hung == ["a0"]


async def test_call_that_holds_up_two_replicas_is_given_up_with_the_first_that_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", HUNG_S)
    outcomes: list[PolicyOutputs | Exception] = []
    events = [threading.Event(), threading.Event()]

    def hanging(index: int, inputs: PolicyInputs) -> PolicyOutputs:
        if inputs.observations[0, 0] < 0:
            assert events[index].wait(TIMEOUT_S)
            replicas.threads[index].end_in_a_call()
        return doubled(inputs)

    replicas = Replicas(partial(hanging, 0), partial(hanging, 1))
    async with connected(replicas) as calls:
        await warmed(calls)
        hung = calls.ask(inputs_of(-1), outcomes.append)
        # So long that the first one counts as hung.
        await asyncio.sleep(3 * HUNG_S)
        held_up = len(hung.replicas)
        replicas.listed.clear()
        events[0].set()
        await until(lambda: outcomes)
        events[1].set()

    assert held_up == 2
    assert len(outcomes) == 1
    assert isinstance(outcomes[0], OverloadedError)


async def test_only_replica_that_freezes_is_waited_for() -> None:
    replicas = Replicas(doubled)
    async with connected(replicas) as calls:
        await warmed(calls)
        replicas.threads[0].freeze()
        call = asyncio.create_task(calls.infer(inputs_of(3)))
        await until(lambda: calls.capacity == 0)
        is_connected = calls.is_connected
        replicas.threads[0].thaw()

        assert number_in(await call) == 6
        await until(lambda: calls.capacity == 1)
    assert is_connected


async def test_call_that_waits_for_a_frozen_replica_goes_to_one_that_comes() -> None:
    replicas = Replicas(doubled)
    calls = replicas.calls(2)
    try:
        await calls.open()
        await warmed(calls)
        replicas.threads[0].freeze()
        waiting = [asyncio.create_task(calls.infer(inputs_of(n))) for n in range(40)]
        await until(lambda: calls.capacity == 0)
        replicas.add(doubled, "another")
        answers = await asyncio.gather(*waiting)
    finally:
        await calls.aclose()
        replicas.end()

    assert [number_in(answer) for answer in answers] == [2 * n for n in range(40)]


async def test_call_is_given_up_after_the_time_that_it_is_given() -> None:
    told: list[object] = []
    replicas = Replicas(doubled)
    async with connected(replicas, timeout_s=3600) as calls:
        replicas.threads[0].freeze()
        calls.ask(inputs_of(1), told.append, within_s=0.05)
        await until(lambda: told)

    assert [type(outcome) for outcome in told] == [OverloadedError]


async def test_call_without_an_answer_is_given_up_at_its_deadline() -> None:
    replicas = Replicas(doubled)
    async with connected(replicas, timeout_s=0.2) as calls:
        replicas.threads[0].freeze()

        with pytest.raises(OverloadedError, match=r"no replica answered within 0\.2 s"):
            await calls.infer(inputs_of(3))


def by_rows(*, name: str) -> Infer:
    """Return a replica whose draws are its own, but for those with a seed."""

    def infer(inputs: PolicyInputs) -> PolicyOutputs:
        rows = len(inputs)
        drawn = np.where(inputs.seeds >= 0, inputs.seeds, float(name))
        return PolicyOutputs(drawn[:, None].astype(float), np.ones(rows), None)

    return infer


async def test_call_that_is_asked_twice_is_answered_once_and_a_seed_gives_the_same() -> None:
    replicas = Replicas(by_rows(name="100"), by_rows(name="200"))
    answers: list[PolicyOutputs | Exception] = []
    async with connected(replicas) as calls:
        await warmed(calls)
        replicas.threads[0].freeze()
        inputs = PolicyInputs.of(np.zeros((2, 2), np.float32), seeds=[7, -1])
        for _ in range(4):
            calls.ask(inputs, answers.append)
        await until(lambda: len(answers) == 4)
        replicas.threads[0].thaw()
        await until(lambda: calls.capacity == 2)
        await calls.infer(inputs_of(1))

    found = [
        answer.actions[:, 0].tolist() for answer in answers if isinstance(answer, PolicyOutputs)
    ]
    # The frozen one was asked two of the four, which the other one has answered.
    assert found == [[7.0, 200.0]] * 4


async def test_overload_is_no_reason_to_ask_twice_without_end() -> None:
    def slow(inputs: PolicyInputs) -> PolicyOutputs:
        time.sleep(0.005)
        return doubled(inputs)

    replicas = Replicas(slow, slow)
    answers: list[PolicyOutputs | Exception] = []
    async with connected(replicas) as calls:
        await warmed(calls)
        # All at once: most wait for far longer than a call usually takes.
        asked = [calls.ask(inputs_of(n), answers.append) for n in range(200)]
        twice: set[int] = set()
        while len(answers) < len(asked):
            twice |= {call.number for call in asked if len(call.replicas) > 1}
            await asyncio.sleep(0.001)

    assert not any(isinstance(answer, Exception) for answer in answers)
    # The sixteen of a calm time: all were asked before one of them was late.
    assert 0 < len(twice) <= 16


async def test_short_call_does_not_wait_until_a_long_one_is_sent() -> None:
    order: list[int] = []
    long = inputs_of(1, rows=3_000_000)
    async with connected(Replicas(doubled)) as calls:
        calls.ask(long, lambda _: order.append(len(long)))
        calls.ask(inputs_of(1), lambda _: order.append(1))
        await until(lambda: len(order) == 2)

    assert order == [1, len(long)]


def test_usual_time_is_known_by_the_number_of_rows() -> None:
    times = UsualTimes()
    unknown = times.late_after(1)
    for _ in range(200):
        times.observe(1, 0.004)
        times.observe(1000, 0.1)

    assert unknown == 1.0
    assert times.late_after(1) == pytest.approx(0.01, rel=0.01)
    assert times.late_after(900) == pytest.approx(0.2, rel=0.01)
    # The nearest smaller size tells of one that has not been seen.
    assert times.late_after(4) == pytest.approx(0.04, rel=0.01)
    assert times.late_after(10_000) == pytest.approx(0.2 * 2**4, rel=0.01)


def test_usual_time_follows_a_policy_that_becomes_slower() -> None:
    times = UsualTimes()
    for _ in range(100):
        times.observe(1, 0.001)
    for _ in range(100):
        times.observe(1, 0.1)

    assert 0.1 < times.late_after(1) < 0.3


def test_duplicates_are_one_in_twenty_calls_after_the_first_few() -> None:
    budget = DuplicateBudget()
    at_once = sum(budget.take() for _ in range(100))
    later = 0
    for _ in range(1000):
        budget.count_call()
        later += budget.take()

    assert at_once == 16
    assert 49 <= later <= 50


async def test_replica_that_is_found_twice_at_once_is_connected_once() -> None:
    replicas = Replicas(doubled)
    lost: list[ConnectedReplica] = []
    connections = ReplicaConnections(
        replicas, replicas=1, on_answer=lambda *_: None, on_lost=lost.append
    )
    try:
        await asyncio.gather(*(connections.connect_missing() for _ in range(3)))
        await turns(5)
        lost_before, connected = len(lost), len(connections.replicas)
        await connections.aclose()
    finally:
        replicas.end()

    assert (lost_before, connected, len(lost)) == (0, 1, 1)
