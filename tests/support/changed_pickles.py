"""Pickles of training libraries with a part changed, without the libraries."""

from __future__ import annotations

import base64
import io
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any
from unittest.mock import patch

__all__ = ["changed_in_json", "changed_pickle", "places_of"]

# Their objects are made as they are; those of all others are stand-ins.
_REAL = ("_codecs", "builtins", "collections", "copyreg", "numpy")


class _StandIn:
    """An object of a library: the arguments that it was made with, and its attributes."""

    def __new__(cls, *arguments: object) -> _StandIn:
        made = super().__new__(cls)
        made.__dict__["__arguments__"] = arguments
        return made

    def __setstate__(self, state: object) -> None:
        known = state if isinstance(state, dict) else {"__state__": state}
        self.__dict__.update(known)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {**self.__dict__}
        arguments = state.pop("__arguments__")
        return type(self), arguments, state.pop("__state__", state)


class _Reader(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        """Own the modules of the stand-ins' classes, for one pickle."""
        super().__init__(io.BytesIO(content))
        self.modules: dict[str, ModuleType] = {}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 -- as pickle has it
        if module.partition(".")[0] in _REAL:
            return super().find_class(module, name)
        found: Any = self.modules.setdefault(module, ModuleType(module))
        parts = name.split(".")
        for place, part in enumerate(parts, start=1):
            if not hasattr(found, part):
                described = {"__module__": module, "__qualname__": ".".join(parts[:place])}
                setattr(found, part, type(part, (_StandIn,), described))
            found = getattr(found, part)
        return found


def changed_pickle(content: bytes, change: Callable[[Any], object]) -> bytes:
    """Return a pickle with its value changed in place.

    Args:
        content: the pickle, of the tests' own data.
        change: takes the value; objects of libraries are stand-ins, with their attributes.
    """
    reader = _Reader(content)
    value = reader.load()
    change(value)
    # pickle imports the package of each class too.
    packages = {name.partition(".")[0] for name in reader.modules} - {*sys.modules}
    known = {name: ModuleType(name) for name in packages}
    with patch.dict(sys.modules, known | reader.modules):
        return pickle.dumps(value)


def changed_in_json(part: Mapping[str, str], change: Callable[[Any], object]) -> dict[str, str]:
    """Return a setting of stable-baselines3's `data` with its pickled value changed in place.

    Args:
        part: the setting, with the pickle in base64.
        change: takes the value.
    """
    content = changed_pickle(base64.b64decode(part[":serialized:"]), change)
    return {**part, ":serialized:": base64.b64encode(content).decode()}


def places_of(value: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 -- as a pickle has it
    """Give each part of a value: the dictionary or list that holds it, and its key there.

    Args:
        value: of `changed_pickle`; the attributes of a stand-in are a dictionary.
    """
    held: Any = vars(value) if isinstance(value, _StandIn) else value
    if isinstance(held, tuple):
        for item in held:
            yield from places_of(item)
    elif isinstance(held, dict | list):
        for key in list(held) if isinstance(held, dict) else range(len(held)):
            if key != "__arguments__":
                yield held, key
                yield from places_of(held[key])
