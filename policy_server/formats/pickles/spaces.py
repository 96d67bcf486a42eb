"""The spaces of gymnasium, and of gym before it, as a pickle keeps them: without importing them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.unpickling import Stub

__all__ = [
    "SPACE_NAMES",
    "BoxSpace",
    "DictSpace",
    "DiscreteSpace",
    "MultiBinarySpace",
    "MultiDiscreteSpace",
    "Space",
    "TupleSpace",
    "check_bounds",
    "read_space",
    "width_of",
]

# The spaces, the generators that they were sampled with, and the names that either states.
SPACE_NAMES = (
    r"(gymnasium|gym)\.(spaces(\.\w+)*\.\w+|utils\.seeding\.\w+)"
    r"|numpy\.random(\.\w+)*|numpy\.(u?int|float)\d+|numpy\.bool_?"
)

_MOST_PARTS = 1000


@dataclass(frozen=True, eq=False)
class BoxSpace:
    """An array of bounded numbers.

    Attributes:
        shape: its dimensions.
        dtype: NumPy's name of its type.
        low: the smallest number at each place; -inf for none.
        high: the largest number at each place; inf for none.
    """

    shape: tuple[int, ...]
    dtype: str
    low: NDArray[Any]
    high: NDArray[Any]


@dataclass(frozen=True)
class DiscreteSpace:
    """An integer from `start` to `start + n - 1`."""

    n: int
    start: int = 0


@dataclass(frozen=True)
class MultiDiscreteSpace:
    """Several integers; the i-th goes from `starts[i]` to `starts[i] + sizes[i] - 1`."""

    sizes: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class MultiBinarySpace:
    """An array of zeros and ones."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class DictSpace:
    """Several spaces by their keys, in the space's own order."""

    parts: Mapping[str, Space]


@dataclass(frozen=True)
class TupleSpace:
    """Several spaces in order."""

    parts: tuple[Space, ...]


Space = BoxSpace | DiscreteSpace | MultiDiscreteSpace | MultiBinarySpace | DictSpace | TupleSpace


def read_space(found: object, subject: str) -> Space:
    """Return the space that a stand-in describes.

    Args:
        found: as `unpickle` gave it.
        subject: the file and the name of the space in it, for messages.

    Raises:
        ModelError: if it is no space, one of another kind, damaged, or has too many parts.
    """
    return _read_space(found, subject, iter(range(_MOST_PARTS)))


def _read_space(found: object, subject: str, places: Iterator[int]) -> Space:
    # A pickle may have a part in itself a thousand times over, by a few bytes each.
    if next(places, None) is None:
        raise ModelError(f"{subject}: has more than {_MOST_PARTS} parts")
    name = found.path.rpartition(".")[2] if isinstance(found, Stub) else type(found).__name__
    if not isinstance(found, Stub) or not re.match(r"(gymnasium|gym)\.spaces\.", found.path):
        raise ModelError(f"{subject}: expected a space of gymnasium or gym, got {name}")
    readers = {
        "Box": _box,
        "Discrete": _discrete,
        "MultiDiscrete": _multi_discrete,
        "MultiBinary": _multi_binary,
    }
    try:
        if name == "Dict":
            parts = found.state["spaces"]
            return DictSpace(
                {key: _read_space(parts[key], f"{subject}[{key!r}]", places) for key in parts}
            )
        if name == "Tuple":
            items = enumerate(found.state["spaces"])
            return TupleSpace(
                tuple(_read_space(part, f"{subject}[{i}]", places) for i, part in items)
            )
        if name in readers:
            return readers[name](found.state)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"{subject}: is no {name} that can be read: {words}") from error
    raise ModelError(f"{subject}: is a space of the kind {name}, which is not read")


def width_of(space: Space) -> int:
    """Return how many numbers a space takes in a flat row: integers one-hot, as libraries do.

    Args:
        space: the space.
    """
    if isinstance(space, BoxSpace | MultiBinarySpace):
        return math.prod(space.shape)
    if isinstance(space, DiscreteSpace):
        return space.n
    if isinstance(space, MultiDiscreteSpace):
        return sum(space.sizes)
    parts = space.parts.values() if isinstance(space, DictSpace) else space.parts
    return sum(map(width_of, parts))


def _box(state: Mapping[str, Any]) -> Space:
    low, high = (np.asarray(state[name]) for name in ("low", "high"))
    if low.shape != high.shape or low.dtype.kind not in "biuf" or high.dtype.kind not in "biuf":
        raise ValueError("its bounds are no two arrays of one shape")
    check_bounds(low, high)
    return BoxSpace(low.shape, str(low.dtype), low, high)


def check_bounds(low: NDArray[Any], high: NDArray[Any]) -> None:
    """Refuse bounds between which there is no number.

    Args:
        low: the smallest number at each place.
        high: the largest number at each place, of the same shape.

    Raises:
        ValueError: naming the first such place.
    """
    for place in np.argwhere(~(low <= high))[:1]:
        where = tuple(place)
        raise ValueError(f"its bounds at {place.tolist()} are {low[where]} and {high[where]}")


def _discrete(state: Mapping[str, Any]) -> Space:
    return DiscreteSpace(_size(state["n"]), int(state.get("start", 0)))


def _multi_discrete(state: Mapping[str, Any]) -> Space:
    sizes = np.asarray(state["nvec"])
    starts = np.asarray(state.get("start", np.zeros_like(sizes)))
    if sizes.ndim != 1 or starts.shape != sizes.shape:
        raise ValueError("has more than one dimension")
    return MultiDiscreteSpace(tuple(map(_size, sizes)), tuple(map(int, starts)))


def _multi_binary(state: Mapping[str, Any]) -> Space:
    shape = tuple(map(_size, np.atleast_1d(np.asarray(state["n"]))))
    if not shape:
        raise ValueError("has no size")
    return MultiBinarySpace(shape)


def _size(value: Any) -> int:  # noqa: ANN401 -- an integer of Python or NumPy
    size = int(value)
    if not 0 < size < 2**31:
        raise ValueError(f"has the size {size}")
    return size
