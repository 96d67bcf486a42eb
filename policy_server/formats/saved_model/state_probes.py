"""Probes of a policy with memory: observations from the zero state, and from random states."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.saved_model.tensorflow_policy import TensorFlowPolicy
from policy_server.policy import PolicyInputs

__all__ = ["with_states"]


def with_states(
    policy: TensorFlowPolicy, rows: NDArray[Any], answered: NDArray[Any]
) -> NDArray[Any]:
    """Return observations, each followed by a state where the policy has memory.

    Args:
        policy: the policy; its own draws stand in for previous actions.
        rows: float[B, observation_width], the observations.
        answered: float[N, observation_width], some that the policy answers.

    Returns:
        float[2 B, observation_width + memory_width]: every observation from the zero state, then
        every one from a random state; as `rows` where the policy has no memory.
    """
    signature = policy.signature
    if not signature.memory:
        return rows
    generator = np.random.default_rng(21)
    drawn = policy.infer(PolicyInputs.of(answered, seeds=range(len(answered)))).actions
    states = [
        np.resize(drawn, (len(rows), tensor.size))
        if tensor.role == "previous_action"
        else generator.standard_normal((len(rows), tensor.size))
        for tensor in signature.memory
    ]
    zeros = np.zeros((len(rows), signature.memory_width))
    every = np.concatenate([zeros, np.concatenate(states, axis=1)]).astype(np.float32)
    return np.concatenate([np.concatenate([rows, rows]), every.astype(rows.dtype)], axis=1)
