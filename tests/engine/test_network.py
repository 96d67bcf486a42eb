"""A network as NumPy operations: any number of rows, and no array written over too early."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.engine.network import CompiledPolicy, NetworkPolicy, NumpyNetwork, Step
from policy_server.errors import UnsupportedAnswerError
from policy_server.metrics import Metrics
from policy_server.policy import (
    DEFAULT_POLICY,
    ActionComponent,
    PolicyInputs,
    PolicyOutputs,
    StateTensor,
)
from policy_server.serving import Limits, Question, Scheduler
from tests.support.compiled import COMPILED
from tests.support.fakes import FakeBackend, components_of, signature_of

WEIGHTS = np.array([[1.0, -2.0], [2.0, 0.5]], np.float32)
BIAS = np.array([0.5, -0.5], np.float32)


def test_network_runs_its_steps_for_any_batch() -> None:
    weights, bias = np.array([[1.0], [2.0]], np.float32), np.array([0.5], np.float32)
    steps = (Step("MatMul", (0, 1), 3), Step("BiasAdd", (3, 2), 4), Step("Relu", (4,), 5))
    run = NumpyNetwork({1: weights, 2: bias}, steps, result=5, registers=6).compile()

    assert run(np.array([[1.0, 1.0], [-1.0, -1.0]], np.float32)).tolist() == [[3.5], [0.0]]
    assert run(np.array([[0.0, 1.0]], np.float32)).tolist() == [[2.5]]


def test_columns_by_constants_are_those_of_the_operations() -> None:
    constants = {1: np.array([0, 1]), 2: np.array([-1, 2]), 3: np.array([1, 0]), 4: np.array(1)}
    steps = (
        Step("Slice", (0, 1, 2), 5),
        Step("Slice", (0, 3, 2), 6),
        Step("ConcatV2", (5, 0, 4), 9),
    )
    rows = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    for result, expected in [
        (5, rows[:, 1:3]),
        (6, rows[1:, :2]),
        (9, np.hstack([rows[:, 1:3], rows])),
    ]:
        network = NumpyNetwork(constants, steps, result, 10)
        np.testing.assert_array_equal(network.compile()(rows), expected)


def test_compiled_policy_answers_from_its_network() -> None:
    signature = signature_of(components_of(("categorical", 2)))
    network = NumpyNetwork({}, (Step("Neg", (0,), 1),), result=1, registers=2)
    policy = NetworkPolicy(CompiledPolicy(signature, network))

    rows = np.array([[5.0, 0.0], [0.0, 5.0]], np.float32)
    outputs = policy.infer(PolicyInputs.of(rows, is_deterministic=True))

    assert outputs.actions.tolist() == [[1.0], [0.0]]
    assert outputs.probability == pytest.approx(1 / (1 + np.exp(-5.0)))


def test_activation_does_not_write_over_what_is_read_again() -> None:
    """A residual network adds a layer's product to what its activation made of it."""
    steps = (
        Step("MatMul", (0, 1), 3),
        Step("BiasAdd", (3, 2), 4),
        Step("Tanh", (4,), 5),
        Step("Add", (4, 5), 6),
        Step("Relu", (0,), 7),
        Step("Sub", (6, 7), 8),
    )
    run = NumpyNetwork({1: WEIGHTS, 2: BIAS}, steps, result=8, registers=9).compile()
    rows = np.array([[1.0, -1.0], [0.25, 0.5]], np.float32)
    sent = rows.copy()

    first, second = run(rows), run(rows)

    product = sent @ WEIGHTS + BIAS
    assert first == pytest.approx(product + np.tanh(product) - np.maximum(sent, 0))
    assert (first == second).all()
    assert (rows == sent).all()


def test_result_that_a_later_step_reads_too_stays_as_it_is() -> None:
    steps = (Step("MatMul", (0, 1), 2), Step("Tanh", (2,), 3), Step("Neg", (3,), 4))
    run = NumpyNetwork({1: WEIGHTS}, steps, result=2, registers=5).compile()
    rows = np.array([[1.0, 1.0]], np.float32)

    assert run(rows).tolist() == (rows @ WEIGHTS).tolist()


def test_sum_of_another_shape_makes_a_new_array() -> None:
    """A column of products plus a row of numbers is a matrix."""
    steps = (Step("MatMul", (0, 1), 3), Step("AddV2", (3, 2), 4))
    run = NumpyNetwork({1: WEIGHTS[:, :1], 2: BIAS}, steps, result=4, registers=5).compile()

    assert run(np.array([[1.0, 1.0]], np.float32)).tolist() == [[3.5, 2.5]]


def test_many_rows_are_answered_as_few_are() -> None:
    signature = signature_of(components_of(("categorical", 2)))
    network = NumpyNetwork({1: WEIGHTS}, (Step("MatMul", (0, 1), 2),), result=2, registers=3)
    policy = NetworkPolicy(CompiledPolicy(signature, network))
    rows = np.random.default_rng(5).normal(size=(1100, 2)).astype(np.float32)
    is_deterministic = np.arange(1100) % 3 == 0
    seeds = np.arange(1100)

    inputs = PolicyInputs(rows, is_deterministic, seeds)
    whole = policy.infer(inputs)

    parts = [policy.infer(inputs.part(*part)) for part in ((0, 300), (300, 800), (800, 1100))]
    assert whole.actions.tolist() == np.concatenate([part.actions for part in parts]).tolist()
    expected = np.concatenate([part.log_probability for part in parts])
    assert whole.log_probability == pytest.approx(expected)
    assert whole.distribution == pytest.approx(rows @ WEIGHTS, abs=1e-6)


SEEDED_PARTS: dict[str, tuple[ActionComponent, ...]] = {
    "Box": components_of(("normal", 3)),
    "squashed Box": components_of(("squashed_normal", 9)),
    "many choices": components_of(("categorical", 37)),
    "many parts": components_of(*((("categorical", 3), ("categorical", 2)) * 6)),
    "tuple": components_of(("categorical", 12), ("normal", 2)),
    "Box with bounds": tuple(
        replace(part, low=(-1.0,) * 2, high=(3.0,) * 2) for part in components_of(("normal", 2))
    ),
}
seeded = pytest.mark.parametrize("components", SEEDED_PARTS.values(), ids=SEEDED_PARTS)


def layered(components: tuple[ActionComponent, ...], width: int = 7) -> NetworkPolicy:
    """Return a policy of two layers of 64, with random weights."""
    generator = np.random.default_rng(11)
    outputs = sum(part.inputs for part in components)
    sizes = (width, 64, 64, outputs)
    constants = {
        place: generator.normal(size=shape).astype(np.float32) / np.float32(8)
        for place, shape in enumerate(itertools.pairwise(sizes), start=1)
    }
    steps = (
        Step("MatMul", (0, 1), 4),
        Step("Tanh", (4,), 5),
        Step("MatMul", (5, 2), 6),
        Step("Relu", (6,), 7),
        Step("MatMul", (7, 3), 8),
    )
    network = NumpyNetwork(constants, steps, result=8, registers=9)
    return NetworkPolicy(CompiledPolicy(signature_of(components, width=width), network))


def test_mask_holds_for_its_own_row_in_a_call_of_any_size() -> None:
    policy = layered(components_of(("categorical", 4)))
    policy = NetworkPolicy(
        replace(policy.compiled, signature=replace(policy.signature, mask_name="action_mask"))
    )
    rows = np.random.default_rng(3).normal(size=(1100, 7)).astype(np.float32)
    masks = np.arange(4) == (np.arange(1100) % 4)[:, None]

    answered = policy.infer(replace(PolicyInputs.of(rows), masks=masks))
    free = policy.infer(PolicyInputs.of(rows))

    assert answered.actions[:, 0].tolist() == (np.arange(1100) % 4).tolist()
    assert answered.probability.tolist() == [1.0] * 1100
    assert set(free.actions[:, 0]) == {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize(
    ("name", "masks", "reason"),
    [
        (None, np.ones((1, 4), np.bool_), "takes no action mask; ask without one"),
        ("legal", np.ones((1, 3), np.bool_), "action mask has 4 choices, not 3; give each once"),
    ],
    ids=["none", "too-short"],
)
def test_mask_that_the_policy_does_not_take_is_refused(
    name: str | None, masks: NDArray[np.bool_], reason: str
) -> None:
    policy = layered(components_of(("categorical", 4)))
    policy = NetworkPolicy(
        replace(policy.compiled, signature=replace(policy.signature, mask_name=name))
    )
    inputs = replace(PolicyInputs.of(np.zeros((1, 7), np.float32)), masks=masks)

    with pytest.raises(UnsupportedAnswerError, match=reason):
        policy.infer(inputs)


def drawn(
    policy: NetworkPolicy, rows: NDArray[np.float32], seeds: NDArray[np.int64]
) -> PolicyOutputs:
    """Return draws."""
    return policy.infer(PolicyInputs.of(rows, seeds=seeds))


@seeded
@pytest.mark.parametrize("size", [2, 3, 8, 33, 600])
def test_seeded_answer_is_the_same_to_the_last_bit_in_any_batch(
    components: tuple[ActionComponent, ...], size: int
) -> None:
    policy = layered(components)
    rows = np.random.default_rng(12).normal(size=(size, 7)).astype(np.float32)
    seeds = np.arange(size)
    # Some of the neighbours have no seed.
    seeds[1::3] = -1

    together = drawn(policy, rows, seeds)

    for row in np.flatnonzero(seeds >= 0)[-20:]:
        alone = drawn(policy, rows[row : row + 1].copy(), seeds[row : row + 1])
        assert alone.actions[0].tobytes() == together.actions[row].tobytes()
        assert alone.log_probability[0].tobytes() == together.log_probability[row].tobytes()


def summing() -> NetworkPolicy:
    """Return a policy whose two logits are the sums of the observations of its episode so far."""
    both = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    steps = (Step("MatMul", (0, 1), 2), Step("ConcatV2", (2, 2, 3), 4))
    network = NumpyNetwork({1: both, 3: np.array(1)}, steps, result=4, registers=5)
    signature = signature_of(components_of(("categorical", 2)))
    memory = (StateTensor("h", (1, 1)), StateTensor("c", (1,)))
    return NetworkPolicy(CompiledPolicy(replace(signature, memory=memory), network))


@pytest.mark.parametrize("size", [1, 2, 700])
def test_state_steps_row_by_row(size: int) -> None:
    policy = summing()
    rows = np.arange(2 * size, dtype=np.float32).reshape(size, 2) / size
    state = np.zeros((size, 2), np.float32)

    for count in (1, 2, 3):
        outputs = policy.infer(PolicyInputs.of(rows, state=state))

        assert outputs.state is not None
        assert outputs.distribution is not None
        state = outputs.state
        assert state == pytest.approx(rows * count)
        assert outputs.distribution == pytest.approx(rows * count)


def test_state_is_zero_where_none_is_given() -> None:
    rows = np.array([[0.5, 1.0]], np.float32)

    outputs = summing().infer(PolicyInputs.of(rows))

    assert outputs.state is None
    assert outputs.distribution == pytest.approx(rows)


def test_state_for_a_policy_without_memory_is_refused() -> None:
    policy = NetworkPolicy(COMPILED)
    rows = np.zeros((1, 2), np.float32)

    with pytest.raises(UnsupportedAnswerError, match="takes no state"):
        policy.infer(PolicyInputs.of(rows, state=np.zeros((1, 1), np.float32)))


async def test_seeded_draw_of_a_box_is_the_same_through_the_scheduler() -> None:
    policy = layered(SEEDED_PARTS["Box"])
    rows = np.random.default_rng(13).normal(size=(40, 7)).astype(np.float32)

    backend = FakeBackend(policy.signature, (), policy=policy)
    limits = Limits(max_batch_size=32, max_queue_size=100, timeout_s=10.0, max_wait_s=10.0)
    scheduler = Scheduler(backend, limits, Metrics().of(DEFAULT_POLICY))

    async def ask(index: int) -> bytes:
        seed = index if index % 4 else -1
        answer = await scheduler.ask(Question(rows[index].tolist(), "predict", seed))
        return bytes(answer.call.outputs.actions[answer.index].tobytes())

    together = await asyncio.gather(*(ask(index) for index in range(40)))
    alone = [await ask(index) for index in range(40)]

    assert max(backend.batches) == 32
    assert [alone[i] == together[i] for i in range(40) if i % 4] == [True] * 30
