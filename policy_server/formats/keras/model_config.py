"""The settings of one layer in a Keras file's config.json, read with checks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError

__all__ = ["NO", "SUBJECT", "Part", "is_history", "part_of", "read_config"]

SUBJECT = "the Keras model"
NO = (False, None)
"""The usual values of a setting that turns something on."""
_MOST_BYTES = 16 * 1024 * 1024
_LIBRARY = re.compile(r"keras(\.\w+)*")
# Sizes and the like are far below; NumPy has none beyond it.
_MOST = 2**31
_KINDS = {int: "an integer", float: "a number", bool: "True or False", str: "a word"}


@dataclass(frozen=True)
class Part:
    """A layer, an operation or a whole model, as config.json describes it.

    Attributes:
        kind: the name of its class, such as `Dense`.
        module: the module of its class, such as `keras.layers`.
        settings: the arguments that it is made with.
        calls: where it is called: the arguments of each call, in order.
    """

    kind: str
    module: str
    settings: Mapping[str, Any]
    calls: Sequence[Any]

    @property
    def name(self) -> str:
        """Return the name that it has in the model, such as `dense_1`."""
        name = self.settings.get("name")
        return name if isinstance(name, str) else self.kind

    @property
    def is_operation(self) -> bool:
        """Return whether it is a function of `keras.ops`, which has no weights."""
        return self.module.startswith("keras.src.ops") or self.module.startswith("keras.ops")

    def get(self, key: str, kind: type[int | float | bool | str], default: Any = None) -> Any:  # noqa: ANN401 -- of that type
        """Return a setting.

        Args:
            key: its name.
            kind: its type; a whole number is a `float` too.
            default: the value where the file has none.

        Raises:
            ModelError: if it has another type.
        """
        value = self.settings.get(key)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_right = is_number if kind is float else isinstance(value, kind)
        if not is_right or (kind is int and not _is_integer(value)):
            self.refuse(f"{key} is {_shown(value)}, expected {_KINDS[kind]}")
        if kind is float:
            try:
                return float(value)
            except OverflowError:
                self.refuse(f"{key} is {_shown(value)}, expected a smaller number")
        return value

    def count(self, key: str) -> int:
        """Return a setting that is a number of things, such as a layer's units.

        Args:
            key: its name.

        Raises:
            ModelError: if it is missing, or no integer of 1 or more.
        """
        value = self.settings.get(key)
        if not _is_integer(value) or value < 1:
            self.refuse(f"{key} is {_shown(value)}, expected an integer of 1 or more")
        return int(value)

    def numbers(self, key: str, default: object = None) -> NDArray[np.float64]:
        """Return a setting that is a number, or numbers in lists.

        Args:
            key: its name.
            default: the value where the file has none.

        Raises:
            ModelError: if it is none, or its lists have different lengths.
        """
        value = self.settings.get(key, default)
        try:
            found = np.asarray(value)
        except ValueError:
            found = np.asarray(None)
        if found.dtype.kind not in "fiu":
            self.refuse(f"{key} is {_shown(value)}, expected numbers")
        return found.astype(np.float64)

    def integers(
        self, key: str, count: int | None = None, *, default: int | None = None
    ) -> tuple[int, ...]:
        """Return a setting that is one integer, or several.

        Args:
            key: its name.
            count: how many it has to be, where one stands for all; None for any number.
            default: the value where the file has none; None where it has to have one.

        Raises:
            ModelError: if it is none.
        """
        value = self.settings.get(key, default)
        values = value if isinstance(value, list) else [value] * (count or 1)
        if not all(map(_is_integer, values)):
            self.refuse(f"{key} is {_shown(value)}, expected integers")
        if count is not None and len(values) != count:
            self.refuse(f"{key} has {len(values)} numbers, expected {count}")
        return tuple(values)

    def expect(self, key: str, *usual: object) -> None:
        """Refuse a setting with an effect that is not computed.

        Args:
            key: its name.
            usual: the values that change nothing, the first being the default.

        Raises:
            ModelError: if it is another.
        """
        value = self.settings.get(key, usual[0])
        if value not in usual:
            self.refuse(f"{key} is {_shown(value)}, which is not computed")

    def refuse(self, words: str) -> NoReturn:
        """Refuse the file because of this part.

        Args:
            words: the reason.

        Raises:
            ModelError: always.
        """
        named = "" if self.name == self.kind else f" {self.name!r}"
        what = "operation" if self.is_operation else "layer"
        raise ModelError(f"{SUBJECT}: the {what}{named} ({self.kind}): {words}")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -_MOST < value < _MOST


def _shown(value: object) -> str:
    """Return a value for messages, which may be an integer of thousands of digits."""
    is_long = isinstance(value, int) and not -_MOST < value < _MOST
    return "an integer beyond 2^31" if is_long else repr(str(value)[:40])


def read_config(path: Path) -> Part:
    """Read the description of a model.

    Args:
        path: the member config.json of a Keras file, unpacked.

    Raises:
        ModelError: if it is none.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(f"{path.name}: is larger than {_MOST_BYTES >> 20} MiB; no model is")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path.name}: is no JSON that Keras wrote: {error}") from error
    return part_of(document)


def part_of(entry: object) -> Part:
    """Return the part that an entry of config.json describes.

    Args:
        entry: a JSON object with `class_name`, `module` and `config`.

    Raises:
        ModelError: if it is none, or a class of somebody's own.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
        raise ModelError(f"{SUBJECT}: expected layers with a class_name; save the model again")
    kind, module, config = (entry.get(key) for key in ("class_name", "module", "config"))
    if not isinstance(module, str):
        raise ModelError(f"{SUBJECT}: {kind} has no module; save the model again")
    if not _LIBRARY.fullmatch(module):
        raise ModelError(
            f"{SUBJECT}: {kind} is a class of your own, whose code is not in the file; build "
            "the network of Keras's own layers, or export it to ONNX"
        )
    if not isinstance(config, dict):
        raise ModelError(f"{SUBJECT}: {kind} has no config; save the model again")
    calls = entry.get("inbound_nodes", [])
    # Before Keras 3.7 a function's name stands beside its settings alone.
    config = {"name": entry.get("name"), **config}
    return Part(str(kind), module, config, calls if isinstance(calls, list) else [])


def is_history(value: object) -> bool:
    """Return whether a value names a result: its layer, the number of the call, and the place.

    Args:
        value: a value of config.json.
    """
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and all(isinstance(item, int) for item in value[1:])
    )
