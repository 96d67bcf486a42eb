"""The pydantic models that schema.yaml gives, and pydantic's mistakes in FastAPI's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from policy_server.errors import ObservationError
from policy_server.observations.annotations import (
    annotation_of,
    has_lengths,
    list_of,
    raw_number,
)
from policy_server.observations.encodings import UTF8_MARK, check_encoding
from policy_server.schema import (
    EXACT_INTEGER_MAX,
    FLOAT32_MAX,
    NumberRange,
    ObservationField,
)

__all__ = [
    "TOO_LARGE",
    "columns_model",
    "example_of",
    "observation_model",
    "problem",
    "raw_columns_model",
    "raw_model",
    "validate",
]

Parsed = TypeVar("Parsed")

_STRICT = ConfigDict(strict=True, extra="forbid")
_MOST_PROBLEMS = 100

# The message for a number beyond one of these bounds.
TOO_LARGE: Mapping[float, str] = {
    FLOAT32_MAX: "fit a 32-bit float",
    EXACT_INTEGER_MAX: f"be at most {EXACT_INTEGER_MAX} in absolute value, to arrive exactly",
}


def problem(kind: str, loc: Sequence[str | int], message: str) -> dict[str, Any]:
    """Return one mistake in FastAPI's form.

    Example:
        `{"type": "missing", "loc": ["body", "cat_row"], "msg": "Field required"}`.

    Args:
        kind: a machine-readable name, such as `too_short`.
        loc: where it is, starting with "body" or "query".
        message: the expected value, in words.

    Returns:
        The entry of a 422's `detail`.
    """
    return {"type": kind, "loc": list(loc), "msg": message}


def observation_model(
    fields: tuple[ObservationField, ...], numbers: NumberRange, **last: tuple[Any, Any]
) -> type[BaseModel]:
    """Return the model of a named observation.

    Args:
        fields: its fields in order; they are the model's own in that order.
        numbers: the numbers that the policy's type holds.
        last: the fields behind them, as pydantic's `create_model` takes them.
    """
    # The names are aliases, so that `copy`, `json` or `_id` don't clash with pydantic's own.
    definitions: dict[str, Any] = {
        f"field_{i}": (annotation_of(field, numbers), _pydantic_field(field, numbers))
        for i, field in enumerate(fields)
    }
    return create_model("Observation", __config__=_STRICT, **(definitions | last))


def raw_model(numbers: NumberRange, **last: tuple[Any, Any]) -> type[BaseModel]:
    """Return the model of a raw observation, `{"obs": [...]}`.

    Args:
        numbers: the numbers that the policy's type holds.
        last: the fields beside `obs`, as pydantic's `create_model` takes them.
    """
    description = "The values in the order of training; booleans are 0 and 1"
    items = list_of(raw_number(numbers))
    obs: dict[str, Any] = {"obs": (items, Field(description=description))}
    return create_model("RawObservation", __config__=_STRICT, **(obs | last))


def columns_model(
    fields: tuple[ObservationField, ...], numbers: NumberRange, **last: tuple[Any, Any]
) -> type[BaseModel]:
    """Return the model of many named observations by column: any of the fields, a value a row.

    Args:
        fields: an observation's fields in order.
        numbers: the numbers that the policy's type holds.
        last: the columns behind them, as pydantic's `create_model` takes them.
    """
    definitions: dict[str, Any] = {
        f"field_{i}": (list_of(_item_of_column(field, numbers)), Field(None, alias=field.name))
        for i, field in enumerate(fields)
    }
    return create_model("ObservationColumns", __config__=_STRICT, **(definitions | last))


def raw_columns_model(numbers: NumberRange, **last: tuple[Any, Any]) -> type[BaseModel]:
    """Return the model of many raw observations by column, `{"obs": [[...], ...]}`.

    Args:
        numbers: the numbers that the policy's type holds.
        last: the columns beside `obs`, as pydantic's `create_model` takes them.
    """
    obs: dict[str, Any] = {"obs": (list_of(list_of(raw_number(numbers))), Field(None))}
    return create_model("RawObservationColumns", __config__=_STRICT, **(obs | last))


def _item_of_column(field: ObservationField, numbers: NumberRange) -> Any:  # noqa: ANN401 -- made at run time
    kind = annotation_of(field, numbers)
    if not has_lengths(field):
        return kind
    return Annotated[kind, Field(min_length=field.min_items or None, max_length=field.max_items)]


def _pydantic_field(field: ObservationField, numbers: NumberRange) -> Any:  # noqa: ANN401 -- pydantic types Field() so
    known: dict[str, Any] = {
        "alias": field.name,
        "title": field.name,
        "description": field.description,
    }
    if has_lengths(field):
        known |= {"min_length": field.min_items or None, "max_length": field.max_items}
    return Field(**known, examples=[example_of(field, numbers)])


def example_of(field: ObservationField, numbers: NumberRange) -> Any:  # noqa: ANN401 -- a value of the field's own type
    """Return the schema's example, or a value within the bounds.

    Args:
        field: an observation of schema.yaml.
        numbers: the numbers that the policy's type holds.
    """
    if field.example is not None:
        return field.example
    value: Any = False
    if field.kind != "bool":
        low, high = numbers.within(field)
        value = min(max(low, 0), high)
        is_float = field.kind == "float" and not numbers.is_integer
        value = float(value) if is_float else int(value)
    if not field.is_list:
        return value
    for length in reversed(field.shape or (max(field.min_items, 1),)):
        value = [value] * length
    return value


def validate(parse: Callable[[bytes], Parsed], body: bytes) -> Parsed:
    """Parse a body, and raise pydantic's errors as an ObservationError.

    Args:
        parse: pydantic's function.
        body: UTF-8 JSON; a byte-order mark in front is passed over.

    Returns:
        The result of `parse`.

    Raises:
        ObservationError: with the first 100 mistakes.
        UnsupportedEncodingError: if the body is no text in UTF-8.
    """
    try:
        return parse(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            # Only here, since nearly all bodies are valid and need no such look.
            if body.startswith(UTF8_MARK):
                return validate(parse, body.removeprefix(UTF8_MARK))
            check_encoding(body)
        raise ObservationError([_as_problem(item) for item in found[:_MOST_PROBLEMS]]) from error


def _as_problem(item: ErrorDetails) -> dict[str, Any]:
    loc, context = ["body", *item["loc"]], item.get("ctx", {})
    if item["type"] == "json_invalid":
        reason = context["error"].replace("invalid unicode code point", "no character of UTF-8")
        return problem("json_invalid", ["body"], f"JSON decode error: {reason}")
    wanted = TOO_LARGE.get(context.get("le", -context.get("ge", 0)))
    if wanted is not None:
        return problem("number_too_large", loc, f"Input should {wanted}")
    return problem(item["type"], loc, item["msg"])
