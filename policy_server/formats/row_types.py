"""The type of the rows that carry the numbers of a network's inputs, where their types differ."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["EXACT_AS_FLOAT64", "common_dtype", "mixed_columns"]

EXACT_AS_FLOAT64 = frozenset({"float64", "int32", "int64", "uint32", "uint64"})
"""The types whose numbers a float32 would round; it holds those of all others."""


def common_dtype(dtypes: Sequence[str]) -> str:
    """Return a type whose numbers hold all of those of some types, as far as rows do.

    Args:
        dtypes: NumPy's names of the inputs' types.
    """
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return "float32" if EXACT_AS_FLOAT64.isdisjoint(dtypes) else "float64"


def mixed_columns(columns: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Return the inputs as `PolicySignature.observation_columns` has them: none of one type.

    Args:
        columns: the type and the width of each input of an observation, in order.
    """
    return tuple(columns) if len({dtype for dtype, _ in columns}) > 1 else ()
