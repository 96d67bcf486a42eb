"""The previous action in a policy's memory: the policy's own, as training fed it back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy_server.engine.network import CompiledPolicy, NetworkPolicy, NumpyNetwork
from policy_server.policy import (
    ActionComponent,
    ActionOutput,
    Float32Array,
    PolicyInputs,
    PolicySignature,
    StateTensor,
)
from policy_server.serving.previous_step import PreviousStep, StatedStep

BOUNDED = ActionComponent("normal", 1, 0, 0, low=(-2.0,), high=(2.0,))


def signature_of(part: ActionComponent) -> PolicySignature:
    return PolicySignature(
        observation_width=2,
        observation_dtype="float32",
        inputs=(),
        outputs=(),
        action_outputs=(ActionOutput("a", is_integer=False, columns=1, is_vector=True),),
        components=(part,),
        memory=(StateTensor("prev_action", (1,), "previous_action"),),
    )


def stepped(part: ActionComponent, mean: float) -> tuple[float, Float32Array]:
    """Return the action for a mean, and the memory after the step."""
    signature = signature_of(part)
    # An observation is mean and log_std themselves; the previous action is carried along.
    network = NumpyNetwork(constants={}, steps=(), result=0, registers=1)
    policy = NetworkPolicy(CompiledPolicy(signature, network))
    rows = np.array([[mean, -20.0]], np.float32)
    state = np.zeros((1, 1), np.float32)
    found = policy.infer(PolicyInputs.of(rows, is_deterministic=True, state=state))
    assert found.state is not None
    after = found.state[0].copy()
    PreviousStep(signature).note_action(after, found.actions[0])
    return float(found.actions[0, 0]), after


@pytest.mark.parametrize(
    ("part", "mean", "answered", "own"),
    [
        pytest.param(BOUNDED, 1.7, 2.0, 1.7, id="rescaled and cut"),
        pytest.param(BOUNDED, 0.5, 1.0, 0.5, id="rescaled"),
        pytest.param(replace(BOUNDED, is_normalized=False), 3.5, 2.0, 3.5, id="cut"),
        pytest.param(replace(BOUNDED, high=(-2.0,)), 0.25, -2.0, 0.25, id="a single number"),
        pytest.param(replace(BOUNDED, low=None, high=None), 3.5, 3.5, 3.5, id="without bounds"),
    ],
)
def test_policys_own_action_is_remembered(
    part: ActionComponent, mean: float, answered: float, own: float
) -> None:
    action, after = stepped(part, mean)

    assert action == pytest.approx(answered)
    assert after.tolist() == pytest.approx([own])


@pytest.mark.parametrize(
    ("part", "mean", "executed", "own"),
    [
        pytest.param(BOUNDED, 1.7, 2.0, 1.7, id="the answered one"),
        pytest.param(BOUNDED, 1.7, 1.0, 0.5, id="another"),
        pytest.param(BOUNDED, 0.5, 2.0, 1.0, id="another at the bound"),
        pytest.param(replace(BOUNDED, high=(-2.0,)), 0.25, -2.0, 0.25, id="a single number"),
        pytest.param(replace(BOUNDED, is_normalized=False), 3.5, 2.0, 3.5, id="cut"),
    ],
)
def test_executed_action_is_remembered_in_the_policys_own_space(
    part: ActionComponent, mean: float, executed: float, own: float
) -> None:
    _, after = stepped(part, mean)

    step = PreviousStep(signature_of(part))
    written = step.write(after, StatedStep(action=[executed]), has_action=True)

    assert written.tolist() == pytest.approx([own])
