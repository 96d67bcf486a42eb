"""Spaces as RLlib's old API stack writes them: as plain dictionaries with arrays as text.

Source: `ray.rllib.utils.serialization.space_to_dict`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    MultiBinarySpace,
    MultiDiscreteSpace,
    Space,
    TupleSpace,
    check_bounds,
)
from policy_server.formats.rllib.pipelines import array_of_text

__all__ = ["read_written_space"]

_MOST_PARTS = 1000


def read_written_space(found: Any, subject: str) -> tuple[Space, Space]:  # noqa: ANN401 -- as the file has it
    """Return a space as the network takes it, and as the environment has it.

    Example: a Dict becomes the Box of its flat row, beside which the Dict is kept.

    Args:
        found: the dictionary with `space` and, where RLlib preprocesses observations,
            `original_space`.
        subject: the file and the space's name in it, for messages.

    Raises:
        ModelError: if it is no space, one of another kind, damaged, or has too many parts.
    """
    places = iter(range(_MOST_PARTS))
    try:
        space = _read(found["space"], subject, places)
        original = found.get("original_space")
        if original is None:
            return space, space
        # Some versions write the original space as a pair of its own.
        inner = original if isinstance(original["space"], str) else original["space"]
        return space, _read(inner, subject, places)
    except (
        *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
        zlib.error,
    ) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"{subject}: is no space that can be read: {words}") from error
    except RecursionError as error:
        raise ModelError(f"{subject}: is nested too deeply") from error


def _read(found: Mapping[str, Any], subject: str, places: Iterator[int]) -> Space:
    if next(places, None) is None:
        raise ModelError(f"{subject}: has more than {_MOST_PARTS} parts")
    kind = found["space"]
    if kind == "dict":
        parts = found["spaces"].items()
        return DictSpace({str(key): _read(part, subject, places) for key, part in parts})
    if kind == "tuple":
        return TupleSpace(tuple(_read(part, subject, places) for part in found["spaces"]))
    if kind not in _READERS:
        raise ModelError(f"{subject}: is a space of the kind {kind}, which is not read")
    return _READERS[kind](found)


def _box(found: Mapping[str, Any]) -> Space:
    shape = tuple(int(size) for size in found["shape"])
    dtype = np.dtype(str(found["dtype"]))
    if dtype.kind not in "biuf":
        raise ValueError(f"holds {dtype}")
    low, high = (array_of_text(found[side]).astype(dtype) for side in ("low", "high"))
    if low.shape != shape or high.shape != shape:
        raise ValueError("its bounds are not of its shape")
    check_bounds(low, high)
    return BoxSpace(shape, dtype.name, low, high)


def _discrete(found: Mapping[str, Any]) -> Space:
    return DiscreteSpace(_size(found["n"]), int(found.get("start", 0)))


def _multi_discrete(found: Mapping[str, Any]) -> Space:
    sizes = array_of_text(found["nvec"])
    if sizes.ndim != 1:
        raise ValueError("has more than one dimension")
    return MultiDiscreteSpace(tuple(map(_size, sizes)), (0,) * len(sizes))


def _multi_binary(found: Mapping[str, Any]) -> Space:
    return MultiBinarySpace(tuple(map(_size, np.atleast_1d(np.asarray(found["n"])))))


def _size(value: Any) -> int:  # noqa: ANN401 -- an integer of Python or NumPy
    size = int(value)
    if not 0 < size < 2**31:
        raise ValueError(f"has the size {size}")
    return size


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Space]] = {
    "box": _box,
    "discrete": _discrete,
    "multi-binary": _multi_binary,
    "multi-discrete": _multi_discrete,
}
