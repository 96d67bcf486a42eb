"""The parts of an observation space, as `PolicySignature.observation_parts` has them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    MultiBinarySpace,
    MultiDiscreteSpace,
    Space,
    TupleSpace,
)
from policy_server.formats.row_types import EXACT_AS_FLOAT64
from policy_server.policy import ObservationPart

__all__ = ["needs_float64", "parts_of_space"]

# gym gave the largest float32 for a number without a bound.
_NO_BOUND = float(np.finfo(np.float32).max)


def needs_float64(space: Space) -> bool:
    """Return whether a row of float32 would round the numbers of a space.

    A network of float32 rounds them itself; a scaling ahead of it reckons with all their digits.

    Args:
        space: the environment's observation space.
    """
    if isinstance(space, DictSpace | TupleSpace):
        inner = space.parts.values() if isinstance(space, DictSpace) else space.parts
        return any(map(needs_float64, inner))
    return isinstance(space, BoxSpace) and space.dtype in EXACT_AS_FLOAT64


def parts_of_space(space: Space, *, is_sorted: bool) -> tuple[ObservationPart, ...]:
    """Return the parts of a space in the order that they have in the policy's row.

    Args:
        space: the environment's observation space.
        is_sorted: whether the row has the keys of a Dict in alphabetical order; otherwise in the
            space's own.
    """
    return tuple(_parts(space, "", is_sorted=is_sorted))


def _parts(space: Space, key: str, *, is_sorted: bool) -> Iterator[ObservationPart]:
    if isinstance(space, DictSpace | TupleSpace):
        inner = space.parts if isinstance(space, DictSpace) else dict(enumerate(space.parts))
        order = sorted if is_sorted and isinstance(space, DictSpace) else list
        for name in order(inner):
            below = f"{key}.{name}" if key else str(name)
            yield from _parts(inner[name], below, is_sorted=is_sorted)  # type: ignore[index]
    elif isinstance(space, DiscreteSpace):
        yield _one_hot(key, (), (space.n,), (space.start,))
    elif isinstance(space, MultiDiscreteSpace):
        yield _one_hot(key, (len(space.sizes),), space.sizes, space.starts)
    elif isinstance(space, MultiBinarySpace):
        yield ObservationPart(key, "binary", space.shape, is_integer=True, low=0.0, high=1.0)
    else:
        yield _box(key, space)


def _one_hot(
    key: str, shape: tuple[int, ...], sizes: tuple[int, ...], starts: tuple[int, ...]
) -> ObservationPart:
    if not any(starts):
        return ObservationPart(key, "one_hot", shape, sizes, is_integer=True)
    # Libraries differ in the place that the first integer gets: the vector alone is known.
    return ObservationPart(key, "box", (sum(sizes),), is_integer=True, low=0.0, high=1.0)


def _box(key: str, space: BoxSpace) -> ObservationPart:
    bounds = np.abs(np.concatenate([space.low.ravel(), space.high.ravel()]).astype(np.float64))
    is_bounded = bounds.size > 0 and bool((bounds < _NO_BOUND).all())
    return ObservationPart(
        key,
        "box",
        space.shape,
        is_integer=np.dtype(space.dtype).kind in "iub",
        low=_bound(space.low.min()) if is_bounded else None,
        high=_bound(space.high.max()) if is_bounded else None,
    )


def _bound(value: np.generic) -> float:
    """Return a bound as people write it: 2.3, and not the float32 nearest to it, 2.2999999523."""
    return float(str(value)) if value.dtype.kind == "f" else float(value)
