"""The form for an observation, made from the server's answer at /schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import streamlit as st

from demo.plain_text import as_text
from demo.server_client import Observation
from policy_server.errors import SettingsError
from policy_server.schema import FLOAT32_MAX

__all__ = ["flat_example", "named_fields", "named_inputs", "parse_values", "raw_input"]

# The integers that JavaScript holds exactly; streamlit takes no larger integers.
_LARGEST_INTEGER = 2**53 - 1
_MOST_INPUTS_IN_A_ROW = 6
_FIELDS_IN_A_ROW = 2
_TYPE_NAMES = {"int": "whole number", "float": "number", "bool": "truth value"}
# Keys of a field whose numbers are others in the row.
_WORDS_OF_ROWS = {"one_hot", "normalize", "shape"}
_WORDS = {"true": True, "false": False}


def named_fields(schema: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]] | None:
    """Return the fields of a named observation, the policy's action mask too.

    Args:
        schema: the server's answer at /schema.

    Returns:
        The section `observations`, with the mask behind it unless it is there; None where the
        server takes flat observations only.
    """
    fields, mask = schema.get("observations"), schema["policy"].get("action_mask")
    if fields is None or mask is None:
        return fields
    choices = sum(mask["sizes"])
    described = {
        "type": "List[bool]",
        "example": [True] * choices,
        "description": "The choices of the integer actions that are allowed",
        **fields.get(mask["name"], {}),
        "min_items": choices,
        "max_items": choices,
    }
    return {**fields, mask["name"]: described}


def named_inputs(fields: Mapping[str, Mapping[str, Any]], *, key: str) -> dict[str, Any]:
    """Draw an input for each named observation, filled with the examples.

    Args:
        fields: the section `observations` of /schema.
        key: sets the inputs apart from those of another server.

    Returns:
        The observation; a list whose text can't be read stands as `SettingsError`.
    """
    values: dict[str, Any] = {}
    row: list[Any] = []
    row_kind = ""
    for name, field in fields.items():
        if _is_list(field):
            row = []
            with st.container(gap=None):
                values[name] = _list_input(name, field, key=f"{key}.{name}")
                _explain(field)
            continue
        kind = "check box" if _kind(field) == "bool" else "number"
        # Check boxes are lower than number inputs: each have rows of their own.
        if not row or kind != row_kind:
            row, row_kind = list(st.columns(_FIELDS_IN_A_ROW, gap="medium")), kind
        with row.pop(0).container(gap="xxsmall"):
            values[name] = _item_input(name, field, _example(field), key=f"{key}.{name}")
            _explain(field)
    return values


def raw_input(schema: Mapping[str, Any], *, key: str) -> Observation | SettingsError:
    """Draw one input for a flat observation.

    Args:
        schema: the server's answer at /schema.
        key: sets the inputs apart from those of another server.

    Returns:
        The values, or why the text can't be read.
    """
    example = flat_example(schema)
    width = schema["policy"]["observation_width"]
    how_many = "The values" if width is None else f"{width} numbers"
    text = st.text_area(
        "obs", _list_text(example), key=key, help="Numbers with commas or spaces between them"
    )
    names = ", ".join(_observed(schema) or {})
    mask = schema["policy"].get("action_mask")
    last = (
        "" if mask is None else f" The {sum(mask['sizes'])} numbers of an action mask may follow."
    )
    order = as_text(f": {names}") if names else ""
    st.caption(f"{how_many} in the order of training{order}.{last}")
    return _parsed(text)


def flat_example(schema: Mapping[str, Any]) -> list[float]:
    """Return a flat observation to begin with: the examples', or zeros.

    Args:
        schema: the server's answer at /schema.
    """
    fields, width = _observed(schema), schema["policy"]["observation_width"]
    zeros = [0.0] * (width or 1)
    if fields is None or any(_WORDS_OF_ROWS & field.keys() for field in fields.values()):
        return zeros
    values: list[float] = []
    for field in fields.values():
        example = _example(field)
        values += [float(value) for value in (example if _is_list(field) else [example])]
    # The policy's file may expand integers, without a word in the schema.
    return values if width in (None, len(values)) else zeros


def _observed(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]] | None:
    """Return the named observations without one that describes the action mask beside them."""
    fields, mask = schema.get("observations"), schema["policy"].get("action_mask")
    if fields is None:
        return None
    return {name: field for name, field in fields.items() if mask is None or name != mask["name"]}


def parse_values(text: str) -> list[Any]:
    """Read numbers and truth values; the server checks whether they fit.

    Args:
        text: values with commas, spaces or line ends between them, in brackets or not.

    Raises:
        SettingsError: naming the first value that can't be read.
    """
    values: list[Any] = []
    for word in re.split(r"[\s,;\[\]]+", text):
        if not word:
            continue
        try:
            values.append(_WORDS[word.lower()] if word.lower() in _WORDS else json.loads(word))
        except ValueError as error:
            raise SettingsError(f"expected numbers, or true and false, got {word!r}") from error
    return values


def _is_list(field: Mapping[str, Any]) -> bool:
    return str(field["type"]).startswith("List[")


def _kind(field: Mapping[str, Any]) -> str:
    return str(field["type"]).removeprefix("List[").removesuffix("]")


def _example(field: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- of the field's type
    if "example" in field:
        return field["example"]
    if _kind(field) == "bool":
        value: Any = False
    else:
        value = max(0, field.get("minimum", 0))
        value = min(value, field.get("maximum", value))
    if not _is_list(field):
        return value
    for length in reversed(field.get("shape", [field.get("min_items", 0)])):
        value = [value] * length
    return value


def _folded(values: list[Any], shape: Sequence[int]) -> list[Any]:
    """Return values as nested lists; as they are where their number is another."""
    if len(values) != math.prod(shape):
        return values
    for length in reversed(shape[1:]):
        values = [values[start : start + length] for start in range(0, len(values), length)]
    return values


def _item_input(
    label: str, field: Mapping[str, Any], value: float, *, key: str, shows_label: bool = True
) -> bool | int | float:
    low, high = _bounds(field)
    label = as_text(label)
    visibility: Literal["visible", "collapsed"] = "visible" if shows_label else "collapsed"
    match _kind(field):
        case "bool":
            return st.checkbox(label, bool(value), key=key)
        case "int":
            least = -_LARGEST_INTEGER if low is None else max(int(low), -_LARGEST_INTEGER)
            most = _LARGEST_INTEGER if high is None else min(int(high), _LARGEST_INTEGER)
            return st.number_input(
                label,
                min_value=least,
                max_value=most,
                value=min(max(int(value), least), most),
                step=1,
                key=key,
                label_visibility=visibility,
            )
    return st.number_input(
        label,
        min_value=float(-FLOAT32_MAX if low is None else low),
        max_value=float(FLOAT32_MAX if high is None else high),
        value=float(value),
        # A schema that counts in whole numbers is stepped through in them.
        step=1.0 if isinstance(value, int) else 0.1,
        format="%g",
        key=key,
        label_visibility=visibility,
    )


def _list_input(name: str, field: Mapping[str, Any], *, key: str) -> list[Any] | SettingsError:
    example, length = _example(field), field.get("max_items")
    if length is None or length != field.get("min_items") or length > _MOST_INPUTS_IN_A_ROW:
        text = st.text_area(as_text(name), _list_text(example), key=key, height="content")
        values = _parsed(text)
        if isinstance(values, list) and "shape" in field:
            return _folded(values, field["shape"])
        return values
    st.markdown(f":small[{as_text(name)}]")
    values = []
    for index, column in enumerate(st.columns(length, gap="xsmall")):
        with column:
            label = str(index) if _kind(field) == "bool" else f"{name}[{index}]"
            values.append(
                _item_input(label, field, example[index], key=f"{key}.{index}", shows_label=False)
            )
    return values


def _parsed(text: str) -> list[Any] | SettingsError:
    try:
        return parse_values(text)
    except SettingsError as error:
        return error


def _list_text(values: list[Any]) -> str:
    return json.dumps(values).strip("[]")


def _explain(field: Mapping[str, Any]) -> None:
    """Write the meaning of a field, and its limits, below its input."""
    words = [str(field.get("description", "")).strip().rstrip(".")]
    # A check box shows both its values, and its example.
    if _is_list(field) or _kind(field) != "bool":
        example = [f"e.g. {json.dumps(field['example'])}"] if "example" in field else []
        words.append(", ".join([_limits(field), *example]))
    st.caption(as_text(": ".join(filter(None, words))))


def _limits(field: Mapping[str, Any]) -> str:
    kind, (low, high) = _kind(field), _bounds(field)
    what = f"{_length(field)} {_TYPE_NAMES[kind]}s" if _is_list(field) else _TYPE_NAMES[kind]
    if low is not None and high is not None:
        return f"{what} from {_exact(low)} to {_exact(high)}"
    if low is not None:
        return f"{what} from {_exact(low)} on"
    return what if high is None else f"{what} up to {_exact(high)}"


def _exact(number: float) -> str:
    """Return a number with all its digits, without those behind the point of a whole one."""
    return repr(number).removesuffix(".0")


def _bounds(field: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the smallest and the largest value; None for no bound."""
    low, high = field.get("minimum"), field.get("maximum")
    sizes = field.get("one_hot")
    if sizes is None:
        return low, high
    return low or 0, (low or 0) + max(sizes if isinstance(sizes, list) else [sizes]) - 1


def _length(field: Mapping[str, Any]) -> str:
    if "shape" in field:
        return " x ".join(map(str, field["shape"]))
    fewest, most = field.get("min_items", 0), field.get("max_items")
    if most is None:
        return f"{fewest} or more" if fewest else "any number of"
    return str(most) if fewest == most else f"{fewest} to {most}"
