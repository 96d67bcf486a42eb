"""The registry and its slots: several policies side by side, and a version that takes over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import pytest

from policy_server.errors import ModelError, NotReadyError, PolicyFailedError, SettingsError
from policy_server.metrics import Metrics
from policy_server.policy import AnswerKind
from policy_server.schema import parse_schema
from policy_server.serving import OpenedPolicy, PolicyRegistry, PolicySlot, Question
from tests.support.fakes import FakeBackend, integer_backend, opened, slot_of
from tests.support.waiting import turns, until

SCHEMA = parse_schema("observations: {cat: {type: int}, mouse: {type: float}}")
ZERO, TWO = (9.0, 0.0, 0.0), (0.0, 0.0, 9.0)


async def mode_of(slot: PolicySlot, kind: AnswerKind = "predict_deterministic") -> float:
    """Return the action that a slot's live version answers."""
    answer = await slot.current().scheduler.answer(Question([0.0, 0.0], kind))
    return float(answer.call.outputs.actions[answer.index, 0])


async def test_policies_answer_side_by_side_each_by_its_own() -> None:
    metrics = Metrics()
    biases = {"door": ZERO, "lift": TWO, "lamp": (0.0, 9.0, 0.0)}
    registry = PolicyRegistry(
        [
            slot_of(integer_backend(bias), SCHEMA, name=name, metrics=metrics)
            for name, bias in biases.items()
        ],
        default="lift",
    )

    async with registry.running():
        actions = {slot.name: await mode_of(slot) for slot in registry}
        is_ready = await registry.is_ready()

    assert actions == {"door": 0, "lift": 2, "lamp": 1}
    assert (registry.default.name, len(registry), registry["door"].name) == ("lift", 3, "door")
    assert is_ready
    counted = metrics.snapshot().numbers["actions"]
    assert {labels[-1] for labels in counted} == set(biases)


@pytest.mark.parametrize("name", ["", "a/b", "-a", "ü", "a" * 64, "a b"])
def test_name_that_cannot_stand_in_an_address_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="can't stand in an address"):
        PolicyRegistry([slot_of(integer_backend(), SCHEMA, name=name)])


def test_name_of_two_policies_is_refused() -> None:
    slots = [slot_of(integer_backend(), SCHEMA, name="door") for _ in range(2)]

    with pytest.raises(SettingsError, match="'door' stands for two policies"):
        PolicyRegistry(slots)


async def test_policy_that_cannot_be_loaded_leaves_the_others_serving() -> None:
    is_open = False

    @asynccontextmanager
    async def open_first() -> AsyncIterator[OpenedPolicy]:
        nonlocal is_open
        is_open = True
        yield OpenedPolicy(integer_backend(TWO))
        is_open = False

    def open_second() -> AbstractAsyncContextManager[OpenedPolicy]:
        raise ModelError("no policy")

    first = slot_of(open_first, SCHEMA, name="first")
    second = slot_of(open_second, SCHEMA, name="second")
    registry = PolicyRegistry([second, first])

    async with registry.running():
        answered, is_ready, failures = (
            await mode_of(first),
            await registry.is_ready(),
            registry.failures,
        )
        with pytest.raises(NotReadyError, match="second can't be served; the server's log has"):
            second.choose()

    assert (answered, is_ready, failures) == (2, True, {"second": "no policy"})
    assert not is_open
    with pytest.raises(ModelError, match="no policy"):
        async with PolicyRegistry([second]).running():
            pytest.fail("it was served")


async def test_new_version_takes_over_at_once_and_the_old_one_answers_what_it_has() -> None:
    old, new = integer_backend(ZERO), integer_backend(TWO)
    slot = slot_of(old, SCHEMA)
    await slot.start()
    old.gate = asyncio.Event()
    waiting = asyncio.create_task(mode_of(slot))
    await until(lambda: len(old.batches) == 4)

    swapping = asyncio.create_task(slot.swap(lambda: opened(new)))
    await until(lambda: slot.current().signature is new.signature)
    during = await mode_of(slot)
    was_draining = not swapping.done()
    old.gate.set()
    await swapping

    assert (await waiting, during, await mode_of(slot)) == (0, 2, 2)
    assert was_draining
    await slot.aclose()


@pytest.mark.parametrize("error", [ModelError("damaged"), PolicyFailedError("fails")])
async def test_version_that_cannot_be_brought_up_changes_nothing(error: Exception) -> None:
    slot = slot_of(integer_backend(ZERO), SCHEMA)
    await slot.start()
    before = slot.live
    broken = replace(integer_backend(TWO), error=error, poison=0.0)

    with pytest.raises(type(error)):
        await slot.swap(lambda: opened(broken))

    assert slot.live is before
    assert await mode_of(slot) == 0
    await slot.aclose()


async def test_slot_without_a_version_is_not_ready() -> None:
    slot = slot_of(integer_backend(), SCHEMA)

    assert not await slot.is_ready()
    with pytest.raises(NotReadyError, match="not loaded yet"):
        slot.current()


async def test_readiness_is_asked_once_for_all_who_ask_within_a_second() -> None:
    asked = 0

    class Counting(FakeBackend):
        async def is_ready(self) -> bool:
            nonlocal asked
            asked += 1
            await turns(1)
            return True

    known = integer_backend()
    slot = slot_of(Counting(known.signature, known.bias), SCHEMA)
    await slot.start()

    at_once = await asyncio.gather(*(slot.is_ready() for _ in range(50)))
    later = await slot.is_ready()

    assert (set(at_once), later, asked) == ({True}, True, 1)
    await slot.aclose()


async def test_readiness_of_the_old_version_says_nothing_of_the_new_one() -> None:
    slot = slot_of(integer_backend(), SCHEMA)
    await slot.start()
    assert await slot.is_ready()

    await slot.swap(lambda: opened(replace(integer_backend(), is_up=False)))

    assert not await slot.is_ready()
    await slot.aclose()


async def test_slot_that_is_being_closed_is_not_ready() -> None:
    backend = integer_backend()
    slot = slot_of(backend, SCHEMA)
    await slot.start()
    assert await slot.is_ready()
    backend.gate = asyncio.Event()
    waiting = asyncio.create_task(mode_of(slot))
    while len(backend.batches) < 4:
        await asyncio.sleep(0)

    closing = asyncio.create_task(slot.aclose())
    await turns()
    was_ready = await slot.is_ready()
    backend.gate.set()
    await closing

    assert not was_ready
    assert await waiting == 2
