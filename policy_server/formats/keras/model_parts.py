"""The parts of a model in config.json: its layers, its inputs and its outputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.keras.model_config import SUBJECT, Part, is_history, part_of

__all__ = ["INPUT", "History", "children", "histories", "history_of", "is_model", "layers_below"]

History = tuple[Any, ...]
"""A result: its layer's name, the number of the call, and its place among the call's results."""

INPUT = "InputLayer"
_MODELS = ("Functional", "Sequential")
_TENSOR = "__keras_tensor__"


def is_model(part: Part) -> bool:
    """Return whether a part is a model of layers.

    Args:
        part: the part.
    """
    return part.kind in _MODELS


def children(part: Part, path: str = "") -> list[tuple[str, Part]]:
    """Return a model's layers and operations, each with the path of its weights.

    Args:
        part: the model.
        path: the model's own path; empty for the whole model.

    Raises:
        ModelError: if it is no model of layers.

    Source: Keras `saving_lib`, which numbers the layers of a class in their order.
    """
    entries = part.settings.get("layers")
    if not is_model(part):
        raise ModelError(
            f"{SUBJECT}: {part.kind} is no Sequential or Functional model of layers, whose "
            "network the file would hold; build it of layers, or export it to ONNX"
        )
    if not isinstance(entries, list):
        part.refuse("its layers are no list; save the model again")
    found: list[tuple[str, Part]] = []
    counts: Counter[str] = Counter()
    for entry in entries:
        layer = part_of(entry)
        kind = _snake_case(layer.kind)
        number = f"_{counts[kind]}" if counts[kind] else ""
        counts[kind] += not layer.is_operation
        own = f"layers/{kind}{number}"
        found.append((f"{path}/{own}" if path else own, layer))
    return found


def layers_below(part: Part, path: str = "") -> Iterator[tuple[str, Part]]:
    """Yield the layers of a model, and those of the models in it.

    Args:
        part: the model.
        path: the model's own path.
    """
    for below, layer in children(part, path):
        if is_model(layer):
            yield from layers_below(layer, below)
        else:
            yield below, layer


def histories(value: object, name: str | None = None) -> Iterator[tuple[str, History]]:
    """Yield a name and a result for each of a model's inputs or outputs, in Keras's order.

    Args:
        value: `input_layers` or `output_layers` of config.json: a list, or a dictionary, which
            Keras takes in the order of its keys.
        name: the key that leads to it; None for the layer's own name.
    """
    if is_history(value):
        assert isinstance(value, list), "it is a history"
        yield name or value[0], tuple(value)
    elif isinstance(value, list):
        for item in value:
            yield from histories(item, name)
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from histories(value[key], key)
    else:
        raise ModelError(f"{SUBJECT}: expected inputs and outputs by name; save it again")


def history_of(value: object) -> History | None:
    """Return the result that an argument of a call is; None where it is none.

    Args:
        value: the argument, a value of config.json.

    Raises:
        ModelError: if it is a result without a name.
    """
    if not isinstance(value, dict) or value.get("class_name") != _TENSOR:
        return None
    config = value.get("config")
    history = config.get("keras_history") if isinstance(config, dict) else None
    if not isinstance(history, list) or not is_history(history):
        raise ModelError(f"{SUBJECT}: a layer's input names no result; save the model again")
    return tuple(history)


def _snake_case(name: str) -> str:
    """Return a class's name as Keras writes it in paths, such as `leaky_re_lu`.

    Source: Keras `naming.to_snake_case`.
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
