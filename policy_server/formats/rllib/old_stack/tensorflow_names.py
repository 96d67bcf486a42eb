"""Policies of the old API stack that RLlib trained with TensorFlow, by the names of PyTorch's.

TensorFlow's graph names its weights after RLlib's layers, such as `default_policy/fc_1/kernel`, so
that they tell the network of flat observations. An eager policy saves a list without names.

Source: `ray.rllib.models.tf` (FullyConnectedNetwork, LSTMWrapper).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.rllib.old_stack.policy_state import OldPolicy
from policy_server.formats.rllib.old_stack.row_parts import read_observations

__all__ = ["with_torch_names"]

Array = NDArray[Any]

# No name is longer: to try each place of a long one takes time by the square of its length.
_CLASS = re.compile(r"(\w{1,100}?)TF[12]?Policy(_eager\w*)?")
# The families whose layers have names of their own; those of DQN are dense, dense_1 and so on.
_NAMED = ("A3C", "APPO", "CQL", "Impala", "MARWIL", "PG", "PPO", "SAC", "SimpleQ")
_HIDDEN = re.compile(r"fc_(\d+)")
# Layers of critics: a second layer of a name is called NAME_1, where the policy's is the first.
_OTHERS = re.compile(r"(fc_value_\d+|value_out|values)(_\d+)?|fc_(\d+|out)_\d+|log_alpha.*")
_HELP = (
    "export it with `algo.get_policy().export_model(FOLDER)` as a SavedModel, or train it with "
    'framework="torch"'
)


def with_torch_names(policy: OldPolicy) -> OldPolicy:
    """Return a policy with PyTorch's class and names of weights; one of PyTorch as it is.

    Args:
        policy: the policy.

    Raises:
        ModelError: if it is one of TensorFlow whose weights don't tell the network.
    """
    found = _CLASS.fullmatch(policy.path)
    if found is None:
        return policy
    if "0" in policy.weights:
        raise ModelError(
            f'{policy.subject}: was trained with framework="tf2", which saves weights without '
            f"names, so that the network can't be told; {_HELP}"
        )
    if found[1] not in _NAMED or not read_observations(policy).is_flat:
        raise ModelError(
            f"{policy.subject}: is a {policy.path} of TensorFlow, whose weights' names don't tell "
            f"the network; {_HELP}"
        )
    prefix = "action_model." if found[1] in ("SAC", "CQL") else ""
    weights: dict[str, Array] = {}
    for name, value in policy.weights.items():
        for renamed, array in _renamed(policy, name, value):
            weights[f"{prefix}{renamed}"] = array
    return replace(policy, path=f"{found[1]}TorchPolicy", weights=weights)


def _renamed(policy: OldPolicy, name: str, value: Array) -> Iterator[tuple[str, Array]]:
    """Yield a weight's names and values in PyTorch's network."""
    # The first part is the policy's scope.
    layer, _, kind = name.partition("/")[2].rpartition("/")
    if not layer:
        layer, kind = kind, "kernel"
    if layer == "log_std":
        yield "_append_free_log_std.log_std", value
    elif layer == "lstm/lstm_cell":
        yield from _of_lstm(kind, value)
    elif _OTHERS.fullmatch(layer):
        return
    else:
        own = _layer_of(policy, layer, name)
        yield f"{own}._model.0.{'weight' if kind == 'kernel' else 'bias'}", value.T


def _layer_of(policy: OldPolicy, layer: str, name: str) -> str:
    hidden = _HIDDEN.fullmatch(layer)
    if hidden is not None:
        return f"_hidden_layers.{int(hidden[1]) - 1}"
    names = {"fc_out": "_logits", "logits": "_logits_branch"}
    if layer not in names:
        raise ModelError(
            f"{policy.subject}: has the weights {name}, which are no part of RLlib's default "
            f"network; {_HELP}"
        )
    return names[layer]


def _of_lstm(kind: str, value: Array) -> Iterator[tuple[str, Array]]:
    """Yield an LSTM's weights: the gates of both libraries are in one order."""
    if kind == "bias":
        yield "lstm.bias_ih_l0", value
        yield "lstm.bias_hh_l0", np.zeros_like(value)
    else:
        yield f"lstm.weight_{'ih' if kind == 'kernel' else 'hh'}_l0", value.T
