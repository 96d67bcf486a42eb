"""The pydantic models that schema.yaml gives, and pydantic's mistakes in FastAPI's form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic_core import ErrorDetails

from policy_server.errors import ObservationError
from policy_server.schema import FLOAT32_MAX, Kind, ObservationField

__all__ = [
    "columns_model",
    "example_of",
    "flatten",
    "observation_model",
    "problem",
    "raw_columns_model",
    "raw_model",
    "validate",
]

Parsed = TypeVar("Parsed")

_JSON_TYPES = {"int": "integer", "float": "number", "bool": "boolean"}
_STRICT = ConfigDict(strict=True, extra="forbid")
_MOST_PROBLEMS = 100


def problem(kind: str, loc: Sequence[str | int], message: str) -> dict[str, Any]:
    """Return one mistake in FastAPI's form.

    Args:
        kind: a machine-readable name, such as `too_short`.
        loc: where it is, starting with "body" or "query".
        message: what was expected, in words.

    Returns:
        The entry of a 422's `detail`.
    """
    return {"type": kind, "loc": list(loc), "msg": message}


def flatten(values: Iterable[Any]) -> list[float]:
    """Return an observation's numbers in one list.

    Args:
        values: its fields' values in order: numbers, or lists of numbers.
    """
    row: list[float] = []
    for value in values:
        if isinstance(value, list):
            row += value
        else:
            row.append(value)
    return row


def observation_model(fields: tuple[ObservationField, ...]) -> type[BaseModel]:
    """Return the model of a named observation.

    Args:
        fields: its fields in order; they are the model's own in that order.
    """
    # The names are aliases, so that `copy`, `json` or `_id` don't meet what pydantic has already.
    definitions: dict[str, Any] = {
        f"field_{i}": (_annotation(field), _pydantic_field(field)) for i, field in enumerate(fields)
    }
    return create_model("Observation", __config__=_STRICT, **definitions)


def raw_model() -> type[BaseModel]:
    """Return the model of a raw observation, `{"obs": [...]}`."""
    description = "The values in the order of training; booleans are 0 and 1"
    numbers: Any = _list_of(_number("float", None, None))
    return create_model(
        "RawObservation", __config__=_STRICT, obs=(numbers, Field(description=description))
    )


def columns_model(fields: tuple[ObservationField, ...]) -> type[BaseModel]:
    """Return the model of many named observations by column: any of the fields, a value a row.

    Args:
        fields: an observation's fields in order.
    """
    definitions: dict[str, Any] = {
        f"field_{i}": (_list_of(_item_of_column(field)), Field(None, alias=field.name))
        for i, field in enumerate(fields)
    }
    return create_model("ObservationColumns", __config__=_STRICT, **definitions)


def raw_columns_model() -> type[BaseModel]:
    """Return the model of many raw observations by column, `{"obs": [[...], ...]}`."""
    rows: Any = _list_of(_list_of(_number("float", None, None)))
    return create_model("RawObservationColumns", __config__=_STRICT, obs=(rows, Field(None)))


def _item_of_column(field: ObservationField) -> Any:  # noqa: ANN401 -- made at run time
    kind = _annotation(field)
    if not field.is_list:
        return kind
    return Annotated[kind, Field(min_length=field.min_items or None, max_length=field.max_items)]


def _annotation(field: ObservationField) -> Any:  # noqa: ANN401 -- made at run time
    item = _number(field.kind, field.minimum, field.maximum)
    return _list_of(item) if field.is_list else item


def _list_of(item: Any) -> Any:  # noqa: ANN401 -- an annotation made at run time
    # The first wrong item is enough: a body of a million would make a longer answer than itself.
    return Annotated[list[item], FailFast()]


def _number(kind: Kind, minimum: float | None, maximum: float | None) -> Any:  # noqa: ANN401 -- likewise
    document: dict[str, Any] = {"type": _JSON_TYPES[kind]}
    if kind == "bool":
        return Annotated[bool, WithJsonSchema(document)]
    bounds = (("minimum", minimum), ("maximum", maximum))
    document |= {key: value for key, value in bounds if value is not None}
    low = -FLOAT32_MAX if minimum is None else minimum
    high = FLOAT32_MAX if maximum is None else maximum
    if kind == "int":
        return Annotated[int, Field(ge=int(low), le=int(high)), WithJsonSchema(document)]
    return Annotated[float, Field(ge=low, le=high, allow_inf_nan=False), WithJsonSchema(document)]


def _pydantic_field(field: ObservationField) -> Any:  # noqa: ANN401 -- pydantic types Field() so
    known: dict[str, Any] = {
        "alias": field.name,
        "title": field.name,
        "description": field.description,
    }
    if field.is_list:
        known |= {"min_length": field.min_items or None, "max_length": field.max_items}
    return Field(**known, examples=[example_of(field)])


def example_of(field: ObservationField) -> Any:  # noqa: ANN401 -- a value of the field's own type
    """Return the schema's example, or a value within the bounds.

    Args:
        field: what is to be shown.
    """
    if field.example is not None:
        return field.example
    value: bool | int | float = False
    if field.kind != "bool":
        low = -FLOAT32_MAX if field.minimum is None else field.minimum
        high = FLOAT32_MAX if field.maximum is None else field.maximum
        value = min(max(low, 0), high)
        value = float(value) if field.kind == "float" else int(value)
    if not field.is_list:
        return value
    return [value] * max(field.min_items, 1)


def validate(parse: Callable[[bytes], Parsed], body: bytes) -> Parsed:
    """Parse a body, and translate pydantic's errors.

    Args:
        parse: pydantic's function.
        body: UTF-8 JSON.

    Returns:
        What was parsed.

    Raises:
        ObservationError: with the first 100 mistakes.
    """
    try:
        return parse(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise ObservationError([_translate(item) for item in found[:_MOST_PROBLEMS]]) from error


def _translate(item: ErrorDetails) -> dict[str, Any]:
    loc, context = ["body", *item["loc"]], item.get("ctx", {})
    if item["type"] == "json_invalid":
        return problem("json_invalid", ["body"], f"JSON decode error: {context['error']}")
    if FLOAT32_MAX in (context.get("le"), -context.get("ge", 0)):
        return problem("number_too_large", loc, "Input should fit a 32-bit float")
    return problem(item["type"], loc, item["msg"])
