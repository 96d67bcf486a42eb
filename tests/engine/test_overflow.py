"""Observations so large that numbers of 32 bits overflow on the way to the policy's outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy_server.engine.network import CompiledPolicy, NetworkPolicy, NumpyNetwork, Step
from policy_server.engine.overflow import is_finite
from policy_server.errors import DistributionError
from policy_server.policy import LARGEST, ActionComponent, PolicyInputs
from tests.support.fakes import components_of, signature_of

# The two units of the first layer are 6e38 and 4e38, and their difference is the first output.
LARGE = [2e38, 2e38]
FIRST, SECOND = [[1.5, 1.0], [1.5, 1.0]], [[1.0, 0.0], [-1.0, 1e-38]]


def policy_of(
    components: tuple[ActionComponent, ...], second: list[list[float]] = SECOND
) -> NetworkPolicy:
    """Return a policy of two layers."""
    constants = {1: np.array(FIRST, np.float32), 2: np.array(second, np.float32)}
    steps = (
        Step("Cast", (0,), 3, (("dtype", "float32"),)),
        Step("MatMul", (3, 1), 4),
        Step("Relu", (4,), 5),
        Step("MatMul", (5, 2), 6),
    )
    network = NumpyNetwork(constants, steps, result=6, registers=7)
    return NetworkPolicy(CompiledPolicy(signature_of(components, width=2), network))


def asked(*rows: list[float]) -> PolicyInputs:
    """Return the question for each row's mode and distribution."""
    return PolicyInputs.of(np.array(rows, np.float32), is_deterministic=True)


def test_mean_that_overflows_on_the_way_is_answered() -> None:
    policy = policy_of(components_of(("normal", 1)), [[1.0, 0.0], [-1.0, 1e-38]])

    outputs = policy.infer(asked([1.0, 1.0], LARGE))

    assert outputs.actions[:, 0] == pytest.approx([1.0, 2e38])
    assert outputs.distribution is not None
    assert outputs.distribution[1] == pytest.approx([2e38, 4.0])


def test_logits_beyond_32_bits_keep_their_order() -> None:
    policy = policy_of(components_of(("categorical", 2)), [[1.0, 1.0], [1.0, 2.0]])

    outputs = policy.infer(asked([1.0, -1.0], LARGE))

    assert outputs.actions[1].tolist() == [1.0]
    assert outputs.distribution is not None
    assert outputs.distribution.dtype == np.float32
    assert outputs.distribution[1].tolist() == [-LARGEST, 0.0]


def test_neighbour_of_a_row_that_overflows_stays_as_it_is() -> None:
    policy = policy_of(components_of(("normal", 1)))
    alone = policy.infer(asked([0.1, 0.7], [0.3, 0.2]))

    together = policy.infer(asked([0.1, 0.7], [0.3, 0.2], LARGE))

    assert together.actions[:2] == pytest.approx(alone.actions, rel=1e-6)


def test_network_that_gives_no_number_in_any_arithmetic_is_still_refused() -> None:
    policy = policy_of(components_of(("normal", 1)), [[np.nan, 0.0], [0.0, 0.0]])

    with pytest.raises(DistributionError, match="NaN"):
        policy.infer(asked([1.0, 1.0]))


def passing_policy(factors: list[float], *, is_value_based: bool) -> NetworkPolicy:
    """Return a policy whose outputs are its observation, times the factors on the way."""
    constants = {
        1: np.array(factors, np.float32),
        2: np.where(np.isinf(factors), 1, 1 / np.array(factors, np.float32)),
    }
    steps = (
        Step("Cast", (0,), 3, (("dtype", "float32"),)),
        Step("Mul", (3, 1), 4),
        Step("Mul", (4, 2), 5),
    )
    network = NumpyNetwork(constants, steps, result=5, registers=6)
    signature = replace(
        signature_of(components_of(("categorical", 3)), width=3), is_value_based=is_value_based
    )
    return NetworkPolicy(CompiledPolicy(signature, network))


@pytest.mark.parametrize("is_value_based", [True, False], ids=["greedy", "categorical"])
@pytest.mark.parametrize("others", [0, 40], ids=["alone", "among many"])
@pytest.mark.parametrize(
    ("factors", "row"),
    [
        ([4, 4, 4], [1e38, -1e38, 2e38]),
        ([4, 4, 4], [-3e38, -2e38, -1e38]),
        ([1, 1, 4], [-3e38, -2e38, -1e38]),
    ],
    ids=["infinity", "minus infinity alone", "one minus infinity"],
)
def test_choice_whose_number_overflows_can_be_the_best(
    factors: list[float], row: list[float], others: int, *, is_value_based: bool
) -> None:
    policy = passing_policy(factors, is_value_based=is_value_based)

    outputs = policy.infer(asked(row, *[[1.0, 0.5, 0.0]] * others))

    assert outputs.actions[0].tolist() == [2.0]
    assert outputs.log_probability[0] == 0.0


def masking_policy() -> NetworkPolicy:
    """Return a policy that masks its first choice where the first number is negative."""
    constants = {
        1: np.array([[0.3, -0.7, 0.11], [0.9, 0.4, 1e-3]], np.float32),
        2: np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32),
        3: np.array([0.0, -1.0, -1.0], np.float32),
        4: np.array(-np.inf, np.float32),
    }
    steps = (
        Step("Cast", (0,), 5, (("dtype", "float32"),)),
        Step("MatMul", (5, 1), 6),
        Step("MatMul", (5, 2), 7),
        Step("less", (7, 3), 8),
        Step("where", (8, 4, 6), 9),
    )
    network = NumpyNetwork(constants, steps, result=9, registers=10)
    return NetworkPolicy(
        CompiledPolicy(signature_of(components_of(("categorical", 3)), width=2), network)
    )


def test_mask_of_minus_infinity_stays_one() -> None:
    policy = masking_policy()

    outputs = policy.infer(asked([-1e-3, 0.7], [1e-3, 0.7]))

    assert outputs.distribution is not None
    assert np.isneginf(outputs.distribution).tolist() == [[True, False, False], [False] * 3]
    assert outputs.actions[:, 0].tolist() == [1.0, 0.0]


def test_infinite_value_in_any_arithmetic_is_still_the_best() -> None:
    policy = passing_policy([1, 1, np.inf], is_value_based=True)

    assert policy.infer(asked([5.0, 1.0, 2.0])).actions.tolist() == [[2.0]]


@pytest.mark.parametrize("large", [[1.0, 3e38], [3e38, 3e38], [-3e38, 3e38]])
def test_seeded_answer_is_the_same_beside_a_row_that_overflows(large: list[float]) -> None:
    policy = masking_policy()
    drawn = np.random.default_rng(3).standard_normal((50, 2)).astype(np.float32)

    for row in drawn:
        alone = policy.infer(seeded([row.tolist()]))
        beside = policy.infer(seeded([row.tolist(), large]))

        assert beside.actions[0] == alone.actions[0]
        assert beside.log_probability[0] == alone.log_probability[0]


def seeded(rows: list[list[float]]) -> PolicyInputs:
    return PolicyInputs.of(np.array(rows, np.float32), seeds=np.arange(7, 7 + len(rows)))


@pytest.mark.parametrize("columns", [4, 40])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_any_number_that_is_not_finite_is_found(value: float, rows: int, columns: int) -> None:
    found = np.full((rows, columns), -LARGEST, np.float32)
    assert is_finite(found)

    for place in np.ndindex(found.shape):
        changed = found.copy()
        changed[place] = value

        assert not is_finite(changed)
