"""The document's keys and types, by pydantic, and a mistake in them as one line."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast, get_args

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from policy_server.schema.fields import FLOAT32_MAX, ActionValues, Kind, Number
from policy_server.schema.scalars import Unquoted, as_looks, read_flag, read_number

__all__ = [
    "ActionEntry",
    "Document",
    "KeyEntry",
    "NormalizeEntry",
    "ObservationEntry",
    "Parameters",
    "PolicyEntry",
    "PolicySections",
    "VersionEntry",
    "describe_problems",
    "show",
    "show_type",
]

_TYPE = re.compile(r"[Ll]ist\[\s*(int|float|bool)\s*\]|(int|float|bool)")
_TYPES = "one of int, float, bool, List[int], List[float], List[bool]"

_MAPPINGS = {
    ("observations", 1): "a mapping of names, such as 'speed: {type: float}'",
    ("observations", 2): "a mapping, such as {type: float}",
    ("observations", 3): "a mapping, such as {mean: 0.5, std: 2}",
    ("actions", 1): "a mapping of names, such as 'move: {labels: [left, right]}'",
    ("actions", 2): "a mapping, such as {labels: [left, right]}",
    ("parameters", 1): "a mapping, such as 'discrete: True', with a space after each colon",
    ("policies", 1): "a mapping of names, such as 'door: {model: door.zip}'",
    ("policies", 2): "a mapping, such as {model: door.zip}",
    ("multi_agent", 1): "a mapping of agents, such as 'hunter_*: hunter'",
    ("versions", 1): "a mapping of names, such as 'v1: {model: door.zip, traffic: 90}'",
    ("versions", 2): "a mapping, such as {model: door.zip, traffic: 90}",
}

# The value of a key that has to be there.
_MISSING = dict.fromkeys(("mean", "std"), "a number, or one for each item") | {"type": _TYPES}

_TYPE_NAMES: dict[type, str] = {
    str: "text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}
_SHOWN_CHARACTERS = 60
# Each integer up to it is a float too.
_LARGEST_COUNT = 2**53
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _SHOWN_CHARACTERS
_SHORT.maxlevel = 2


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


@dataclass(frozen=True)
class _Type:
    kind: Kind
    is_list: bool

    def __str__(self) -> str:
        return f"List[{self.kind}]" if self.is_list else self.kind


def _parse_type(value: object) -> _Type:
    match = _TYPE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise PydanticCustomError("observation_type", _TYPES)
    return _Type(cast("Kind", match[1] or match[2]), is_list=match[1] is not None)


def _parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("text", "text")
    return str(value)


def _parse_flag(value: object) -> bool:
    found = read_flag(value)
    if found is None:
        raise PydanticCustomError("flag", "a valid boolean")
    return found


def _parse_count(value: object) -> int:
    found = read_number(value)
    if found is None or not -_LARGEST_COUNT <= found <= _LARGEST_COUNT or found % 1:
        raise PydanticCustomError("count", "a valid integer")
    return int(found)


def _parse_number(value: object) -> Number:
    found = read_number(value)
    if found is None:
        raise PydanticCustomError("number", "a number")
    if not abs(found) <= FLOAT32_MAX:
        raise PydanticCustomError("number", "a finite number that fits a 32-bit float")
    return found


def _parse_numbers(value: object) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise PydanticCustomError("number", "a number, or one for each dimension")
    return tuple(float(_parse_number(item)) for item in values)


def _parse_values(value: object) -> ActionValues:
    if value not in get_args(ActionValues):
        raise PydanticCustomError("values", f"one of {', '.join(get_args(ActionValues))}")
    return cast("ActionValues", str(value))


def _parse_counts(value: object) -> tuple[int, ...]:
    return tuple(map(_parse_count, value if isinstance(value, list) else [value]))


_Text = Annotated[str, PlainValidator(_parse_text)]
_Flag = Annotated[bool, PlainValidator(_parse_flag)]
_Count = Annotated[int, PlainValidator(_parse_count)]
_Number = Annotated[int | float, PlainValidator(_parse_number)]
_Numbers = Annotated[tuple[float, ...], PlainValidator(_parse_numbers)]
_Counts = Annotated[tuple[int, ...], PlainValidator(_parse_counts)]


class NormalizeEntry(_Strict):
    """The key `normalize` of an entry under `observations`."""

    mean: _Numbers
    std: _Numbers
    clip: _Number | None = None
    epsilon: _Number = 0


class ObservationEntry(_Strict):
    """One entry under `observations`."""

    type: Annotated[_Type, PlainValidator(_parse_type)]
    min_items: _Count | None = None
    max_items: _Count | None = None
    description: _Text | None = None
    example: Any = None
    minimum: _Number | None = None
    maximum: _Number | None = None
    one_hot: _Counts | None = None
    normalize: NormalizeEntry | None = None
    shape: _Counts | None = None


class ActionEntry(_Strict):
    """One entry under `actions`."""

    description: _Text | None = None
    choices: _Count | None = None
    labels: list[Any] | None = None
    dimensions: _Count | None = None
    low: _Numbers | None = None
    high: _Numbers | None = None
    normalized: _Flag = True
    values: Annotated[ActionValues | None, PlainValidator(_parse_values)] = None


class KeyEntry(_Strict):
    """One entry under `parameters.api_keys`."""

    name: _Text
    key: _Text | None = None
    hash: _Text | None = None
    scopes: list[_Text] | None = None
    max_rate: _Number | None = None
    max_in_flight: _Count | None = None


class Parameters(_Strict):
    """The section `parameters`."""

    discrete: _Flag | None = None
    tuple: _Flag | None = None
    normalization: _Text | None = None
    api_key: _Text | None = None
    api_keys: list[KeyEntry] | None = None
    url_path: _Text | None = None


class PolicySections(_Strict):
    """The sections about one policy; the names of observations and actions are checked later."""

    observations: dict[Any, ObservationEntry] | None = None
    actions: dict[Any, ActionEntry] | None = None
    module: _Text | None = None
    parameters: Parameters | None = None


class VersionEntry(_Strict):
    """One entry under a policy's `versions`."""

    model: _Text
    traffic: _Number | None = None
    shadow: _Flag = False


class PolicyEntry(PolicySections):
    """One entry under `policies`."""

    model: _Text | None = None
    versions: dict[Any, VersionEntry] | None = None
    num_replicas: _Count | None = None
    max_replicas: _Count | None = None
    replica_cpus: _Number | None = None


class Document(PolicySections):
    """The whole file: one policy's sections, or several policies."""

    policies: dict[Any, PolicyEntry] | None = None
    default: _Text | None = None
    multi_agent: dict[Any, _Text] | None = None


def describe_problems(error: ValidationError) -> str:
    """Return the first mistake, as one line without the file's name, and the number of the others.

    Args:
        error: pydantic's error about a `Document`.
    """
    problems = error.errors(include_url=False)
    more = len(problems) - 1
    text = _describe(_explaining(problems))
    return (
        text if more == 0 else f"{text} (and {more} more {'mistake' if more == 1 else 'mistakes'})"
    )


def _explaining(problems: Sequence[ErrorDetails]) -> ErrorDetails:
    """Return the first mistake; for a missing key, the unknown key that was written instead."""
    first = problems[0]
    if first["type"] != "missing":
        return first
    unknown = (item for item in problems if item["type"] == "extra_forbidden")
    beside = (item for item in unknown if item["loc"][:-1] == first["loc"][:-1])
    return next(beside, first)


def _describe(problem: ErrorDetails) -> str:
    path = [str(part) for part in problem["loc"]]
    where, got = ".".join(path), problem["input"]
    if _below_policy(path)[:2] == ["parameters", "api_keys"]:
        return _describe_keys(problem, where)
    match problem["type"]:
        case "extra_forbidden":
            return _describe_unknown_key(path)
        case "missing":
            expected = _MISSING.get(path[-1], "a zip, a folder or an address")
            return f"{where}: is missing; expected {expected}"
        case "dict_type" | "model_type" if "{" in path[-1]:
            name = path[-1].partition("{")[0].strip()
            lacks = "space" if name.endswith(":") else "colon"
            meant = f"'{name.rstrip(':')}: {{...}}'"
            return f"{'.'.join(path[:-1])}: a name lacks its {lacks}; write {meant}"
        case "dict_type" | "model_type":
            inner = _below_policy(path)
            shown = show_type(got) if inner == ["parameters"] else show(got)
            return f"{where}: expected {_MAPPINGS[inner[0], len(inner)]}, got {shown}"
        case "text":
            return f"{where}: expected text, got {show_type(got)}; put it in quotes"
    return f"{where}: expected {problem['msg'].removeprefix('Input should be ')}, got {show(got)}"


def _describe_keys(problem: ErrorDetails, where: str) -> str:
    """Return a mistake in the list of access keys; no value and no unknown name is quoted."""
    match problem["type"]:
        case "missing":
            return f"{where}: is missing; expected a name, which stands for the key in logs"
        case "extra_forbidden":
            entry = where.rpartition(".")[0]
            return f"{entry}: has an unknown key; expected {', '.join(KeyEntry.model_fields)}"
        case "text":
            return f"{where}: expected text, got {show_type(problem['input'])}; put it in quotes"
        case "number" | "count":
            return f"{where}: expected {problem['msg']}, got {show_type(problem['input'])}"
    return (
        f"{where}: expected a list, such as [{{name: plant, key: ..., scopes: [predict]}}], got "
        f"{show_type(problem['input'])}"
    )


def _below_policy(path: list[str]) -> list[str]:
    """Return a path without `policies` and the policy's name, where it goes on behind them."""
    return path[2:] if path[0] == "policies" and len(path) > 2 else path


def _describe_unknown_key(path: list[str]) -> str:
    *parents, key = path
    if ":" in key:
        # The rest of it is hidden, since it may be the key to the server.
        name, _, rest = key.partition(":")
        remedy = "put a space after the colon" if rest else "remove the second colon"
        return f"{'.'.join([*parents, name])}: {remedy}"
    inner = _below_policy(path)
    around = PolicyEntry if len(inner) < len(path) else Document
    if len(inner) > 1 and inner[:-1] == ["parameters"] and key in around.model_fields:
        top = "top of the file" if around is Document else "top of the policy"
        return f"{'.'.join(path)}: stands at the {top}, beside 'parameters'; move it there"
    models: dict[str, type[BaseModel]] = {
        "observations": ObservationEntry,
        "actions": ActionEntry,
        "parameters": Parameters,
        "versions": VersionEntry,
    }
    model = around if len(inner) == 1 else models[inner[0]]
    known = list((NormalizeEntry if "normalize" in inner[2:-1] else model).model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(known)}"
    return f"{'.'.join(path)}: unknown key; {hint}"


def show(value: object) -> str:
    """Return a value as a message quotes it: short, and on one line.

    Args:
        value: anything that YAML gives; not the access key.
    """
    value = as_looks(value)
    # An integer of more than 4300 digits has no decimal text, and reprlib asks for it.
    if isinstance(value, int) and abs(value) >= 10**_SHOWN_CHARACTERS:
        return "an integer that is too large"
    return "nothing" if value is None else _SHORT.repr(value)


def show_type(value: object) -> str:
    """Return the kind of a value in words, where a message must not quote the value.

    Args:
        value: anything that YAML gives.
    """
    if isinstance(value, Unquoted):
        return "text"
    return "nothing" if value is None else _TYPE_NAMES.get(type(value), "a date or the like")
