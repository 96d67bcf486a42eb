"""Observations so large that numbers of 32 bits overflow on the way to the policy's outputs."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.engine.network import CompiledPolicy, NetworkPolicy, NumpyNetwork, Step
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
