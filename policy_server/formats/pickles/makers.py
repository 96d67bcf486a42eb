"""The few classes and functions of Python and NumPy that a pickle may call, as ours make them.

Each makes plain values or arrays of numbers, from arguments that are checked first, and spends of
a budget: a pickle of a few bytes may call them a million times on one large object.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.pickles.budget import Budget, Maker, checked_key
from policy_server.formats.pickles.stubs import PickleFaultError, Stub, stub_class

__all__ = ["MAKERS", "restore_array", "restore_dtype"]

# Of numbers alone: the state of other types has a size that a pickle could set at will.
_DTYPE = re.compile(r"[<>|=]?([?bBhHiIlLqQfdg]|[biufc]\d{1,2})")
_MOST_DIMENSIONS = 32
_LARGEST_SIZE = 2**40
# A state of an array is version, shape, type, whether by columns, and numbers.
_ARRAY_STATE_PARTS = 5


def restore_array(array: NDArray[Any], state: object, budget: Budget) -> None:
    """Fill an array that was made without its numbers.

    Args:
        array: the empty array.
        state: as NumPy writes it.
        budget: gets the array's size taken away.

    Raises:
        PickleFaultError: if it is no state of an array of numbers.
    """
    if not isinstance(state, tuple) or len(state) != _ARRAY_STATE_PARTS:
        raise PickleFaultError("has an array without its state")
    _, shape, dtype, is_by_column, content = state
    if not _is_shape(shape) or not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        raise PickleFaultError("has an array of something other than numbers")
    # Exact with integers of Python, and small ones: the sizes are few, and each is bounded.
    if math.prod(shape) * dtype.itemsize != len(content):
        raise PickleFaultError(f"has an array of another shape than its {len(content)} bytes")
    budget.spend(len(content))
    # NumPy's types state another kind of bool than it takes.
    cast("Any", array).__setstate__((1, shape, dtype, bool(is_by_column), content))


def restore_dtype(dtype: np.dtype[Any], state: object) -> None:
    """Set the order of bytes in a type of numbers.

    Args:
        dtype: a copy, which is the pickle's own.
        state: as NumPy writes it.

    Raises:
        PickleFaultError: if it states more than that.
    """
    if not isinstance(state, tuple) or len(state) < _ARRAY_STATE_PARTS:
        raise PickleFaultError("has a type of numbers without its state")
    version, order, *others = state[:_ARRAY_STATE_PARTS]
    if version != 3 or order not in ("<", ">", "|", "=") or others != [None] * 3:
        raise PickleFaultError("has a type of numbers with fields")
    # NumPy's types leave the method out.
    cast("Any", dtype).__setstate__((3, order, None, None, None, -1, -1, 0))


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(size) is int and 0 <= size < _LARGEST_SIZE for size in value)
    )


def _empty_array(_: Budget, arguments: tuple[Any, ...]) -> NDArray[Any]:
    if arguments[0] is not MAKERS["numpy.ndarray"]:
        raise PickleFaultError("has an array of a class of its own")
    # Shape, type and numbers come with its state.
    return np.ndarray((0,), np.int8)


def _dtype(_: Budget, arguments: tuple[Any, ...]) -> np.dtype[Any]:
    text = arguments[0]
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        shown = text[:20] if isinstance(text, str) else type(text).__name__
        raise PickleFaultError(f"has numbers of the type {shown!r}")
    # A copy: the order of bytes that the pickle sets in it stays with it.
    return np.dtype(text, copy=True)


def _scalar(budget: Budget, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401 -- a NumPy scalar
    dtype, content = arguments
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        raise PickleFaultError("has a number of no known type")
    budget.spend(dtype.itemsize)
    return np.frombuffer(content, dtype, 1)[0]


def _frombuffer(budget: Budget, arguments: tuple[Any, ...]) -> NDArray[Any]:
    buffer, dtype, shape, order, *axes = arguments
    if not isinstance(buffer, bytes | bytearray) or not isinstance(dtype, np.dtype):
        raise PickleFaultError("has an array of something other than numbers")
    if not _is_shape(shape):
        raise PickleFaultError("has an array without a shape")
    budget.spend(1, item_bytes=100)
    numbers = np.frombuffer(buffer, dtype)
    # Source: `numpy._core.numeric._frombuffer`, where K stands for axes in another order.
    if order == "K" and axes and axes[0] is not None:
        return numbers.reshape(shape).transpose(axes[0])
    return numbers.reshape(shape, order="F" if order == "F" else "C")


def _encode(budget: Budget, arguments: tuple[Any, ...]) -> bytes:
    text, encoding = arguments
    if not isinstance(text, str) or encoding != "latin1":
        raise PickleFaultError("has bytes in another encoding than latin1")
    budget.spend(len(text))
    return text.encode(encoding)


def _no_bytes(_: Budget, arguments: tuple[Any, ...]) -> bytes:
    if arguments:
        raise PickleFaultError("makes bytes of something else")
    return b""


def _items_of(budget: Budget, arguments: tuple[Any, ...]) -> Iterable[Any]:
    """Return the items that a container is made of."""
    if not arguments:
        return ()
    (items,) = arguments
    if not isinstance(items, list | tuple | set | frozenset):
        raise PickleFaultError(f"makes a container of a {type(items).__name__}")
    budget.spend(len(items), item_bytes=8)
    return items


def _list(budget: Budget, arguments: tuple[Any, ...]) -> list[Any]:
    return list(_items_of(budget, arguments))


def _tuple(budget: Budget, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_items_of(budget, arguments))


def _set(budget: Budget, arguments: tuple[Any, ...]) -> set[Any]:
    return {checked_key(item, budget) for item in _items_of(budget, arguments)}


def _frozenset(budget: Budget, arguments: tuple[Any, ...]) -> frozenset[Any]:
    return frozenset(_set(budget, arguments))


def _ordered(budget: Budget, arguments: tuple[Any, ...]) -> OrderedDict[Any, Any]:
    pairs = _items_of(budget, arguments)
    return OrderedDict((checked_key(key, budget), value) for key, value in pairs)


def _dict(budget: Budget, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    return dict(_ordered(budget, arguments))


def _reconstructed(_: Budget, arguments: tuple[Any, ...]) -> Stub:
    kind = arguments[0]
    if not isinstance(kind, type) or not issubclass(kind, Stub):
        raise PickleFaultError("has an object of a class that is not the library's")
    return kind.made()


def _object(_: Budget, _arguments: tuple[Any, ...]) -> Stub:
    return stub_class("builtins.object").made()


def _complex(_: Budget, arguments: tuple[Any, ...]) -> complex:
    real, imaginary = arguments
    # Text would be read as a number anew at each call, however long it is.
    if not isinstance(real, int | float) or not isinstance(imaginary, int | float):
        raise PickleFaultError("has a complex number of something other than numbers")
    return complex(float(real), float(imaginary))


def _slice(_: Budget, arguments: tuple[Any, ...]) -> slice:
    if not all(part is None or type(part) is int for part in arguments):
        raise PickleFaultError("has a slice by something other than numbers")
    return slice(*arguments)


_NUMPY = {
    "multiarray._reconstruct": _empty_array,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
_BUILTINS: Mapping[str, Callable[[Budget, tuple[Any, ...]], Any] | None] = {
    **{
        "bool": None,
        "float": None,
        "int": None,
        "str": None,
        "object": _object,
        "bytes": _no_bytes,
    },
    **{"list": _list, "tuple": _tuple, "set": _set, "frozenset": _frozenset, "dict": _dict},
    **{"complex": _complex, "slice": _slice},
}
_MADE: Mapping[str, Callable[[Budget, tuple[Any, ...]], Any] | None] = {
    # The second protocol writes bytes by it.
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda _budget, _factory: {},
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    "numpy.dtype": _dtype,
    "numpy.ndarray": None,
    **{
        f"{room}.{name}": it
        for room in ("numpy.core", "numpy._core")
        for name, it in _NUMPY.items()
    },
    **{
        f"{room}.{name}": it
        for room in ("builtins", "__builtin__")
        for name, it in _BUILTINS.items()
    },
}
MAKERS: Mapping[str, Maker] = {path: Maker(path, make) for path, make in _MADE.items()}
