"""The steps of an episode, in their order, while their version is unloaded."""

from __future__ import annotations

import asyncio

import pytest

from policy_server.errors import NotReadyError, PolicyServerError
from policy_server.schema import parse_schema
from policy_server.serving import (
    AnsweredCall,
    EpisodeMemory,
    EpisodeSteps,
    PolicySlot,
    Question,
    Waiting,
)
from tests.support.fakes import gated, hold, opened, slot_of, summing_backend
from tests.support.waiting import turns, until

SCHEMA = parse_schema("observations: {cat: {type: float}, mouse: {type: float}}")


class Heard(Waiting):
    """A step that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(Question([1.0, 0.0], "predict_deterministic"))
        self.told: list[object] = []

    def take(self, call: AnsweredCall, index: int) -> None:
        self.told.append(int(call.outputs.actions[index, 0]))

    def take_error(self, error: PolicyServerError) -> None:
        self.told.append(error)


async def unloading(slot: PolicySlot) -> asyncio.Task[None]:
    """Begin to unload the version that answers, which has a successor."""
    label = slot.current().label
    await slot.add(lambda: opened(summing_backend()), name="v2")
    slot.route({"v2": 100.0})
    task = asyncio.create_task(slot.remove(label))
    await turns()
    return task


async def test_steps_that_wait_are_answered_by_a_version_that_is_unloaded() -> None:
    backend = gated(summing_backend())
    slot = slot_of(backend, SCHEMA)
    await slot.start()
    gate = hold(backend)
    steps = EpisodeSteps(EpisodeMemory.begin(slot.current()))
    asked = [Heard() for _ in range(3)]
    for step in asked:
        steps.ask(step)
    removing = await unloading(slot)
    late = Heard()
    with pytest.raises(NotReadyError, match="shutting down") as refused:
        steps.ask(late)
    was_draining = not removing.done()
    gate.set()
    await removing

    assert [step.told for step in asked] == [[1], [2], [0]]
    assert was_draining
    assert f"version {steps.memory.version.label} " in refused.value.message
    await slot.aclose()


async def test_steps_that_are_given_up_hold_no_version() -> None:
    backend = gated(summing_backend())
    slot = slot_of(backend, SCHEMA)
    await slot.start()
    gate = hold(backend)
    steps = EpisodeSteps(EpisodeMemory.begin(slot.current()))
    asked = [steps.ask(Heard()) for _ in range(3)]
    removing = await unloading(slot)
    for step in reversed(asked):
        step.give_up()
    gate.set()
    await removing

    assert not steps.asked
    await slot.aclose()


async def test_step_behind_one_that_is_answered_holds_the_version_no_longer() -> None:
    slot = slot_of(summing_backend(), SCHEMA)
    await slot.start()
    steps = EpisodeSteps(EpisodeMemory.begin(slot.current()))
    asked = [Heard() for _ in range(3)]
    for step in asked:
        steps.ask(step)
    await until(lambda: all(step.told for step in asked))

    await (await unloading(slot))

    assert [step.told for step in asked] == [[1], [2], [0]]
    await slot.aclose()
