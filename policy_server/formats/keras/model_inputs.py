"""A Keras model's inputs: those of an observation, and those that carry a memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from policy_server.errors import ModelError
from policy_server.formats.input_order import in_stated_order
from policy_server.formats.keras.layer_calls import Output
from policy_server.formats.keras.model_config import NO, SUBJECT, Part
from policy_server.formats.keras.model_parts import (
    INPUT,
    children,
    histories,
    history_of,
    layers_below,
)
from policy_server.formats.keras.recurrent_layers import RECURRENT, state_sizes
from policy_server.policy import StateTensor
from policy_server.schema import ServerSchema

__all__ = ["MOST_WIDE", "Memory", "ModelInput", "inputs_of", "memory_of", "ordered"]

MOST_WIDE = 1_000_000
"""The most numbers that an observation and its memory may have."""

_DTYPES = ("bool", "float32", "float64", "int32", "int64", "uint8")


@dataclass(frozen=True)
class ModelInput:
    """An input of a model.

    Attributes:
        name: its name.
        shape: of one row; for an open length of a sequence the number of steps it is built for.
        dtype: NumPy's name of its type.
        is_sequence: whether its length is open, so that an observation is one step of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    is_sequence: bool = False

    @property
    def width(self) -> int:
        """Return how many numbers it has in one row."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Memory:
    """The state that a recurrent model carries from one step to the next.

    Attributes:
        tensors: its tensors in order.
        inputs: the index of the tensor that an input of the model carries, by the input's name.
        results: the result that follows it, for each of these: a layer's path and the place.
        kept: the path of the layer that keeps a tensor itself, and the tensor's index.
    """

    tensors: tuple[StateTensor, ...] = ()
    inputs: Mapping[str, int] = field(default_factory=dict)
    results: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    kept: tuple[tuple[str, int], ...] = ()

    @property
    def width(self) -> int:
        """Return how many numbers it has."""
        return sum(tensor.size for tensor in self.tensors)

    def first(self, index: int) -> int:
        """Return where a tensor begins.

        Args:
            index: the tensor's.
        """
        return sum(tensor.size for tensor in self.tensors[:index])

    def after(self, outputs: Sequence[Output], states: Mapping[str, Sequence[int]]) -> list[int]:
        """Return the registers of the tensors after the step, in order.

        Args:
            outputs: the model's results.
            states: the registers of each recurrent layer's states, by its path.
        """
        by_source = {output.source: output.register for output in outputs}
        found = {index: by_source[self.results[name]] for name, index in self.inputs.items()}
        places: dict[str, int] = {}
        for path, index in self.kept:
            found[index] = states[path][places.get(path, 0)]
            places[path] = places.get(path, 0) + 1
        return [found[index] for index in sorted(found)]


def inputs_of(part: Part, length: int = 1) -> list[ModelInput]:
    """Return a model's inputs in Keras's order.

    Args:
        part: the model.
        length: how many steps a sequence of an open length has.

    Raises:
        ModelError: if their sizes are open or too large, or their type is none of numbers.
    """
    layers = {layer.name: layer for _, layer in children(part) if layer.kind == INPUT}
    if part.kind == "Sequential":
        names = [*layers][:1]
        if not names:
            return [_sequential_input(part, length)]
    else:
        names = [key[0] for _, key in histories(part.settings.get("input_layers"))]
    missing = [name for name in names if name not in layers]
    if missing or not names:
        raise ModelError(f"{SUBJECT}: has no input layer; begin it with keras.Input")
    return [_input(layers[name], length) for name in names]


def _sequential_input(part: Part, length: int) -> ModelInput:
    shape = part.settings.get("build_input_shape")
    if not isinstance(shape, list) or len(shape) < 2:
        part.refuse("has no input layer; begin it with keras.Input")
    return _shaped(part, "observations", shape, "float32", length)


def _input(layer: Part, length: int) -> ModelInput:
    for key in ("sparse", "ragged", "optional"):
        layer.expect(key, *NO)
    shape, dtype = layer.settings.get("batch_shape"), layer.settings.get("dtype", "float32")
    if dtype not in _DTYPES:
        layer.refuse(f"takes {str(dtype)[:40]}, expected numbers")
    if not isinstance(shape, list) or not shape:
        layer.refuse("states no batch_shape; save the model again")
    return _shaped(layer, layer.name, shape, str(dtype), length)


def _shaped(layer: Part, name: str, shape: Sequence[object], dtype: str, length: int) -> ModelInput:
    sizes = shape[1:]
    is_sequence = len(sizes) > 1 and sizes[0] is None
    known = [length, *sizes[1:]] if is_sequence else list(sizes)
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in known):
        layer.refuse(f"has the open shape {list(shape)}; give the sizes of an observation")
    found = ModelInput(name, tuple(int(str(size)) for size in known), dtype, is_sequence)
    if found.width > MOST_WIDE:
        layer.refuse(f"is {found.width} numbers wide, expected at most {MOST_WIDE}")
    return found


def ordered(inputs: Sequence[ModelInput], schema: ServerSchema | None) -> Sequence[ModelInput]:
    """Return the inputs in the order in which an observation's numbers come.

    That is schema.yaml's, where its observations are named as the inputs are, else Keras's.

    Args:
        inputs: those of the observation, in Keras's order.
        schema: the contents of schema.yaml; None where there is none.
    """
    names = [item.name for item in (schema.observations if schema else None) or ()]
    by_name = {item.name: item for item in inputs}
    return [by_name[name] for name in in_stated_order(list(by_name), names)]


def memory_of(part: Part, inputs: Sequence[ModelInput]) -> Memory:
    """Return the memory of a model: that of its inputs, and that of layers which keep their own.

    An input that gives a recurrent layer its state is followed by the layer's state, where that is
    an output. A layer keeps its own where it is stateful, or where a sequence has an open length,
    so that an observation is one step.

    Args:
        part: the model.
        inputs: its inputs.

    Raises:
        ModelError: if a state is given to the model and the next one is not an output.
    """
    pairs = dict(_given_states(part))
    is_sequence = any(item.is_sequence for item in inputs)
    recurrent = [item for item in layers_below(part) if item[1].kind in RECURRENT]
    if is_sequence and not recurrent:
        raise ModelError(
            f"{SUBJECT}: takes sequences of an open length without a recurrent layer; give the "
            "length of an observation's window"
        )
    given = {path for path, _ in pairs.values()}
    tensors: list[StateTensor] = []
    by_input: dict[str, int] = {}
    for item in inputs:
        if item.name in pairs:
            by_input[item.name] = len(tensors)
            tensors.append(StateTensor(item.name, item.shape))
    kept = []
    for path, layer in recurrent:
        if path in given or not (is_sequence or layer.get("stateful", bool, default=False)):
            continue
        for letter, size in zip("hc", state_sizes(layer), strict=False):
            kept.append((path, len(tensors)))
            tensors.append(StateTensor(f"{layer.name}_{letter}", (size,)))
    return Memory(tuple(tensors), by_input, pairs, tuple(kept))


def _given_states(part: Part) -> list[tuple[str, tuple[str, int]]]:
    """Return the inputs that are states, each with the result that is the state after it."""
    if part.kind == "Sequential":
        return []
    outputs = {key for _, key in histories(part.settings.get("output_layers"))}
    names = {key[0] for _, key in histories(part.settings.get("input_layers"))}
    found = []
    for path, layer in children(part):
        if layer.kind not in RECURRENT:
            continue
        for number, call in enumerate(layer.calls):
            for place, name in enumerate(_states_of(call)):
                if name is None or name not in names:
                    continue
                if (layer.name, number, place + 1) not in outputs:
                    layer.refuse(
                        f"takes its state from the input {name!r}, and the state after a step is "
                        "no output; add it to the model's outputs"
                    )
                found.append((name, (path, place + 1)))
    return found


def _states_of(call: object) -> list[str | None]:
    """Return the names of the layers that give a call its states."""
    if not isinstance(call, dict):
        return []
    named, arguments = call.get("kwargs"), call.get("args")
    states = named.get("initial_state") if isinstance(named, dict) else None
    if states is None and isinstance(arguments, list) and len(arguments) == 2:
        states = arguments[1]
    states = states if isinstance(states, list) else [states]
    known = [history_of(state) for state in states]
    return [None if history is None else history[0] for history in known]
