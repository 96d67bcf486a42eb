"""Observations: a request's bytes are validated once, by schema.yaml, and become one row."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
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

__all__ = ["ObservationSpace", "problem"]

Model = TypeVar("Model", bound=BaseModel)

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


class ObservationSpace:
    """The observations that one schema.yaml allows.

    A row is a list of numbers in the order of training: scalars as they are, lists item by item,
    booleans as 0 and 1.
    """

    def __init__(self, fields: tuple[ObservationField, ...] | None) -> None:
        """Generate the pydantic models.

        Args:
            fields: the named observations in order; None where only raw observations are taken.
        """
        self.fields = fields
        self._named = None if fields is None else _observation_model(fields)
        self._raw = _raw_model()

    @functools.cached_property
    def example(self) -> dict[str, Any] | None:
        """Return a valid named observation: the schema's examples, or values within its bounds."""
        return (
            None if self.fields is None else {field.name: _example(field) for field in self.fields}
        )

    def raw_example(self, width: int | None) -> list[float]:
        """Return a valid raw observation.

        Args:
            width: how many numbers the policy takes; None where it leaves that open.
        """
        row = [] if self.example is None else _flatten(list(self.example.values()))
        if width is not None and len(row) != width:
            row = [0.0] * width
        return [float(value) for value in row]

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
        return document | {"examples": [{"obs": self.raw_example(width)}]}

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
        assert self._named is not None, (
            "routes for named observations exist only where the schema names some"
        )
        return _flatten(_validate(self._named, body).__dict__.values())

    def parse_raw(self, body: bytes) -> list[float]:
        """Turn the JSON of a raw observation, `{"obs": [...]}`, into a row.

        Args:
            body: UTF-8 JSON.

        Returns:
            The row.

        Raises:
            ObservationError: naming the first item that is no finite number.
        """
        row: list[float] = _validate(self._raw, body).__dict__["obs"]
        return row

    def check_width(self, row: Sequence[float], width: int | None, *, is_raw: bool) -> None:
        """Hold a row's length against the policy.

        Args:
            row: the numbers.
            width: how many the policy expects; None where it leaves that open.
            is_raw: whether the row came from `obs`, for the error's place.

        Raises:
            ObservationError: if the length is not the policy's.
        """
        if width is None or len(row) == width:
            return
        kind = "too_short" if len(row) < width else "too_long"
        if is_raw:
            raise ObservationError(
                [problem(kind, ["body", "obs"], f"List should have {width} items, not {len(row)}")]
            )
        open_lists = [
            item.name
            for item in self.fields or ()
            if item.is_list and item.min_items != item.max_items
        ]
        message = f"The observation should have {width} values in all, not {len(row)}"
        raise ObservationError([problem(kind, ["body", *open_lists[:1]], message)])


def _flatten(values: Iterable[Any]) -> list[float]:
    row: list[float] = []
    for value in values:
        if isinstance(value, list):
            row += value
        else:
            row.append(value)
    return row


def _observation_model(fields: tuple[ObservationField, ...]) -> type[BaseModel]:
    # The names are aliases, so that `copy`, `json` or `_id` don't meet what pydantic has already.
    definitions: dict[str, Any] = {
        f"field_{i}": (_annotation(field), _pydantic_field(field)) for i, field in enumerate(fields)
    }
    return create_model("Observation", __config__=_STRICT, **definitions)


def _raw_model() -> type[BaseModel]:
    description = "The values in the order of training; booleans are 0 and 1"
    numbers: Any = _list_of(_number("float", None, None))
    return create_model(
        "RawObservation", __config__=_STRICT, obs=(numbers, Field(description=description))
    )


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
    return Field(**known, examples=[_example(field)])


def _example(field: ObservationField) -> Any:  # noqa: ANN401 -- a value of the field's own type
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


def _validate(model: type[Model], body: bytes) -> Model:
    try:
        return model.model_validate_json(body)
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
