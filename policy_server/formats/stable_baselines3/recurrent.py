"""The memory of RecurrentPPO: its LSTM as one step, from the state before it to the state after."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import width_of
from policy_server.formats.stable_baselines3.file_names import WEIGHTS_FILE
from policy_server.formats.stable_baselines3.layers import Layers
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy
from policy_server.formats.torch_layers import LstmLayer, add_lstm_layer
from policy_server.policy import StateTensor

__all__ = ["add_memory", "memory_of"]

_LSTM = "lstm_actor"
_HIDDEN_WEIGHTS = re.compile(rf"{_LSTM}\.weight_hh_l(\d+)")
# `lstm_kwargs` that leave the network as it is after training, or that its tensors show.
_KNOWN_ARGUMENTS = frozenset({"bias", "dropout"})


def memory_of(saved: SavedPolicy) -> tuple[StateTensor, ...]:
    """Return the tensors of the actor's state: the hidden states `h` and the cell states `c`.

    Args:
        saved: the policy, of a recurrent class.

    Raises:
        ModelError: if its LSTM is of another kind than the library's own policies have.
    """
    arguments = saved.arguments.get("lstm_kwargs") or {}
    if not isinstance(arguments, Mapping):
        raise ModelError("data: policy_kwargs: lstm_kwargs: expected a dictionary")
    unknown = sorted(map(str, {*arguments} - _KNOWN_ARGUMENTS))
    if unknown:
        raise ModelError(
            f"data: policy_kwargs: lstm_kwargs: {unknown[0]} is not computed; train without it"
        )
    layers = [name for name in saved.weights if _HIDDEN_WEIGHTS.fullmatch(name)]
    shapes = {saved.weights[name].shape for name in layers}
    sizes = {shape[-1] for shape in shapes if len(shape) == 2 and shape[0] == 4 * shape[1]}
    if len(shapes) != 1 or len(sizes) != 1:
        raise ModelError(
            f"{WEIGHTS_FILE}: {_LSTM} has hidden weights of the shapes {sorted(shapes)}; expected "
            "(4 H, H) in each layer"
        )
    shape = (len(layers), *sizes)
    return StateTensor("h", shape), StateTensor("c", shape)


def add_memory(
    layers: Layers, x: int, saved: SavedPolicy, memory: tuple[StateTensor, ...]
) -> tuple[int, int]:
    """Return the registers of the LSTM's outputs, and of the state after the step.

    Args:
        layers: the network; each row of its inputs is an observation followed by its state.
        x: the register of the features.
        saved: the policy.
        memory: the state's tensors, from `memory_of`.

    Raises:
        ModelError: if a tensor is missing or does not fit.

    Source: `sb3_contrib.common.recurrent.policies.RecurrentActorCriticPolicy`.
    """
    count, size = memory[0].shape
    begin = width_of(saved.observation_space)
    state = layers.columns(0, begin, 2 * count * size)
    state = layers.add("Cast", state, attributes=(("dtype", "float32"),))
    hidden, cells = [], []
    for number in range(count):
        before, memorised = (
            layers.columns(state, place * size, size) for place in (number, count + number)
        )
        try:
            x, cell = add_lstm_layer(
                layers.builder, x, before, memorised, _layer(layers, number, size)
            )
        except ValueError as error:
            raise ModelError(
                f"{WEIGHTS_FILE}: {_LSTM}: does not fit its inputs: {error}"
            ) from error
        hidden.append(x)
        cells.append(cell)
    return x, layers.joined([*hidden, *cells])


def _layer(layers: Layers, number: int, size: int) -> LstmLayer:
    bias = np.zeros(4 * size, np.float32)
    if layers.has(f"{_LSTM}.bias_ih_l{number}"):
        bias = sum(
            (layers.tensor(f"{_LSTM}.bias_{part}_l{number}") for part in ("ih", "hh")), start=bias
        )
    from_inputs, from_hidden = (
        layers.tensor(f"{_LSTM}.weight_{part}_l{number}") for part in ("ih", "hh")
    )
    return LstmLayer(from_inputs, from_hidden, bias)
