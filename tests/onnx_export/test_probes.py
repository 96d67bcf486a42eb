"""The observations that an .onnx file is compared on, and carries as test vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy_server.engine.network import CompiledPolicy, NetworkPolicy, NumpyNetwork, Step
from policy_server.errors import ExportError
from policy_server.onnx_export.probes import probe_vectors
from policy_server.policy import ObservationPart
from tests.support.compiled import COMPILED


def policy_of(*steps: Step, constants: dict[int, np.ndarray] | None = None) -> NetworkPolicy:
    """Return a policy of two numbers and two choices with these steps."""
    last = steps[-1].output
    network = NumpyNetwork(constants or {}, steps, last, last + 1)
    return NetworkPolicy(CompiledPolicy(COMPILED.signature, network))


def test_probes_are_the_same_each_time() -> None:
    first, second = (probe_vectors(NetworkPolicy(COMPILED), most=9) for _ in range(2))

    assert len(first) == 9
    assert np.array_equal(first.inputs.observations, second.inputs.observations)


def test_probes_keep_to_what_the_environment_gives() -> None:
    parts = (
        ObservationPart("speed", "box", (), low=4.0, high=5.0),
        ObservationPart("on", "binary", (), is_integer=True),
    )
    signature = replace(COMPILED.signature, observation_parts=parts)

    found = probe_vectors(NetworkPolicy(replace(COMPILED, signature=signature)), most=20)

    speeds, flags = found.inputs.observations.T
    assert ((speeds >= 4) & (speeds <= 5)).all()
    assert set(flags) == {0.0, 1.0}


def test_probes_whose_best_choice_is_not_clear_are_left_out() -> None:
    nearly = np.array([[1.0, 1.0], [0.0, 0.0]], np.float32)

    with pytest.raises(ExportError, match="answers fewer than 3 of"):
        probe_vectors(policy_of(Step("MatMul", (0, 1), 2), constants={1: nearly}), most=20)


def test_probes_that_the_policy_refuses_are_left_out() -> None:
    # The integers of the observation are places in a table of two rows.
    policy = policy_of(
        Step("Cast", (0,), 3, (("dtype", "int64"),)),
        Step("Split", (2, 3), 4, (("num_split", 2), ("port", 0))),
        Step("Squeeze", (4,), 5, (("squeeze_dims", (1,)),)),
        Step("GatherV2", (1, 5, 6), 7),
        constants={
            1: np.array([[1.0, 0.0], [0.0, 1.0]], np.float32),
            2: np.array(1),
            6: np.array(0),
        },
    )

    found = probe_vectors(policy, most=20)

    assert len(found) == 20
    assert set(found.inputs.observations[:, 0].astype(int)) == {0, 1}


def test_probes_that_float32_rounds_off_are_left_out() -> None:
    # A large number is added and taken away again.
    policy = policy_of(
        Step("Add", (0, 1), 2),
        Step("Sub", (2, 1), 3),
        constants={1: np.array([1e4, 0.0], np.float32)},
    )

    found = probe_vectors(policy, most=20)

    distribution = found.outputs.distribution
    assert distribution is not None
    np.testing.assert_allclose(distribution, found.inputs.observations, atol=2.1e-6)
