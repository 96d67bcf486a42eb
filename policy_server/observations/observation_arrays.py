"""Observations that come as arrays: one by itself, or the rows of a batch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import UnsupportedEncodingError
from policy_server.observations.action_mask import ActionMask
from policy_server.observations.array_rules import ArrayRules
from policy_server.observations.npy_observation import read_array
from policy_server.observations.part_rules import check_rows, named_place
from policy_server.observations.row_encoding import RowEncoder
from policy_server.schema import NumberRange, ObservationField

__all__ = ["ObservationArrays"]


class ObservationArrays:
    """The arrays that are observations: flat, or of the observation's own shape.

    A flat array may have the action mask behind its numbers. The numbers of a named observation are
    those of its JSON: an integer that `one_hot` expands is one.
    """

    def __init__(
        self,
        fields: tuple[ObservationField, ...] | None,
        numbers: NumberRange,
        *,
        mask: ActionMask | None,
        encoder: RowEncoder | None,
        shape: tuple[int, ...] | None,
    ) -> None:
        """Own the rules that numbers are held to.

        Args:
            fields: the named observations in order; None where only raw ones are taken.
            numbers: the numbers that the policy's type holds.
            mask: the action mask that the policy takes beside its observation; None for none.
            encoder: makes rows of named values; None where these are the row's numbers.
            shape: the dimensions of a whole observation in training; None where they are not known.
        """
        self._fields = fields
        self._numbers = numbers
        self._mask = mask
        self._encoder = encoder
        self._only = fields[0] if fields is not None and len(fields) == 1 else None
        own = None if self._only is None or self._only.one_hot is not None else self._only.shape
        # The numbers of the only field are the row's, unless they are expanded on the way.
        self._raw_shape = shape if own is None else own

    def are_taken(self, *, is_raw: bool) -> bool:
        """Return whether one observation may be an array: a named one has to be a single field.

        Args:
            is_raw: whether its numbers are those of the row.
        """
        return is_raw or self._only is not None

    def shape(self, *, is_raw: bool) -> tuple[int, ...] | None:
        """Return the dimensions that an array of one observation may have, beside a flat one's.

        Args:
            is_raw: whether its numbers are those of the row.
        """
        shape = self._raw_shape
        if not is_raw:
            if self._only is None or self._has_required_mask:
                return None
            is_known = self._only.shape is not None or self._only.one_hot is not None
            shape = self._only.shape if is_known else self._raw_shape
            shape = shape if self._only.is_list else ()
        return None if shape is None or len(shape) == 1 else shape

    def items(self, width: int | None, *, is_raw: bool) -> int | None:
        """Return how many numbers an observation has, without its mask; None where that is open.

        Args:
            width: how many numbers the policy takes; None where it leaves that open.
            is_raw: whether its numbers are those of the row.
        """
        return width if is_raw or self._encoder is None else self._named_rules.items

    def sizes(self, width: int | None, *, is_raw: bool) -> tuple[int, ...]:
        """Return how many numbers a flat array may have; empty for any number.

        Args:
            width: how many numbers the policy takes; None where it leaves that open.
            is_raw: whether its numbers are those of the row.
        """
        items = self.items(width, is_raw=is_raw)
        if items is None or self._mask is None:
            return () if items is None else (items,)
        with_mask = items + self._mask.width
        is_required = self._has_required_mask and not is_raw
        return (with_mask,) if is_required else (items, with_mask)

    @property
    def _has_required_mask(self) -> bool:
        return self._mask is not None and self._mask.is_required

    def parse(self, body: bytes, *, width: int | None, is_raw: bool) -> NDArray[Any]:
        """Turn one observation in npy format into a row.

        Args:
            body: a whole array, of any type of real numbers.
            width: how many numbers the policy takes; None where it leaves that open.
            is_raw: whether its numbers are those of the row.

        Returns:
            number[row_width], the row that the same numbers as JSON would give.

        Raises:
            ObservationError: naming the places of the first 100 wrong numbers, or the shape.
            UnsupportedEncodingError: if it is named, and has several fields.
        """
        if not self.are_taken(is_raw=is_raw):
            raise UnsupportedEncodingError(
                "the body is a NumPy array, which is one field, and an observation has "
                f"{len(self._fields or ())}; send them as JSON, or the row to the raw route"
            )
        sizes, shape = self.sizes(width, is_raw=is_raw), self.shape(is_raw=is_raw)
        values = read_array(body, sizes=sizes, shape=shape)[np.newaxis]
        row: NDArray[Any] = self.rows(values, width, None, is_raw=is_raw)[0]
        return row

    def rows(
        self, values: NDArray[Any], width: int | None, first: int | None, *, is_raw: bool
    ) -> NDArray[Any]:
        """Return the rows of observations in an array, checked.

        Args:
            values: number[B, D], with D one of `sizes`.
            width: how many numbers the policy takes; None where it leaves that open.
            first: the index of the first row in the batch; None for an observation by itself.
            is_raw: whether the numbers are those of the row.

        Returns:
            number[B, row_width], with the mask where the policy takes one.

        Raises:
            ObservationError: naming the places of the first 100 wrong numbers.
        """
        items = None if self._mask is None else self.items(width, is_raw=is_raw)
        numbers = values[:, :items]
        (self._raw_rules if is_raw else self._named_rules).check(numbers, first)
        rows = numbers
        if not is_raw and self._encoder is not None:
            rows = self._encoder.matrix(self._encoder.split(numbers))
        if not is_raw:
            self._check_parts(rows, first)
        if self._mask is None or items is None:
            return rows
        masks = values[:, items:]
        if not masks.shape[1]:
            return self._mask.allowing_all(rows)
        start: list[str | int] = ["obs"] if is_raw else [self._mask.name]
        before = items if is_raw else 0

        def path(row: int, column: int) -> list[str | int]:
            place: list[str | int] = [] if first is None else [first + row]
            return ["body", *place, *start, before + column]

        self._mask.check(masks, path)
        return np.concatenate([rows, masks], axis=1)

    def _check_parts(self, rows: NDArray[Any], first: int | None) -> None:
        """Refuse rows of named observations with a number that its part does not hold."""
        fields = self._fields or ()
        is_known = all(field.has_fixed_length for field in fields)
        sizes = [field.items for field in fields] if is_known else []

        def place(row: int, column: int) -> list[str | int]:
            start = [] if first is None else [first + row]
            return [*start, *named_place(fields, sizes, column)]

        check_rows(rows, self._numbers, place)

    @functools.cached_property
    def _raw_rules(self) -> ArrayRules:
        return ArrayRules(None, self._numbers)

    @functools.cached_property
    def _named_rules(self) -> ArrayRules:
        return ArrayRules(self._fields or (), self._numbers)
