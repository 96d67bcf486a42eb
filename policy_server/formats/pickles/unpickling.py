"""Read a pickle as data: arrays, plain values, and stand-ins for the objects of a library.

A pickle may name any function of any module to be called. Here only NumPy's arrays and Python's
plain containers are made; an object of the library that wrote the file becomes a `Stub`, which
keeps its class's name and its state, and every other name is refused. No module is imported.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError

__all__ = ["Stub", "unpickle"]

# More than any settings or spaces need; weights are few operations with long arguments.
_MOST_OPERATIONS = 1_000_000
# Of numbers alone: the state of other types has a size that a pickle could set at will.
_DTYPE = re.compile(r"[<>|=]?([?bBhHiIlLqQfdg]|[biufc]\d+)")
_BY_INDEX = ("PUT", "BINPUT", "LONG_BINPUT")
_REFUSED = ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "NEXT_BUFFER")


class Stub:
    """A stand-in for an object, or as a class for a class, of the library that wrote a pickle.

    Example: `gymnasium.spaces.Discrete(3)` is read as a Stub whose `path` is
    `gymnasium.spaces.discrete.Discrete` and whose `state` is `{"n": 3, "start": 0, ...}`.

    Attributes:
        path: the name of the class, with its module.
        arguments: the arguments that it was made with.
        named: its keyword arguments.
        state: its attributes by name.
        items: what was appended to it, where it is a list.
        entries: what was set in it, where it is a dictionary.
    """

    path: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    state: dict[str, Any]
    items: list[Any]
    entries: dict[Any, Any]

    def __new__(cls, *arguments: object, **named: object) -> Self:
        """Return a stand-in with the arguments; the class's own constructor never runs."""
        made = super().__new__(cls)
        made.arguments, made.named = arguments, named
        made.state, made.items, made.entries = {}, [], {}
        return made

    def __init__(self, *arguments: object, **named: object) -> None:
        """Own the object's state, for as long as the file is read."""

    def __call__(self, *arguments: object, **named: object) -> Stub:
        """Return a stand-in for the result of a call: a function of the library's is one too."""
        return Stub(*arguments, **named)

    def __setstate__(self, state: object) -> None:
        """Take over the attributes: of a dictionary, or of one and the slots beside it."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.state.update(part)

    def append(self, item: object) -> None:
        """Take over an item."""
        self.items.append(item)

    def extend(self, items: list[object]) -> None:
        """Take over items."""
        self.items.extend(items)

    def __setitem__(self, key: object, value: object) -> None:
        """Take over an entry."""
        self.entries[key] = value


def unpickle(
    content: bytes,
    subject: str,
    *,
    library: re.Pattern[str],
    tensors: Callable[[Any], NDArray[Any]] | None = None,
) -> Any:  # noqa: ANN401 -- a pickle may hold anything
    """Return the data that a pickle holds.

    Example:
        `unpickle(content, "module.pkl", library=re.compile("ray[.]rllib[.].+"))`.

    Args:
        content: the pickle.
        subject: the file, for messages.
        library: the dotted names (`module.Class`) that are read as stand-ins.
        tensors: gives the numbers that a persistent id of PyTorch's files stands for; without it
            such ids are refused.

    Returns:
        Plain values, NumPy's arrays, and a `Stub` for each object of the library.

    Raises:
        ModelError: if it names any other class or function, or is damaged or too large.
    """
    try:
        _check(content, allows_ids=tensors is not None)
        return _Unpickler(content, subject, library, tensors).load()
    except ModelError:
        raise
    except MemoryError as error:
        raise ModelError(f"{subject}: needs more memory than there is") from error
    except Exception as error:
        # A damaged pickle fails in many ways; none of them has run a foreign function.
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"{subject}: is no pickle that can be read: {words}") from error


def _check(content: bytes, *, allows_ids: bool) -> None:
    """Refuse a pickle whose operations would take memory that its bytes don't account for."""
    for number, (operation, argument, _) in enumerate(_operations(content)):
        name = operation.name
        if number >= _MOST_OPERATIONS:
            raise ValueError(f"has more than {_MOST_OPERATIONS} operations")
        if name in _REFUSED and not (allows_ids and name == "BINPERSID"):
            raise ValueError(f"has the operation {name}")
        if name in _BY_INDEX and isinstance(argument, int) and argument > number:
            raise ValueError(f"keeps an object at the place {argument}")


def _operations(content: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, object, int | None]]:
    return pickletools.genops(content)


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        content: bytes,
        subject: str,
        library: re.Pattern[str],
        tensors: Callable[[Any], NDArray[Any]] | None,
    ) -> None:
        """Own the pickle and the stand-ins of its classes, for one reading."""
        super().__init__(io.BytesIO(content))
        self._subject = subject
        self._library = library
        self._tensors = tensors
        self._stubs: dict[str, type[Stub]] = {}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 -- a class or a function
        """Return the stand-in, or the maker of arrays or of plain values, for a name."""
        path = f"{module}.{name}"
        if path in _MAKERS:
            return _MAKERS[path]
        if not self._library.fullmatch(path):
            raise ModelError(
                f"{self._subject}: names {path}, a class or function that is not the library's "
                "own, and no code of a file is run; train with the library's own classes"
            )
        return self._stubs.setdefault(path, type(name, (Stub,), {"path": path}))

    def persistent_load(self, pid: Any) -> NDArray[Any]:  # noqa: ANN401 -- as PyTorch writes it
        """Return the numbers that an id of PyTorch's stands for."""
        assert self._tensors is not None, "_check refuses such ids"
        return self._tensors(pid)


class _ArrayClass:
    """A stand-in for `numpy.ndarray`, which makes an array of any size when it is called."""


def _reconstruct(kind: object, _shape: object, _dtype: object) -> NDArray[Any]:
    if kind is not _ArrayClass:
        raise TypeError("an array of a class of its own")
    # Shape, type and numbers come with its state.
    return np.ndarray((0,), np.int8)


def _dtype(text: object, *_: object) -> np.dtype[Any]:
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise TypeError(f"numbers of the type {text!r}")
    # A copy: what the pickle sets in it, as the order of bytes, stays with it.
    return np.dtype(text, copy=True)


def _scalar(dtype: np.dtype[Any], content: bytes) -> Any:  # noqa: ANN401 -- a NumPy scalar
    return np.frombuffer(content, dtype, 1)[0]


def _frombuffer(
    buffer: bytes,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    order: str,
    axes: tuple[int, ...] | None = None,
) -> NDArray[Any]:
    numbers = np.frombuffer(buffer, dtype)
    # Source: `numpy._core.numeric._frombuffer`, where K stands for axes in another order.
    if order == "K" and axes is not None:
        return numbers.reshape(shape).transpose(axes)
    return numbers.reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode(encoding)


def _reconstructor(kind: type, _base: object, _state: object) -> Stub:
    if not issubclass(kind, Stub):
        raise TypeError(f"an object of {kind.__name__}")
    return kind()


_NUMPY = ("numpy.core", "numpy._core")
_MAKERS: Mapping[str, Any] = {
    # The second protocol writes bytes by it.
    "_codecs.encode": _encode,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _ArrayClass,
    **{
        f"{module}.{name}": maker
        for module in _NUMPY
        for name, maker in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _frombuffer),
        )
    },
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")
        for kind in (dict, list, set, frozenset, tuple, int, float, bool, str, complex, slice)
    },
    **{
        f"{module}.object": type("object", (Stub,), {"path": "builtins.object"})
        for module in ("builtins", "__builtin__")
    },
}
