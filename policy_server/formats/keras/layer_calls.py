"""A Sequential or Functional model as steps: its layers in the order of its calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.keras.call_arguments import Arguments, Result
from policy_server.formats.keras.convolution_layers import CONVOLUTIONS
from policy_server.formats.keras.functions import FUNCTIONS
from policy_server.formats.keras.model_config import SUBJECT, Part
from policy_server.formats.keras.model_parts import (
    INPUT,
    History,
    children,
    histories,
    history_of,
    is_model,
)
from policy_server.formats.keras.network_steps import Steps
from policy_server.formats.keras.normalization_layers import NORMALIZATIONS
from policy_server.formats.keras.plain_layers import LAYERS
from policy_server.formats.keras.recurrent_layers import RECURRENT, units_of, unrolled
from policy_server.formats.keras.stored_weights import Weights

__all__ = ["Model", "Output"]

_MOST_CALLS = 5_000
_KNOWN = {**LAYERS, **CONVOLUTIONS, **NORMALIZATIONS}


@dataclass(frozen=True)
class _Call:
    """One call of a layer in a Functional model.

    Attributes:
        path: the path of the layer's weights.
        layer: the layer.
        number: which of its calls it is, from 0.
        arguments: as config.json states them.
        needs: the results among these.
    """

    path: str
    layer: Part
    number: int
    arguments: object
    needs: Set[History]


@dataclass(frozen=True)
class Output:
    """A result of a model.

    Attributes:
        name: the name of its layer, or its key where the model's outputs are a dictionary.
        register: the register that holds it.
        source: the path of its layer, and its place among the layer's results.
    """

    name: str
    register: int
    source: tuple[str, int]


class Model:
    """One reading of a model.

    Attributes:
        states: the registers of each recurrent layer's states after the step, by its path.
    """

    def __init__(self, steps: Steps, weights: Weights, memory: Mapping[str, Sequence[int]]) -> None:
        """Borrow the network.

        Args:
            steps: the network, which grows.
            weights: the layers' weights.
            memory: the registers of each recurrent layer's states before the step, by its path;
                layers that begin each observation with zeros are not in it.
        """
        self._steps = steps
        self._weights = weights
        self._memory = memory
        self._calls = 0
        self.states: dict[str, Sequence[int]] = {}

    def run(self, part: Part, inputs: Sequence[int], path: str = "") -> list[Output]:
        """Return a model's results.

        Args:
            part: the model.
            inputs: the registers of its inputs, in Keras's order.
            path: the model's own path; empty for the whole model.

        Raises:
            ModelError: if it holds a layer that is not computed, is no model of layers, or calls
                too many.
        """
        layers = children(part, path)
        self._count(layers)
        run = self._sequence if part.kind == "Sequential" else self._graph
        return run(part, layers, inputs)

    def _count(self, layers: Sequence[tuple[str, Part]]) -> None:
        """Count a model's calls: those of a model that is called again too."""
        self._calls += sum(max(len(layer.calls), 1) for _, layer in layers)
        if self._calls > _MOST_CALLS:
            raise ModelError(
                f"{SUBJECT}: has {self._calls:,} calls of layers or more, counted through the "
                f"models in it, expected at most {_MOST_CALLS:,}; build it of fewer"
            )

    def _sequence(
        self, part: Part, layers: Sequence[tuple[str, Part]], inputs: Sequence[int]
    ) -> list[Output]:
        if len(inputs) != 1:
            part.refuse(f"takes one input, got {len(inputs)}")
        found, source, name = [inputs[0]], ("", 0), part.name
        for path, layer in layers:
            if layer.kind != INPUT:
                found = self._call(path, layer, [Result(found[0])], {})
                source, name = (path, 0), layer.name
        return [Output(name, found[0], source)]

    def _graph(
        self, part: Part, layers: Sequence[tuple[str, Part]], inputs: Sequence[int]
    ) -> list[Output]:
        stated = [key for _, key in histories(part.settings.get("input_layers"))]
        if len(stated) != len(inputs):
            part.refuse(f"takes {len(stated)} inputs, got {len(inputs)}")
        known: dict[History, int] = dict(zip(stated, inputs, strict=True))
        for call in _in_order(part, layers):
            layer = call.layer
            if not call.needs <= known.keys():
                layer.refuse("needs a result that no layer gives; save the model again")
            results = self._called(call.path, layer, call.arguments, known)
            known |= {(layer.name, call.number, at): one for at, one in enumerate(results)}
        paths = {layer.name: path for path, layer in layers}
        outputs = []
        for name, key in histories(part.settings.get("output_layers")):
            if key not in known:
                part.refuse(f"its output {name} is a result that no layer gives")
            outputs.append(Output(name, known[key], (paths.get(key[0], ""), key[2])))
        return outputs

    def _called(
        self, path: str, layer: Part, call: object, known: Mapping[History, int]
    ) -> list[int]:
        if not isinstance(call, dict):
            layer.refuse("was saved by Keras 2; load it with Keras 3 and save it again")
        arguments = _resolved(call.get("args", []), known)
        named = _resolved(call.get("kwargs", {}), known)
        if not isinstance(arguments, list) or not isinstance(named, dict):
            layer.refuse("is called with neither a list nor names; save the model again")
        named = {key: value for key, value in named.items() if value is not None}
        if named.get("training") is False:
            del named["training"]
        return self._call(path, layer, arguments, named)

    def _call(
        self, path: str, layer: Part, arguments: list[Any], named: dict[str, Any]
    ) -> list[int]:
        """Return the registers of a layer's results.

        Args:
            path: the path of its weights.
            layer: the layer.
            arguments: results, numbers, and lists of these, in order.
            named: the same by name.
        """
        self._steps.layer = layer
        if layer.is_operation:
            return self._operation(layer, arguments, named)
        state = named.pop("initial_state", None)
        if layer.kind in RECURRENT and len(arguments) == 2:
            state = arguments.pop()
        inputs = _registers(layer, arguments)
        if named:
            layer.refuse(f"is called with {', '.join(sorted(named))}, which is not computed")
        noted = self._weights.name_of(path)
        if noted not in (None, layer.name):
            layer.refuse(f"its place in the weights is that of {noted}; save the model again")
        if layer.kind in RECURRENT:
            return self._recurrent(path, layer, inputs[0], state)
        if is_model(layer):
            return [output.register for output in self.run(layer, inputs, path)]
        return self._layer(path, layer, inputs)

    def _layer(self, path: str, layer: Part, inputs: list[int]) -> list[int]:
        if layer.kind == INPUT:
            return inputs
        if layer.kind not in _KNOWN:
            _refuse_layer(layer)
        return [_KNOWN[layer.kind](self._steps, layer, inputs, self._weights.of(path))]

    def _operation(self, part: Part, arguments: list[Any], named: dict[str, Any]) -> list[int]:
        if part.kind not in FUNCTIONS:
            _refuse_layer(part)
        if named:
            part.refuse(f"is called with {', '.join(sorted(named))}, which is not computed")
        found = FUNCTIONS[part.kind](Arguments(self._steps, part, arguments))
        return found if isinstance(found, list) else [found]

    def _recurrent(self, path: str, layer: Part, x: int, state: object) -> list[int]:
        if path in self.states:
            layer.refuse("is called twice; a memory belongs to one call")
        states = self._memory.get(path)
        if state is not None:
            given = state if isinstance(state, list) else [state]
            states = [self._steps.number(one) for one in _registers(layer, [given])]
        if len(self._steps.shape(x)) != 2:
            layer.refuse("expects a sequence of vectors")
        if states is None:
            units, count = units_of(layer), RECURRENT[layer.kind][1]
            states = [self._steps.numbers([[0.0] * units])] * count
        result, after = unrolled(self._steps, layer, x, states, self._weights.of(f"{path}/cell"))
        self.states[path] = after
        return [result, *after]


def _in_order(part: Part, layers: Sequence[tuple[str, Part]]) -> Iterator[_Call]:
    """Yield the calls of a model's layers, each behind those whose results it needs."""
    calls: dict[History, _Call] = {}
    sorter: TopologicalSorter[History] = TopologicalSorter()
    for path, layer in layers:
        for number, arguments in enumerate(layer.calls):
            if (key := (layer.name, number)) in calls:
                layer.refuse("is there twice; save the model again")
            # A dictionary, since a set has another order in each process, and so had the steps.
            needs = dict.fromkeys(_needs(arguments))
            calls[key] = _Call(path, layer, number, arguments, needs.keys())
            sorter.add(key, *(name[:2] for name in needs))
    try:
        yield from (calls[key] for key in [*sorter.static_order()] if key in calls)
    except CycleError:
        part.refuse("has a layer that needs its own result; save the model again")


def _refuse_layer(part: Part) -> None:
    if part.kind == "Lambda":
        part.refuse("holds code, which is never run; use a layer or a function of keras.ops")
    part.refuse("is not computed; export the model to ONNX, or with model.export as a SavedModel")


def _registers(layer: Part, arguments: Sequence[Any]) -> list[int]:
    values = arguments[0] if len(arguments) == 1 else None
    values = values if isinstance(values, list) else [values]
    if not values or not all(isinstance(value, Result) for value in values):
        layer.refuse("is called with more than the results of layers, which is not computed")
    return [value.register for value in values]


def _needs(value: object) -> Iterator[History]:
    """Yield the results that a call needs."""
    if (found := history_of(value)) is not None:
        yield found
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _needs(item)


def _resolved(value: Any, known: Mapping[History, int]) -> Any:  # noqa: ANN401 -- JSON
    """Return the arguments of a call, with each result as its register."""
    if isinstance(value, list):
        return [_resolved(item, known) for item in value]
    if (found := history_of(value)) is not None:
        return Result(known[found])
    if isinstance(value, dict):
        return {key: _resolved(item, known) for key, item in value.items()}
    return value
