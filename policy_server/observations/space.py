"""Observations: a request's bytes are validated once, by schema.yaml, and become one row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from policy_server.errors import ObservationError
from policy_server.observations.action_mask import ActionMask
from policy_server.observations.models import (
    columns_model,
    example_of,
    observation_model,
    problem,
    raw_columns_model,
    raw_model,
    validate,
)
from policy_server.observations.observation_arrays import ObservationArrays
from policy_server.observations.part_rules import NamedParts, check_row, places_of_parts
from policy_server.observations.row_encoding import Row, row_maker
from policy_server.observations.unpacked_values import as_json
from policy_server.schema import NumberRange, ObservationField, are_held, number_range

__all__ = ["ObservationSpace"]


class ObservationSpace:
    """The observations that one schema.yaml and the policy's own type allow.

    A row is a list of numbers in the order of training: scalars as they are, lists item by item,
    booleans as 0 and 1, and what `one_hot` and `normalize` make of numbers.

    Attributes:
        fields: the named observations in order; None where only raw observations are taken.
        numbers: the numbers that the policy's type holds.
        mask: the action mask that the policy takes beside its observation; None for none.
        encoder: makes rows of values; None where the values are the row's numbers.
        named_parts: makes and checks rows of named observations; None where the fields' own bounds
            hold each number to its input's type.
        arrays: reads observations that come as arrays.
    """

    def __init__(
        self,
        fields: tuple[ObservationField, ...] | None,
        numbers: NumberRange | None = None,
        mask: ActionMask | None = None,
        *,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Generate the pydantic models.

        Args:
            fields: the named observations in order, without one that describes the mask; None
                where only raw observations are taken.
            numbers: the numbers that the policy's type holds; None, before the policy is loaded,
                takes those of float32.
            mask: the action mask that the policy takes beside its observation; None for none.
            shape: the dimensions of a whole observation in training, as the policy's file tells
                them; None where it doesn't.
        """
        self.fields = fields
        self.numbers = number_range("float32") if numbers is None else numbers
        self.mask = mask
        self._named = (
            None
            if fields is None
            else observation_model(fields, self.numbers, **(mask.for_observation() if mask else {}))
        )
        self._raw = raw_model(self.numbers, **(mask.for_raw() if mask else {}))
        # pydantic's functions, without the call around them that looks at options.
        self._read_raw = TypeAdapter(self._raw).validator.validate_json
        self._read_named = (
            None if self._named is None else TypeAdapter(self._named).validator.validate_json
        )
        self._row, self.encoder = row_maker(fields or (), has_mask=mask is not None)
        is_held = are_held(fields or (), self.numbers)
        self.named_parts = None if is_held else NamedParts(fields or (), self.numbers, self._row)
        self.arrays = ObservationArrays(
            fields, self.numbers, mask=mask, encoder=self.encoder, shape=shape
        )
        self._named_row = self._row if self.named_parts is None else self.named_parts.row
        self._raw_row: Callable[[Mapping[str, Any]], list[float]] = (
            itemgetter("obs") if mask is None else self._row_of_raw
        )
        if self.numbers.columns:
            self._raw_row = self._with_checked_parts(self._raw_row)

    @functools.cached_property
    def example(self) -> dict[str, Any] | None:
        """Return a valid named observation: the schema's examples, or values within its bounds."""
        return (
            None
            if self.fields is None
            else {field.name: example_of(field, self.numbers) for field in self.fields}
            | self._mask_example
        )

    @property
    def _mask_example(self) -> dict[str, Any]:
        return {} if self.mask is None else {self.mask.name: self.mask.example}

    def raw_example(self, width: int | None) -> list[float]:
        """Return a valid raw observation.

        Args:
            width: how many numbers the policy takes; None where it leaves that open.
        """
        row = self._row(example_of(field, self.numbers) for field in self.fields or ())
        if width is not None and len(row) != width:
            row = [0.0] * width
        number = int if self.numbers.is_integer else float
        return [number(value) for value in row]

    def json_schema(self) -> dict[str, Any] | None:
        """Return the JSON schema of a named observation, with an example."""
        if self._named is None:
            return None
        return self._named.model_json_schema() | {"examples": [self.example]}

    def raw_json_schema(self, width: int | None) -> dict[str, Any]:
        """Return the JSON schema of a raw observation, with an example.

        Args:
            width: how many numbers the policy takes; None where it leaves that open.
        """
        document = self._raw.model_json_schema()
        if width is not None:
            document["properties"]["obs"] |= {"minItems": width, "maxItems": width}
            document["properties"]["obs"] |= places_of_parts(self.numbers, width)
        return document | {"examples": [{"obs": self.raw_example(width)} | self._mask_example]}

    def example_row(self, width: int | None) -> list[float]:
        """Return the row of a valid observation, with an action mask where the policy takes one.

        Args:
            width: how many numbers the policy takes; None where it leaves that open.
        """
        row = self.raw_example(width)
        return row if self.mask is None else row + self.mask.example

    def parse_named(self, body: bytes) -> list[float]:
        """Turn the JSON of a named observation into a row.

        Args:
            body: UTF-8 JSON, an object with exactly the schema's fields.

        Returns:
            The row.

        Raises:
            ObservationError: naming each field that is missing, unknown, of the wrong type, length
                or range; the first 100 of them, and the first wrong item of a list.
        """
        assert self._read_named is not None, (
            "routes for named observations exist only where the schema names some"
        )
        return self._named_row(validate(self._read_named, body).__dict__.values())

    def parse_raw(self, body: bytes) -> list[float]:
        """Turn the JSON of a raw observation, `{"obs": [...]}`, into a row.

        Args:
            body: UTF-8 JSON.

        Returns:
            The row.

        Raises:
            ObservationError: naming the first item that is no finite number.
        """
        return self._raw_row(validate(self._read_raw, body).__dict__)

    def _with_checked_parts(
        self, row_of: Callable[[Mapping[str, Any]], list[float]]
    ) -> Callable[[Mapping[str, Any]], list[float]]:
        def checked(values: Mapping[str, Any]) -> list[float]:
            row = row_of(values)
            check_row(row, self.numbers, lambda column: ["obs", column])
            return row

        return checked

    def _row_of_raw(self, values: Mapping[str, Any], *place: int) -> list[float]:
        """Return the row of a flat observation's fields, for a policy that takes a mask."""
        assert self.mask is not None, "without one, `obs` is the row"
        return self.mask.row(values["obs"], values["mask"], *place)

    def parse_values(self, values: object, *, is_raw: bool) -> list[float]:
        """Turn an observation that came in another encoding, such as MessagePack, into a row.

        Args:
            values: an observation as dictionaries, lists and scalars.
            is_raw: whether it is `{"obs": [...]}`.

        Returns:
            The row that the same values as JSON would give.

        Raises:
            ObservationError: as `parse_named` and `parse_raw` raise it.
        """
        model = self._raw if is_raw else self._named
        assert model is not None, "see parse_named"
        try:
            found = model.model_validate(values).__dict__
        except ValidationError:
            # pydantic words a few mistakes by the language that they came from.
            body = as_json(values)
            return self.parse_raw(body) if is_raw else self.parse_named(body)
        return self._raw_row(found) if is_raw else self._named_row(found.values())

    def names(self, *, is_raw: bool) -> list[str]:
        """Return the names of an observation's fields in order, the action mask's last.

        Args:
            is_raw: whether it is `{"obs": [...]}`.
        """
        names = ["obs"] if is_raw else [field.name for field in self.fields or ()]
        return names if self.mask is None else [*names, self.mask.name]

    def required_names(self, *, is_raw: bool) -> list[str]:
        """Return the names of the fields that may not be left out.

        Args:
            is_raw: whether it is `{"obs": [...]}`.
        """
        names = self.names(is_raw=is_raw)
        is_required = self.mask is None or (self.mask.is_required and not is_raw)
        return names if is_required else names[:-1]

    def parse_rows(self, body: bytes, *, is_raw: bool) -> list[list[float]]:
        """Turn a JSON list of observations into rows.

        Args:
            body: UTF-8 JSON.
            is_raw: whether each is `{"obs": [...]}`.

        Returns:
            The rows.

        Raises:
            ObservationError: as for one observation, with the row's index before the field.
        """
        found = validate(self._lists[is_raw].validate_json, body)
        if is_raw and self.mask is not None:
            return [self._row_of_raw(item.__dict__, row) for row, item in enumerate(found)]
        if is_raw:
            return [item.__dict__["obs"] for item in found]
        if self.named_parts is None:
            return [self._row(item.__dict__.values()) for item in found]
        return [self.named_parts.row(item.__dict__.values(), row) for row, item in enumerate(found)]

    def parse_columns(self, body: bytes, *, is_raw: bool) -> dict[str, list[Any]]:
        """Return the columns of a JSON object that has a list for each field, a value a row.

        Args:
            body: UTF-8 JSON; fields may be missing.
            is_raw: whether the one field is `obs`, a list of lists.

        Returns:
            The columns that are there, by the fields' names.

        Raises:
            ObservationError: as for one observation, with the row's index behind the field.
        """
        found = validate(self._columns[is_raw].model_validate_json, body)
        names = zip(type(found).model_fields, self.names(is_raw=is_raw), strict=True)
        return {
            name: found.__dict__[field] for field, name in names if field in found.model_fields_set
        }

    @functools.cached_property
    def _lists(self) -> tuple[TypeAdapter[Any], TypeAdapter[Any]]:
        """Return the adapters that read lists of observations: named ones, raw ones."""
        models: Any = (self._raw if self._named is None else self._named, self._raw)
        return TypeAdapter(list[models[0]]), TypeAdapter(list[models[1]])

    @functools.cached_property
    def _columns(self) -> tuple[type[BaseModel], type[BaseModel]]:
        """Return the models of observations by column: named ones, raw ones."""
        last = self.mask.for_columns() if self.mask else {}
        return (
            columns_model(self.fields or (), self.numbers, **last),
            raw_columns_model(self.numbers, **last),
        )

    def check_width(self, row: Row, width: int | None, *, is_raw: bool) -> None:
        """Refuse a row whose length is not the policy's.

        Args:
            row: the numbers, an action mask's too.
            width: how many the policy expects; None where it leaves that open.
            is_raw: whether the row came from `obs`; the error names its field.

        Raises:
            ObservationError: if the length is not the policy's.
        """
        if width is None or len(row) == width:
            return
        kind = "too_short" if len(row) < width else "too_long"
        beside = 0 if self.mask is None else self.mask.width
        expected, given = width - beside, len(row) - beside
        if is_raw:
            raise ObservationError(
                [problem(kind, ["body", "obs"], f"List should have {expected} items, not {given}")]
            )
        open_lists = [item.name for item in self.fields or () if not item.has_fixed_length]
        message = f"The observation should have {expected} values in all, not {given}"
        raise ObservationError([problem(kind, ["body", *open_lists[:1]], message)])
