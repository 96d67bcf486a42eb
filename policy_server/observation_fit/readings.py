"""Which integers of schema.yaml the policy's file expands one-hot."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from policy_server.errors import SchemaError
from policy_server.policy import ObservationPart, part_names
from policy_server.schema import ObservationField

__all__ = ["expand_integers"]

_MOST_NAMED = 10


@dataclass(frozen=True)
class _Vector:
    """The columns of an integer that the policy takes one-hot.

    Attributes:
        start: the first column.
        sizes: how many columns it takes, and those integers that follow it in its part.
        is_first: whether it is the first of its part.
    """

    start: int
    sizes: tuple[int, ...]
    is_first: bool

    @property
    def end(self) -> int:
        """Return the column behind the last one."""
        return self.start + self.sizes[0]


@dataclass(frozen=True)
class _Reading:
    """One way to read the first fields of schema.yaml.

    Attributes:
        fields: the fields, those expanded that the policy's file says so.
        ways: how many ways lead to as many columns, this one included.
    """

    fields: tuple[ObservationField, ...]
    ways: int


def expand_integers(
    fields: Sequence[ObservationField], parts: Sequence[ObservationPart], source: str
) -> tuple[ObservationField, ...] | None:
    """Return the fields, those one-hot that are plain integers where the file has one-hot parts.

    Fields may as well give the numbers of the row: of a `Discrete(2)`, an `int` is all, or the
    first of two.

    Args:
        fields: the observations of schema.yaml, of fixed lengths.
        parts: the parts of the policy's observation in order.
        source: the schema's name, for messages.

    Returns:
        The fields; None where their numbers are not the policy's.

    Raises:
        SchemaError: if there are several such readings, or the fields cut one-hot vectors.
    """
    vectors = _Vectors(parts)
    readings = {0: _Reading((), 1)}
    for field in fields:
        following: dict[int, _Reading] = {}
        for start, known in readings.items():
            for read in _readings(field, vectors.at(start)):
                end = start + (read.max_columns or 0)
                if vectors.are_cut(start, end):
                    continue
                ways = known.ways + (following[end].ways if end in following else 0)
                following[end] = _Reading((*known.fields, read), ways)
        readings = following
    width = sum(part.columns for part in parts)
    found = readings.get(width)
    if found is not None and found.ways > 1:
        raise SchemaError(
            f"{source}: observations: can be read in {found.ways} ways, with integers as they are "
            "or expanded; give one_hot for each integer that is to be expanded"
        )
    if found is None and sum(field.min_columns for field in fields) == width:
        raise SchemaError(
            f"{source}: observations: don't follow the parts of the policy's observation; give, in "
            f"this order, {_in_words(parts)}"
        )
    return None if found is None else found.fields


def _in_words(parts: Sequence[ObservationPart]) -> str:
    words = [f"{name} ({part})" for name, part in zip(part_names(parts), parts, strict=True)]
    rest = len(words) - _MOST_NAMED
    return ", ".join(words[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


class _Vectors:
    """The one-hot vectors of a row."""

    def __init__(self, parts: Sequence[ObservationPart]) -> None:
        """Own the vectors by their first columns, in order.

        Args:
            parts: the row's parts.
        """
        self._known: list[_Vector] = []
        start = 0
        for part in parts:
            column = start
            for index, size in enumerate(part.sizes):
                self._known.append(_Vector(column, part.sizes[index:], is_first=index == 0))
                column += size
            start += part.columns
        self._starts = [vector.start for vector in self._known]

    def at(self, column: int) -> _Vector | None:
        """Return the vector that starts at a column."""
        found = self._around(column)
        return found if found is not None and found.start == column else None

    def are_cut(self, start: int, end: int) -> bool:
        """Return whether columns begin or end within a vector, and go on outside of it."""
        first, last = self._around(start), self._around(end)
        is_begun = first is not None and first.start < start < first.end < end
        is_left = last is not None and start < last.start < end < last.end
        return is_begun or is_left

    def _around(self, column: int) -> _Vector | None:
        index = bisect_right(self._starts, column) - 1
        return self._known[index] if index >= 0 else None


def _readings(field: ObservationField, vector: _Vector | None) -> Iterator[ObservationField]:
    """Give a field as it stands, and expanded where it is an integer for each one-hot vector."""
    is_plain = field.kind == "int" and field.one_hot is None and field.normalize is None
    if vector is None or not is_plain:
        yield field
        return
    sizes = vector.sizes if field.is_list else vector.sizes[:1]
    is_all = vector.is_first or not field.is_list
    if is_all and field.items == len(sizes):
        yield replace(field, one_hot=sizes)
        if not field.is_list and sizes == (1,):
            # Of one integer the vector is always 1, and no client sends that.
            return
    yield field
