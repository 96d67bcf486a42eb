"""schema.yaml: what is served, in the words of the people who trained it.

The file is parsed by pydantic with unknown keys forbidden, and becomes frozen dataclasses that the rest of the program
trusts. Every mistake is one line: the file, the key, what was expected, what was found, and what to do.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from policy_server.errors import SchemaError

__all__ = [
    "ActionField",
    "ObservationField",
    "ServerSchema",
    "parse_schema",
    "public_schema",
    "read_schema",
]

Kind = Literal["int", "float", "bool"]
Number = int | float

_TYPE = re.compile(r"^(?:[Ll]ist\[\s*(int|float|bool)\s*\]|(int|float|bool))$")
_TYPES = "int, float, bool, List[int], List[float], List[bool]"
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_URL_PATH = re.compile(r"^[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*$")
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class ObservationField:
    """One named observation.

    Attributes:
        name: its key in a request.
        kind: the type of its value or, for a list, of each item.
        is_list: whether it is a list.
        min_items: the fewest items of a list.
        max_items: the most items of a list; None for no bound.
        description: what it means, for people.
        example: a value as a client would send it.
        minimum: the smallest value, of each item in a list.
        maximum: the largest value, of each item in a list.
    """

    name: str
    kind: Kind
    is_list: bool = False
    min_items: int = 0
    max_items: int | None = None
    description: str | None = None
    example: bool | int | float | list[bool] | list[int] | list[float] | None = None
    minimum: Number | None = None
    maximum: Number | None = None


@dataclass(frozen=True)
class ActionField:
    """What schema.yaml says of one action component.

    Attributes:
        name: what the component is called.
        description: what it means, for people.
        choices: how many integer choices it has.
        labels: the names of the integer choices, in order.
        dimensions: how many numbers a continuous action has.
        low: lower bounds in the environment's units: one for all dimensions, or one a dimension.
        high: upper bounds, likewise.
        normalized: the policy's numbers lie in [-1, 1] and are rescaled to [low, high], as RLlib's `normalize_actions`
            does; False for numbers that are in the environment's units already and are only clipped.
    """

    name: str
    description: str | None = None
    choices: int | None = None
    labels: tuple[str, ...] | None = None
    dimensions: int | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    normalized: bool = True


@dataclass(frozen=True)
class ServerSchema:
    """A whole schema.yaml.

    Attributes:
        source: the file's name, for messages.
        observations: the named observations in the order of training; None serves the raw routes only.
        actions: the action components; None where the file has no such section.
        discrete: whether the actions are integers; None is inferred from the policy.
        tuple: whether the policy gives several actions; None is inferred from the policy.
        api_key: the access key; None where the environment has to give it.
        url_path: the prefix that a reverse proxy strips, without slashes at its ends; empty for none.
    """

    source: str = "schema.yaml"
    observations: tuple[ObservationField, ...] | None = None
    actions: tuple[ActionField, ...] | None = None
    discrete: bool | None = None
    tuple: bool | None = None
    api_key: str | None = None
    url_path: str = ""

    @property
    def min_width(self) -> int:
        """Return the fewest numbers that an observation can have."""
        return sum(item.min_items if item.is_list else 1 for item in self.observations or ())

    @property
    def max_width(self) -> int | None:
        """Return the most numbers that an observation can have; None where a list has no upper bound."""
        most = 0
        for item in self.observations or ():
            if item.is_list and item.max_items is None:
                return None
            most += cast("int", item.max_items) if item.is_list else 1
        return most

    @property
    def width(self) -> int | None:
        """Return how many numbers every observation has; None where that is open, or where none are named."""
        return (
            self.max_width
            if self.observations is not None and self.min_width == self.max_width
            else None
        )

    @property
    def root_path(self) -> str:
        """Return the proxy's prefix as ASGI's `root_path`: empty, or with a leading slash."""
        return f"/{self.url_path}" if self.url_path else ""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Observation(_Strict):
    type: str
    min_items: int | None = None
    max_items: int | None = None
    description: str | None = None
    example: Any = None
    minimum: Number | None = None
    maximum: Number | None = None


class _Action(_Strict):
    description: str | None = None
    choices: int | None = None
    labels: list[Any] | None = None
    dimensions: int | None = None
    low: Number | list[Number] | None = None
    high: Number | list[Number] | None = None
    normalized: bool = True


class _Parameters(_Strict):
    discrete: bool | None = None
    tuple: bool | None = None
    api_key: str | None = None
    url_path: str | None = None


class _File(_Strict):
    observations: dict[Any, _Observation] | None = None
    actions: dict[Any, _Action] | None = None
    parameters: _Parameters | None = None


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a key given twice is an error and not a silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001,FBT002 -- PyYAML's own signature
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call] -- PyYAML's stubs leave it untyped
            if isinstance(key, str | int | float | bool | None):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key}' is given twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_schema(path: Path) -> ServerSchema:
    """Read a schema.yaml.

    Args:
        path: the file.

    Returns:
        What it says.

    Raises:
        SchemaError: if it is missing, unreadable or wrong, in one line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SchemaError(
            f"{path}: not found; write one (docs/schema.md), or draft it from the model with `python generate.py schema`"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(
            f"{path}: expected a readable text file in UTF-8, got {_one_line(error)}"
        ) from error
    return parse_schema(text, source=path.name)


def parse_schema(text: str, *, source: str = "schema.yaml") -> ServerSchema:
    """Parse the text of a schema.yaml.

    Args:
        text: the YAML document.
        source: the file's name, for messages.

    Returns:
        What it says.

    Raises:
        SchemaError: if it is wrong, in one line.
    """
    document = _load_yaml(text, source)
    if document is None:
        raise SchemaError(
            f"{source}: is empty; expected the sections 'observations' and 'parameters'"
        )
    if not isinstance(document, dict):
        raise SchemaError(
            f"{source}: expected a mapping with the sections 'observations' and 'parameters', got {_show(document)}"
        )
    try:
        parsed = _File.model_validate(document)
    except ValidationError as error:
        raise SchemaError(f"{source}: {_describe_problems(error)}") from error
    parameters = parsed.parameters or _Parameters()
    return ServerSchema(
        source=source,
        observations=_observations(document, parsed, source),
        actions=_actions(document, parsed, source),
        discrete=parameters.discrete,
        tuple=parameters.tuple,
        api_key=_api_key(parameters.api_key, source),
        url_path=_url_path(parameters.url_path, source),
    )


def public_schema(schema: ServerSchema) -> dict[str, Any]:
    """Return the schema as a client may see it: schema.yaml's own shape, without the key.

    Args:
        schema: what is served.

    Returns:
        A document that JSON can carry; `parameters` states `discrete` and `tuple` as they stand in `schema`.
    """
    document: dict[str, Any] = {}
    if schema.observations is not None:
        document["observations"] = {
            item.name: _public_observation(item) for item in schema.observations
        }
    if schema.actions is not None:
        document["actions"] = {item.name: _public_action(item) for item in schema.actions}
    document["parameters"] = {
        "discrete": schema.discrete,
        "tuple": schema.tuple,
        "url_path": schema.url_path,
    }
    return document


def _public_observation(item: ObservationField) -> dict[str, Any]:
    known: dict[str, Any] = {"type": f"List[{item.kind}]" if item.is_list else item.kind}
    if item.is_list:
        known |= {"min_items": item.min_items, "max_items": item.max_items}
    known |= {key: getattr(item, key) for key in ("description", "example", "minimum", "maximum")}
    return {key: value for key, value in known.items() if value is not None}


def _public_action(item: ActionField) -> dict[str, Any]:
    keys = ("description", "choices", "labels", "dimensions", "low", "high")
    known = {key: getattr(item, key) for key in keys}
    if item.low is not None:
        known["normalized"] = item.normalized
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in known.items()
        if value is not None
    }


def _load_yaml(text: str, source: str) -> object:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 -- a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}" if mark else ""
        if _has_tab(text, mark):
            raise SchemaError(
                f"{source}{where}: a tab indents the line; YAML allows spaces only: replace it"
            ) from error
        raise SchemaError(
            f"{source}{where}: is no YAML: {_one_line(error.problem or error.context)}"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SchemaError(f"{source}: is no YAML: {_one_line(error)}") from error


def _has_tab(text: str, mark: yaml.Mark | None) -> bool:
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return False
    line = lines[mark.line]
    return "\t" in line[: len(line) - len(line.lstrip())]


def _describe_problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    # pydantic repeats the branch of a union in `loc`; the user's keys come first.
    path = [
        str(part)
        for part in first["loc"]
        if part not in ("int", "float", "[key]") and "[" not in str(part)
    ]
    where, got = ".".join(path), first["input"]
    kind = first["type"]
    if kind == "extra_forbidden":
        known = _known_keys(path)
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(known)}"
        text = f"{where}: unknown key; {hint}"
    elif kind == "missing":
        text = (
            f"{where}: is missing; expected one of {_TYPES}"
            if path[-1] == "type"
            else f"{where}: is missing"
        )
    elif kind in ("dict_type", "model_type"):
        text = f"{where}: expected a mapping, such as {{type: float}}, got {_show(got)}"
        if path == ["parameters"] or path == ["observations"]:
            text = f"{where}: expected a mapping of keys to values, got {_show(got)}"
    elif "api_key" in path:
        text = f"{where}: expected text, got {type(got).__name__}; put it in quotes"
    else:
        expected = first["msg"].removeprefix("Input should be ")
        text = f"{where}: expected {expected}, got {_show(got)}"
    return text + (f" (and {len(problems) - 1} more mistakes)" if len(problems) > 1 else "")


def _known_keys(path: list[str]) -> list[str]:
    models: dict[tuple[str, int], type[BaseModel]] = {
        ("parameters", 2): _Parameters,
        ("observations", 3): _Observation,
        ("actions", 3): _Action,
    }
    return list(models.get((path[0], len(path)), _File).model_fields)


def _observations(
    document: Mapping[str, Any], parsed: _File, source: str
) -> tuple[ObservationField, ...] | None:
    if "observations" not in document:
        return None
    if not parsed.observations:
        raise SchemaError(
            f"{source}: observations: is empty; list at least one, or leave the section out for raw observations"
        )
    return tuple(_observation(name, item, source) for name, item in parsed.observations.items())


def _check_name(name: object, section: str, source: str) -> str:
    if isinstance(name, bool):
        raise SchemaError(
            f"{source}: {section}: the name {name} is a truth value (YAML reads on, off, yes and no so); put it in quotes"
        )
    if not isinstance(name, str) or not _NAME.match(name):
        raise SchemaError(
            f"{source}: {section}: the name {_show(name)} can't be used; expected letters, digits and underscores, not starting with a digit"
        )
    return name


def _observation(key: object, item: _Observation, source: str) -> ObservationField:
    name = _check_name(key, "observations", source)
    where = f"{source}: observations.{name}"
    match = _TYPE.match(item.type.strip())
    if match is None:
        raise SchemaError(f"{where}.type: expected one of {_TYPES}, got {_show(item.type)}")
    kind = cast("Kind", match[1] or match[2])
    is_list = match[1] is not None
    _check_items(item, where, is_list=is_list)
    _check_range(item, where, kind)
    field = ObservationField(
        name=name,
        kind=kind,
        is_list=is_list,
        min_items=item.min_items or 0,
        max_items=item.max_items,
        description=item.description,
        example=item.example,
        minimum=item.minimum,
        maximum=item.maximum,
    )
    if item.example is not None:
        _check_example(field, where)
    return field


def _check_items(item: _Observation, where: str, *, is_list: bool) -> None:
    for key in ("min_items", "max_items"):
        value = getattr(item, key)
        if value is None:
            continue
        if not is_list:
            raise SchemaError(
                f"{where}.{key}: is for lists, the type is {item.type}; remove it or make the type List[{item.type}]"
            )
        if value < 0 or (key == "max_items" and value == 0):
            raise SchemaError(
                f"{where}.{key}: expected {'a positive number' if key == 'max_items' else '0 or more'}, got {value}"
            )
    if (
        item.min_items is not None
        and item.max_items is not None
        and item.min_items > item.max_items
    ):
        raise SchemaError(
            f"{where}: min_items {item.min_items} is larger than max_items {item.max_items}; swap them"
        )


def _check_range(item: _Observation, where: str, kind: Kind) -> None:
    for key in ("minimum", "maximum"):
        value = getattr(item, key)
        if value is None:
            continue
        if kind == "bool":
            raise SchemaError(f"{where}.{key}: is for numbers, the type is {item.type}; remove it")
        if not math.isfinite(value):
            raise SchemaError(
                f"{where}.{key}: expected a finite number, got {value}; leave it out for no bound"
            )
        if kind == "int" and not isinstance(value, int):
            raise SchemaError(
                f"{where}.{key}: expected an integer as the type is {item.type}, got {value}"
            )
    if item.minimum is not None and item.maximum is not None and item.minimum > item.maximum:
        raise SchemaError(
            f"{where}: minimum {item.minimum} is larger than maximum {item.maximum}; swap them"
        )


def _check_example(field: ObservationField, where: str) -> None:
    values = field.example if field.is_list and isinstance(field.example, list) else [field.example]
    fewest, most = field.min_items, field.max_items if field.max_items is not None else math.inf
    is_right = isinstance(field.example, list) == field.is_list and all(
        _is_of_kind(value, field) for value in values
    )
    if not is_right or (field.is_list and not fewest <= len(values) <= most):
        described = (
            f"a List[{field.kind}] within its bounds"
            if field.is_list
            else f"a value of type {field.kind} within its bounds"
        )
        raise SchemaError(f"{where}.example: expected {described}, got {_show(field.example)}")


def _is_of_kind(value: object, field: ObservationField) -> bool:
    if field.kind == "bool" or isinstance(value, bool):
        return field.kind == "bool" and isinstance(value, bool)
    if not isinstance(value, int if field.kind == "int" else (int, float)):
        return False
    number = cast("float", value)
    low = -math.inf if field.minimum is None else field.minimum
    high = math.inf if field.maximum is None else field.maximum
    return math.isfinite(number) and low <= number <= high


def _actions(
    document: Mapping[str, Any], parsed: _File, source: str
) -> tuple[ActionField, ...] | None:
    if "actions" not in document:
        return None
    if not parsed.actions:
        raise SchemaError(
            f"{source}: actions: is empty; name each action component, or leave the section out"
        )
    return tuple(_action(name, item, source) for name, item in parsed.actions.items())


def _action(key: object, item: _Action, source: str) -> ActionField:
    name = _check_name(key, "actions", source)
    where = f"{source}: actions.{name}"
    labels = None if item.labels is None else tuple(_label(label, where) for label in item.labels)
    if labels is not None and len(set(labels)) != len(labels):
        raise SchemaError(
            f"{where}.labels: expected a label of its own for each choice, got {_show(item.labels)}"
        )
    if labels is not None and item.choices not in (None, len(labels)):
        raise SchemaError(f"{where}: gives {len(labels)} labels for {item.choices} choices")
    for count in ("choices", "dimensions"):
        if (value := getattr(item, count)) is not None and value < 1:
            raise SchemaError(f"{where}.{count}: expected a positive number, got {value}")
    low, high = _bounds(item, where)
    choices = len(labels) if labels is not None else item.choices
    if choices is not None and (low is not None or item.dimensions is not None):
        raise SchemaError(
            f"{where}: labels and choices are for integer actions, low, high and dimensions for continuous ones; keep one kind"
        )
    return ActionField(
        name=name,
        description=item.description,
        choices=choices,
        labels=labels,
        dimensions=item.dimensions,
        low=low,
        high=high,
        normalized=item.normalized,
    )


def _label(label: object, where: str) -> str:
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        raise SchemaError(f"{where}.labels: expected text, got {_show(label)}; put it in quotes")
    return str(label)


def _bounds(item: _Action, where: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if (item.low is None) != (item.high is None):
        missing = "low" if item.low is None else "high"
        raise SchemaError(
            f"{where}.{missing}: is missing; continuous actions are bounded by low and high together"
        )
    if item.low is None or item.high is None:
        return None, None
    low = tuple(map(float, item.low if isinstance(item.low, list) else [item.low]))
    high = tuple(map(float, item.high if isinstance(item.high, list) else [item.high]))
    if len(low) != len(high) or not low:
        raise SchemaError(
            f"{where}: low has {len(low)} numbers and high {len(high)}; give both the same length"
        )
    if not all(math.isfinite(value) for value in (*low, *high)) or any(
        a >= b for a, b in zip(low, high, strict=True)
    ):
        raise SchemaError(
            f"{where}: expected finite bounds with low below high, got low {_show(item.low)} and high {_show(item.high)}"
        )
    return low, high


def _api_key(api_key: str | None, source: str) -> str | None:
    if api_key is not None and (
        not api_key
        or not api_key.isascii()
        or not api_key.isprintable()
        or api_key != api_key.strip()
    ):
        raise SchemaError(
            f"{source}: parameters.api_key: expected printable ASCII text without spaces at its ends; HTTP headers carry nothing else"
        )
    return api_key


def _url_path(url_path: str | None, source: str) -> str:
    path = (url_path or "").strip("/")
    if path and not _URL_PATH.match(path):
        raise SchemaError(
            f"{source}: parameters.url_path: expected a path such as app/v1, got {_show(url_path)}"
        )
    return path


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
