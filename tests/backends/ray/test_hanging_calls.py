"""Observations at which the policy hangs: each holds up one replica, and alone is to blame."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from policy_server.backends.ray import direct_calls
from policy_server.backends.ray.asked_call import AskedCall
from policy_server.backends.ray.direct_calls import ConnectionLostError, DirectCalls
from policy_server.backends.ray_processes import ProcessUse
from policy_server.errors import OverloadedError, PolicyHangsError
from policy_server.policy import PolicyInputs, PolicyOutputs
from tests.support.call_replicas import Replicas, connected, doubled, inputs_of, number_in
from tests.support.waiting import until

TIMEOUT_S = 20.0
# After this a replica counts as hung.
HUNG_S = 0.05
HANGING = -1.0
# So often a late call has looked for another replica.
LOOKS = 30


@pytest.fixture(autouse=True)
def _hung_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", HUNG_S)


class Hanging:
    """Replicas that hang at a number until they are let go, and go on or end then.

    Attributes:
        replicas: the replicas.
        begun: those that hang.
    """

    def __init__(self, count: int, folder: Path | None) -> None:
        """Own the replicas, until they end with `connected`."""
        self.begun: list[int] = []
        self._is_let_go = threading.Event()
        self._ends = False
        infers = [partial(self._infer, index) for index in range(count)]
        self.replicas = Replicas(*infers, folder=folder)

    def end(self) -> None:
        """End the replicas that hang, in their call."""
        self._ends = True
        self.replicas.listed.clear()
        self._is_let_go.set()

    def go_on(self) -> None:
        """Have them answer after all."""
        self._is_let_go.set()

    def _infer(self, index: int, inputs: PolicyInputs) -> PolicyOutputs:
        if inputs.observations[0, 0] == HANGING and not self._is_let_go.is_set():
            self.begun.append(index)
            assert self._is_let_go.wait(TIMEOUT_S)
            if self._ends:
                self.replicas.threads[index].end_in_a_call()
        return doubled(inputs)


class Use:
    """The use that a process makes of the machine: a processor of its own, until it is changed."""

    is_stopped = False
    is_at_rest = False

    def __call__(self, process: int) -> ProcessUse:
        """Return the use of a process."""
        assert process
        return ProcessUse(
            is_stopped=self.is_stopped,
            is_ready=not self.is_at_rest,
            processor_s=0.0 if self.is_at_rest else time.monotonic(),
        )


async def warmed(calls: DirectCalls) -> None:
    """Let the usual time of a call be known."""
    for _ in range(30):
        await calls.infer(inputs_of(1))


async def looked(call: AskedCall, times: int = LOOKS) -> None:
    """Wait until a call was late so often."""
    for _ in range(times):
        before = call.look_at
        await until(lambda before=before: call.look_at > before)  # type: ignore[misc]


@pytest.mark.parametrize("halts", ["is_stopped", "is_at_rest"])
async def test_call_that_a_replica_gets_on_computing_is_asked_of_no_other_until_it_halts(
    halts: str, tmp_path: Path
) -> None:
    hanging, use = Hanging(2, tmp_path), Use()
    async with connected(hanging.replicas, use_of=use) as calls:
        await warmed(calls)
        hung = calls.ask(inputs_of(HANGING), lambda _: None)
        # Some of them wait behind it.
        others = await asyncio.gather(*(calls.infer(inputs_of(n)) for n in range(6)))
        await looked(hung)
        held_up = len(hung.replicas)
        setattr(use, halts, True)
        await until(lambda: len(hung.replicas) == 2)
        hanging.go_on()

    assert [number_in(outputs) for outputs in others] == [2 * n for n in range(6)]
    assert held_up == 1


async def test_call_behind_that_of_another_web_process_goes_to_another_replica(
    tmp_path: Path,
) -> None:
    hanging = Hanging(1, tmp_path)
    other, calls = hanging.replicas.calls(), hanging.replicas.calls(2, use_of=Use())
    try:
        for each in (other, calls):
            await each.open()
        await warmed(calls)
        other.ask(inputs_of(HANGING), lambda _: None)
        await until(lambda: hanging.begun)
        waiting = asyncio.create_task(calls.infer(inputs_of(3)))
        await until(lambda: calls.capacity == 0)
        hanging.replicas.add(doubled, "another")
        answer = await waiting
        hanging.go_on()
    finally:
        await calls.aclose()
        await other.aclose()
        hanging.replicas.end()

    assert number_in(answer) == 6


async def test_call_that_is_alone_is_asked_of_no_other_replica() -> None:
    replicas = Replicas(doubled, doubled)
    async with connected(replicas) as calls:
        await warmed(calls)
        for thread in replicas.threads:
            thread.freeze()
        call = calls.ask(inputs_of(1), lambda _: None, is_alone=True)
        assert call.first is not None
        others = [t for t in replicas.threads if t.address.replica != call.first.address.replica]
        others[0].thaw()
        await looked(call)
        asked = len(call.replicas)
        replicas.threads[0].thaw()
        replicas.threads[1].thaw()

    assert asked == 1


@pytest.mark.parametrize("has_note", [True, False], ids=["noted", "not noted"])
async def test_call_behind_one_whose_client_has_gone_is_not_to_blame(
    has_note: bool,  # noqa: FBT001 -- a parameter
    tmp_path: Path,
) -> None:
    hanging = Hanging(1, tmp_path if has_note else None)
    outcomes: list[PolicyOutputs | Exception] = []
    told: list[PolicyInputs] = []
    async with connected(hanging.replicas) as calls:
        calls.on_hang = told.append
        culprit = inputs_of(HANGING)
        gone = calls.ask(culprit, outcomes.append)
        await until(lambda: hanging.begun)
        calls.ask(inputs_of(1), outcomes.append)
        calls.give_up(gone)
        await asyncio.sleep(3 * HUNG_S)
        hanging.end()
        await until(lambda: outcomes)

    assert [type(outcome) for outcome in outcomes] == [ConnectionLostError]
    assert told == [culprit]


async def test_call_that_was_withdrawn_in_time_is_not_to_blame_for_a_later_one() -> None:
    hanging = Hanging(1, None)
    outcomes: list[PolicyOutputs | Exception] = []
    told: list[PolicyInputs] = []
    async with connected(hanging.replicas) as calls:
        calls.on_hang = told.append
        await warmed(calls)
        hanging.replicas.threads[0].freeze()
        gone = calls.ask(inputs_of(2), outcomes.append)
        beside = asyncio.create_task(calls.infer(inputs_of(3)))
        await asyncio.sleep(0)
        calls.give_up(gone)
        hanging.replicas.threads[0].thaw()
        await beside
        culprit = inputs_of(HANGING)
        calls.ask(culprit, outcomes.append)
        await until(lambda: calls.capacity == 0)
        await asyncio.sleep(3 * HUNG_S)
        hanging.end()
        await until(lambda: outcomes)

    assert [type(outcome) for outcome in outcomes] == [PolicyHangsError]
    assert told == [culprit]


async def test_neither_a_call_that_was_answered_elsewhere_nor_one_behind_it_is_to_blame() -> None:
    replicas = Replicas(doubled, doubled)
    told: list[PolicyInputs] = []
    outcomes: list[PolicyOutputs | Exception] = []
    async with connected(replicas) as calls:
        calls.on_hang = told.append
        await warmed(calls)
        for thread in replicas.threads:
            thread.freeze()
        answers: list[PolicyOutputs | Exception] = []
        first = calls.ask(inputs_of(1), answers.append)
        behind = [calls.ask(inputs_of(2), outcomes.append, is_alone=True) for _ in range(3)]
        assert first.first is not None
        name = first.first.address.replica
        [hung] = [thread for thread in replicas.threads if thread.address.replica == name]
        [other] = [thread for thread in replicas.threads if thread is not hung]
        other.thaw()
        await until(lambda: answers)
        still = [call for call in behind if call.first is first.first]
        await until(lambda: len(outcomes) == len(behind) - len(still))
        await asyncio.sleep(3 * HUNG_S)
        replicas.listed.clear()
        hung.end_without_answers()
        await until(lambda: len(outcomes) == len(behind))

    assert still
    assert {type(outcome) for outcome in outcomes[-len(still) :]} == {ConnectionLostError}
    assert told == []


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "given up"])
async def test_call_whose_deadline_is_shorter_than_the_replicas_end_is_told_of(
    is_cancelled: bool,  # noqa: FBT001 -- a parameter
) -> None:
    hanging, told = Hanging(1, None), list[PolicyInputs]()
    culprit = inputs_of(HANGING)
    async with connected(hanging.replicas, timeout_s=5.0 if is_cancelled else 0.1) as calls:
        calls.on_hang = told.append
        with pytest.raises((OverloadedError, TimeoutError)):
            await asyncio.wait_for(calls.infer(culprit), 0.1 if is_cancelled else TIMEOUT_S)
        await asyncio.sleep(3 * HUNG_S)
        hanging.end()
        await until(lambda: told)

    assert told == [culprit]


async def test_call_of_the_web_process_whose_call_hangs_is_to_blame_alone(tmp_path: Path) -> None:
    hanging = Hanging(1, tmp_path)
    outcomes: dict[str, PolicyOutputs | Exception] = {}
    told: list[str] = []
    other = hanging.replicas.calls()
    await other.open()
    try:
        async with connected(hanging.replicas) as calls:
            calls.on_hang = lambda _: told.append("culprit")
            other.on_hang = lambda _: told.append("innocent")
            for each in (calls, other):
                await warmed(each)
            calls.ask(inputs_of(HANGING), partial(outcomes.__setitem__, "culprit"))
            await until(lambda: hanging.begun)
            other.ask(inputs_of(1), partial(outcomes.__setitem__, "innocent"))
            await until(lambda: calls.capacity == other.capacity == 0)
            await asyncio.sleep(3 * HUNG_S)
            hanging.end()
            await until(lambda: len(outcomes) == 2)
    finally:
        await other.aclose()

    assert isinstance(outcomes["culprit"], PolicyHangsError)
    assert isinstance(outcomes["innocent"], ConnectionLostError)
    assert told == ["culprit"]
