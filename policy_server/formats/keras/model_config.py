"""The settings of one layer in a Keras file's config.json, read with checks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from policy_server.errors import ModelError

__all__ = ["NO", "SUBJECT", "Part", "is_history", "part_of", "read_config"]

SUBJECT = "the Keras model"
NO = (False, None)
"""The usual values of a setting that turns something on."""
_MOST_BYTES = 16 * 1024 * 1024
_LIBRARY = re.compile(r"keras(\.\w+)*")
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
        if not is_right or (kind is int and isinstance(value, bool)):
            self.refuse(f"{key} is {str(value)[:40]!r}, expected {_KINDS[kind]}")
        return value

    def integers(self, key: str, count: int | None = None) -> tuple[int, ...]:
        """Return a setting that is one integer, or several.

        Args:
            key: its name.
            count: how many it has to be, where one stands for all; None for any number.

        Raises:
            ModelError: if it is none.
        """
        value = self.settings.get(key)
        values = value if isinstance(value, list) else [value] * (count or 1)
        if any(not isinstance(item, int) or isinstance(item, bool) for item in values):
            self.refuse(f"{key} is {str(value)[:40]!r}, expected integers")
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
            self.refuse(f"{key} is {str(value)[:40]!r}, which is not computed")

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
    if not isinstance(module, str) or not _LIBRARY.fullmatch(module):
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
