"""The backend of a version as its scheduler has it: each way of calling it, and the counts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policy_server.errors import OverloadedError, PolicyFailedError
from policy_server.metrics import Metrics
from policy_server.policy import (
    DEFAULT_POLICY,
    PolicyBackend,
    PolicyInputs,
    PolicyOutputs,
    SendingBackend,
)
from policy_server.schema import parse_schema
from policy_server.serving import PolicySlot, Question
from policy_server.serving.counted_backend import VersionRecord, counted
from policy_server.settings import Settings
from tests.support.fakes import (
    Sending,
    immediate_backend,
    integer_backend,
    opened,
    sending_backend,
    slot_of,
)
from tests.support.waiting import turns, until

SCHEMA = parse_schema("observations: {cat: {type: float}, mouse: {type: float}}")
# A version answers each kind of question once before it is served.
WARM_UP = 3


async def served(
    backend: PolicyBackend,
    metrics: Metrics | None = None,
    **settings: Any,  # noqa: ANN401 -- settings
) -> PolicySlot:
    """Return a slot whose live version computes in a backend."""
    slot = slot_of(backend, SCHEMA, settings=Settings(**settings), metrics=metrics)
    await slot.start()
    return slot


async def mode_of(slot: PolicySlot, start: float = 0.0) -> float:
    """Return the action that a slot's live version answers."""
    question = Question([start, 0.0], "predict_deterministic")
    answer = await slot.current().scheduler.answer(question)
    return float(answer.call.outputs.actions[answer.index, 0])


def record_of(slot: PolicySlot) -> tuple[int, int]:
    """Return how many questions the live version was asked since its warm-up, and failed."""
    record = slot.current().record
    return record.asked - WARM_UP, record.failed


@pytest.mark.parametrize("is_sending", [True, False], ids=["sends", "does not"])
async def test_backend_can_be_sent_calls_only_where_the_one_behind_it_can(
    is_sending: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    backend = sending_backend() if is_sending else integer_backend()

    wrapped = counted(backend, Metrics().of(DEFAULT_POLICY), "v1", VersionRecord())

    assert isinstance(wrapped, SendingBackend) == is_sending


async def test_version_sends_its_questions_to_a_backend_that_takes_them_and_counts_them() -> None:
    metrics, backend = Metrics(), sending_backend()
    slot = await served(backend, metrics)

    action = await mode_of(slot)

    assert action == 2
    assert backend.sent == [1] * (WARM_UP + 1)
    assert backend.batches == backend.sent
    assert record_of(slot) == (1, 0)
    assert sum(metrics.snapshot().numbers["actions"].values()) == WARM_UP + 1
    await slot.aclose()


async def test_version_has_a_backend_that_answers_at_once_do_so() -> None:
    backend = immediate_backend()
    slot = await served(backend)

    assert await mode_of(slot) == 2
    assert backend.at_once == [1] * (WARM_UP + 1)
    assert record_of(slot) == (1, 0)
    await slot.aclose()


async def test_call_that_was_sent_and_is_lost_is_made_by_a_task_and_counted_once() -> None:
    backend = sending_backend()
    slot = await served(backend)
    backend.losses = 1

    assert await mode_of(slot) == 2
    assert record_of(slot) == (1, 0)
    assert len(backend.batches) - len(backend.sent) == 1
    await slot.aclose()


async def test_call_that_was_sent_and_fails_is_asked_again_by_halves() -> None:
    backend = sending_backend(error=IndexError("no"))
    slot = await served(backend)

    good, bad = await asyncio.gather(
        mode_of(slot, 9.0), mode_of(slot, backend.poison), return_exceptions=True
    )

    assert good == 0
    assert isinstance(bad, PolicyFailedError)
    assert backend.batches[WARM_UP:] == [2, 1, 1]
    assert record_of(slot) == (4, 3)
    await slot.aclose()


async def test_action_that_can_not_be_counted_fails_the_call_that_was_sent() -> None:
    class Negative(Sending):
        is_wrong = False

        async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
            outputs = await super().infer(inputs)
            return replace(outputs, actions=np.full((1, 1), -1.0)) if self.is_wrong else outputs

    known = integer_backend()
    backend = Negative(known.signature, known.bias)
    slot = await served(backend)
    backend.is_wrong = True

    with pytest.raises(PolicyFailedError):
        await mode_of(slot)
    await slot.aclose()


async def test_version_that_is_unloaded_waits_for_the_calls_that_were_sent() -> None:
    backend = sending_backend()
    slot = await served(backend)
    backend.gate = asyncio.Event()
    waiting = asyncio.create_task(mode_of(slot))
    await until(lambda: len(backend.sent) == WARM_UP + 1)

    swapping = asyncio.create_task(slot.swap(lambda: opened(integer_backend((9.0, 0.0, 0.0)))))
    await until(lambda: slot.current().backend is not backend)
    await turns()
    was_draining = not swapping.done()
    backend.gate.set()
    await swapping

    assert was_draining
    assert (await waiting, await mode_of(slot)) == (2, 0)
    await slot.aclose()


async def test_call_that_was_sent_and_comes_too_late_is_counted_and_occupies_nothing() -> None:
    metrics, late = Metrics(), OverloadedError("no replica answered within 5 s")
    backend = sending_backend(error=late)
    slot = await served(backend, metrics, request_timeout_s=5)

    for _ in range(3):
        with pytest.raises(OverloadedError, match="within 5 s"):
            await mode_of(slot, backend.poison)

    # The time that the question had left: nobody but the backend ends a call that was sent.
    assert 0 < backend.within_s <= 5
    assert await mode_of(slot) == 2
    assert record_of(slot) == (4, 3)
    assert metrics.snapshot().numbers["rejected"] == {("timeout", DEFAULT_POLICY): 3.0}
    await slot.aclose()
