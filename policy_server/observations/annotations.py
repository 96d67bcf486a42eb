"""The annotations of a field in a pydantic model, which pydantic checks and tells in OpenAPI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import FailFast, Field, WithJsonSchema
from pydantic.annotated_handlers import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from policy_server.schema import Kind, Number, NumberRange, ObservationField

__all__ = [
    "JSON_TYPES",
    "ZERO_OR_ONE",
    "ZeroOrOne",
    "annotation_of",
    "has_lengths",
    "list_of",
    "raw_number",
]

ZERO_OR_ONE = "Input should be 0 or 1, or false or true"
JSON_TYPES = {"int": "integer", "float": "number", "bool": "boolean"}


@dataclass(frozen=True)
class _Whole:
    """Annotates an int that may be written as any number that is whole: 2, 2.0 or 2e0.

    Attributes:
        low: the smallest.
        high: the largest.
    """

    low: Number
    high: Number

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Check for a number first, so that neither text nor a truth value is one.

        The bounds are those of a float, since an int's step knows no number beyond 64 bits.
        """
        number = core_schema.float_schema(strict=True, allow_inf_nan=False)
        return core_schema.chain_schema(
            [
                core_schema.custom_error_schema(number, custom_error_type="int_type"),
                core_schema.float_schema(ge=self.low, le=self.high),
                core_schema.int_schema(strict=False),
            ]
        )


@dataclass(frozen=True)
class ZeroOrOne:
    """Annotates an int that is 0 or 1, and may be written as false or true.

    Attributes:
        error_type: the type of the mistake of any other value.
    """

    error_type: str

    def annotation(self, kind: Kind) -> Any:  # noqa: ANN401 -- made at run time
        """Return the annotation of a value, with the JSON schema of both ways to write it.

        Args:
            kind: the way that schema.yaml has, whose type comes first: it is that of client
                libraries, which know no value of two types.
        """
        types = [JSON_TYPES[kind], "integer" if kind == "bool" else "boolean"]
        # Bounds and steps are about numbers alone (JSON Schema Validation, section 6.2).
        document: dict[str, Any] = {"type": types, "minimum": 0, "maximum": 1}
        if kind == "float":
            document["multipleOf"] = 1
        return Annotated[int, self, WithJsonSchema(document)]

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the steps: a truth value or a number from 0 to 1, which is whole then."""
        either = core_schema.union_schema(
            [
                core_schema.bool_schema(strict=True),
                core_schema.float_schema(strict=True, ge=0, le=1),
            ],
            mode="left_to_right",
        )
        return core_schema.custom_error_schema(
            core_schema.chain_schema([either, core_schema.int_schema(strict=False)]),
            custom_error_type=self.error_type,
            custom_error_message=ZERO_OR_ONE,
        )


def has_lengths(field: ObservationField) -> bool:
    """Return whether a field's list has a number of items that its annotation does not tell.

    Args:
        field: an observation of schema.yaml.
    """
    is_tuple = field.one_hot is not None and len(field.one_hot) > 1
    return field.is_list and field.shape is None and not is_tuple


def annotation_of(field: ObservationField, numbers: NumberRange) -> Any:  # noqa: ANN401 -- made at run time
    """Return the annotation of a field's values.

    Args:
        field: an observation of schema.yaml.
        numbers: the numbers that the policy's type holds.
    """
    low, high = numbers.within(field)
    is_integer = numbers.is_integer and field.normalize is None
    if field.one_hot is not None and len(field.one_hot) > 1:
        return _one_hot_items(field, field.one_hot)
    item = _number(field.kind, low, high, is_integer=is_integer)
    if field.takes_flags:
        item = ZeroOrOne("flag_type").annotation(field.kind)
    if field.shape is not None:
        return _nested(item, field.shape)
    return list_of(item) if field.is_list else item


def _one_hot_items(field: ObservationField, sizes: tuple[int, ...]) -> Any:  # noqa: ANN401 -- made at run time
    """Return the annotation of a list whose items have ranges of their own."""
    low, high = max(field.first, field.minimum or field.first), field.maximum
    ends = [field.first + size - 1 for size in sizes]
    ends = ends if high is None else [min(end, int(high)) for end in ends]
    items: Any = tuple(_number("int", low, end, is_integer=True) for end in ends)
    # `items` is about those behind the others only, of which there are none: it is for readers that
    # don't know `prefixItems`, and the largest range is the only one that fits all.
    document: dict[str, Any] = {
        "type": "array",
        "prefixItems": [{"type": "integer", "minimum": low, "maximum": end} for end in ends],
        "items": {"type": "integer", "minimum": low, "maximum": max(ends)},
        "minItems": len(sizes),
        "maxItems": len(sizes),
    }
    return Annotated[tuple.__class_getitem__(items), FailFast(), WithJsonSchema(document)]


def _nested(item: Any, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 -- made at run time
    for length in reversed(shape):
        item = Annotated[list_of(item), Field(min_length=length, max_length=length)]
    return item


def list_of(item: Any) -> Any:  # noqa: ANN401 -- an annotation made at run time
    """Return the annotation of a list of items.

    Args:
        item: the annotation of an item.
    """
    # The first wrong item is enough: a body of a million would make a longer answer than itself.
    return Annotated[list[item], FailFast()]


def raw_number(numbers: NumberRange) -> Any:  # noqa: ANN401 -- made at run time
    """Return the annotation of a number in a flat observation.

    Args:
        numbers: the numbers that the policy's type holds.
    """
    return _number("float", numbers.low, numbers.high, is_integer=numbers.is_integer)


def _number(kind: Kind, low: Number, high: Number, *, is_integer: bool) -> Any:  # noqa: ANN401 -- made at run time
    if kind == "bool":
        return Annotated[bool, WithJsonSchema({"type": JSON_TYPES[kind]})]
    is_whole = is_integer or kind == "int"
    name = JSON_TYPES["int" if is_whole else kind]
    document = WithJsonSchema({"type": name, "minimum": low, "maximum": high})
    if is_whole:
        return Annotated[int, _Whole(low, high), document]
    return Annotated[float, Field(ge=low, le=high, allow_inf_nan=False), document]
