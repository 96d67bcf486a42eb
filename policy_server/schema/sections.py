"""From the file to a `ServerSchema`: the rules beyond types, each with a message of its own."""

from __future__ import annotations

import re
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from policy_server.errors import SchemaError
from policy_server.files.regular import open_file, target_of
from policy_server.installation import command_for
from policy_server.schema.fields import (
    ActionField,
    Kind,
    Number,
    ObservationField,
    ServerSchema,
)
from policy_server.schema.key_list import listed_keys, single_key
from policy_server.schema.observation_examples import is_example_of
from policy_server.schema.observation_words import (
    MOST_ITEMS,
    check_words,
    item_bounds,
    normalization_of,
)
from policy_server.schema.scalars import is_nothing, read_flag, read_number
from policy_server.schema.yaml_document import (
    ActionEntry,
    Document,
    ObservationEntry,
    Parameters,
    PolicySections,
    describe_problems,
    show,
    show_type,
)
from policy_server.schema.yaml_text import load_yaml

__all__ = ["check_name", "parse_document", "policy_schema", "read_schema_text"]

# It takes seconds to read as many, and no policy needs them.
_MOST_CHARACTERS = 1_000_000
_SECTIONS = "'observations' and 'parameters'"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_URL_PATH = re.compile(r"[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*")


def read_schema_text(path: Path) -> str:
    """Read the text of a schema.yaml.

    Args:
        path: the file.

    Raises:
        SchemaError: if it is missing or unreadable, in one line.
    """
    try:
        with TextIOWrapper(open_file(path), encoding="utf-8-sig") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except FileNotFoundError as error:
        # The image links the file to that of a mounted folder, which is the one to be written.
        raise SchemaError(
            f"{target_of(path)}: not found; write one (docs/schema.md), or draft it from the model "
            f"with `{command_for('schema')}`"
        ) from error
    except UnicodeDecodeError as error:
        raise SchemaError(f"{path}: expected text in UTF-8; save it in that encoding") from error
    except OSError as error:
        raise SchemaError(f"{path}: can't be read: {error.strerror or error}") from error
    if len(text) > _MOST_CHARACTERS:
        raise SchemaError(
            f"{path}: has more than {_MOST_CHARACTERS} characters; write observations of one kind "
            "as one list"
        )
    return text


def parse_document(text: str, source: str) -> Document:
    """Parse the text of a schema.yaml, up to its keys and their types.

    Args:
        text: the YAML document.
        source: the file's name, for messages.

    Raises:
        SchemaError: if it is wrong, in one line.
    """
    document = load_yaml(text, source)
    if document is None or is_nothing(document):
        raise SchemaError(f"{source}: is empty; expected the sections {_SECTIONS}")
    if not isinstance(document, dict):
        # Its type alone: text without a space after its colon may be the key.
        raise SchemaError(
            f"{source}: expected the sections {_SECTIONS}, got {show_type(document)}; "
            "put a space after each colon"
        )
    try:
        return Document.model_validate(document)
    except ValidationError as error:
        raise SchemaError(f"{source}: {describe_problems(error)}") from error


def policy_schema(parsed: PolicySections, source: str) -> ServerSchema:
    """Return the schema of one policy.

    Args:
        parsed: the sections about it.
        source: where they stand, for messages.

    Raises:
        SchemaError: if they are wrong, in one line.
    """
    parameters = parsed.parameters or Parameters()
    return ServerSchema(
        source=source,
        observations=_observations(parsed, source),
        actions=_actions(parsed, source),
        discrete=parameters.discrete,
        tuple=parameters.tuple,
        module=parsed.module,
        is_unscaled=_is_unscaled(parameters.normalization, source),
        api_key=single_key(parameters.api_key, source),
        api_keys=listed_keys(parameters.api_keys, source),
        url_path=_url_path(parameters.url_path, source),
    )


def _observations(parsed: PolicySections, source: str) -> tuple[ObservationField, ...] | None:
    if "observations" not in parsed.model_fields_set:
        return None
    if not parsed.observations:
        raise SchemaError(
            f"{source}: observations: is empty; list at least one, or leave the section out for "
            "raw observations"
        )
    return tuple(_observation(name, item, source) for name, item in parsed.observations.items())


def check_name(name: object, section: str, source: str) -> str:
    """Return the name of an observation or action.

    Args:
        name: the key in the file.
        section: the section that it stands in.
        source: the file's name, for messages.

    Raises:
        SchemaError: if it can't be a name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SchemaError(
            f"{source}: {section}: the name {show(name)} can't be used; expected letters, digits "
            "and underscores, not starting with a digit"
        )
    return name


def _observation(key: object, item: ObservationEntry, source: str) -> ObservationField:
    name = check_name(key, "observations", source)
    where = f"{source}: observations.{name}"
    _check_items(item, where)
    _check_range(item, where)
    check_words(item, where)
    min_items, max_items = item_bounds(item)
    minimum, maximum, example = (
        _value_of(value, item.type.kind) for value in (item.minimum, item.maximum, item.example)
    )
    field = ObservationField(
        name=name,
        kind=item.type.kind,
        is_list=item.type.is_list,
        min_items=min_items,
        max_items=max_items,
        description=item.description,
        example=example,
        minimum=minimum,
        maximum=maximum,
        one_hot=item.one_hot,
        first=int(minimum or 0) if item.one_hot is not None else 0,
        normalize=normalization_of(item),
        shape=item.shape,
    )
    if item.example is not None and not is_example_of(example, field):
        expected = f"a List[{field.kind}]" if field.is_list else f"a value of type {field.kind}"
        expected += "" if field.shape is None else f" of the shape {list(field.shape)}"
        raise SchemaError(
            f"{where}.example: expected {expected} within its bounds, got {show(item.example)}"
        )
    return field


def _value_of(value: object, kind: Kind) -> Any:  # noqa: ANN401 -- a value of that type, or its list
    """Return a value, or each item of a list, read by its type; unchanged where that fails."""
    if isinstance(value, list):
        return [_value_of(item, kind) for item in value]
    found = read_flag(value) if kind == "bool" else read_number(value)
    if kind == "int" and isinstance(found, float) and found.is_integer():
        return int(found)
    return value if found is None else found


def _check_items(item: ObservationEntry, where: str) -> None:
    for key, value, least in (("min_items", item.min_items, 0), ("max_items", item.max_items, 1)):
        if value is None:
            continue
        if not item.type.is_list:
            raise SchemaError(
                f"{where}.{key}: is for lists, the type is {item.type}; remove it or make the type "
                f"List[{item.type}]"
            )
        if not least <= value <= MOST_ITEMS:
            raise SchemaError(
                f"{where}.{key}: expected a number from {least} to {MOST_ITEMS}, got {show(value)}"
            )
    if item.min_items is not None and item.max_items is not None:
        _check_order(where, ("min_items", item.min_items), ("max_items", item.max_items))


def _check_range(item: ObservationEntry, where: str) -> None:
    for key, value in (("minimum", item.minimum), ("maximum", item.maximum)):
        if value is None:
            continue
        if item.type.kind == "bool":
            raise SchemaError(f"{where}.{key}: is for numbers, the type is {item.type}; remove it")
        if item.type.kind == "int" and value % 1:
            raise SchemaError(
                f"{where}.{key}: expected an integer as the type is {item.type}, got {value}"
            )
    if item.minimum is not None and item.maximum is not None:
        _check_order(where, ("minimum", item.minimum), ("maximum", item.maximum))


def _check_order(where: str, low: tuple[str, Number], high: tuple[str, Number]) -> None:
    if low[1] > high[1]:
        raise SchemaError(
            f"{where}: {low[0]} {low[1]} is larger than {high[0]} {high[1]}; swap them"
        )


def _actions(parsed: PolicySections, source: str) -> tuple[ActionField, ...] | None:
    if "actions" not in parsed.model_fields_set:
        return None
    if not parsed.actions:
        raise SchemaError(
            f"{source}: actions: is empty; name each action component, or leave the section out"
        )
    return tuple(_action(name, item, source) for name, item in parsed.actions.items())


def _action(key: object, item: ActionEntry, source: str) -> ActionField:
    name = check_name(key, "actions", source)
    where = f"{source}: actions.{name}"
    for count, value in (("choices", item.choices), ("dimensions", item.dimensions)):
        if value is not None and value < 1:
            raise SchemaError(f"{where}.{count}: expected a positive number, got {show(value)}")
    labels = _labels(item, where)
    _check_bounds(item, where)
    choices = item.choices if labels is None else len(labels)
    if choices is not None and (item.low is not None or item.dimensions is not None):
        raise SchemaError(
            f"{where}: labels and choices are for integer actions, low, high and dimensions for "
            "continuous ones; keep one kind"
        )
    return ActionField(
        name=name,
        description=item.description,
        choices=choices,
        labels=labels,
        dimensions=item.dimensions,
        low=item.low,
        high=item.high,
        normalized=item.normalized,
        values=item.values,
    )


def _labels(item: ActionEntry, where: str) -> tuple[str, ...] | None:
    if item.labels is None:
        return None
    for label in item.labels:
        # A number or a truth value is one by its tag, as in `!!int 5`: text without quotes is text.
        is_text = isinstance(label, str) and not (is_nothing(label) and not label)
        if not is_text:
            raise SchemaError(f"{where}.labels: expected text, got {show(label)}; put it in quotes")
    labels = tuple(map(str, item.labels))
    if not labels or len(set(labels)) != len(labels):
        raise SchemaError(
            f"{where}.labels: expected a label of its own for each choice, got {show(item.labels)}"
        )
    if item.choices not in (None, len(labels)):
        raise SchemaError(
            f"{where}: gives {len(labels)} labels for {item.choices} choices; give one a choice"
        )
    return labels


def _check_bounds(item: ActionEntry, where: str) -> None:
    if (item.low is None) != (item.high is None):
        missing = "low" if item.low is None else "high"
        raise SchemaError(
            f"{where}.{missing}: is missing; continuous actions are bounded by low and high "
            "together"
        )
    if item.low is None or item.high is None:
        return
    if len(item.low) != len(item.high):
        raise SchemaError(
            f"{where}: low has {len(item.low)} numbers and high {len(item.high)}; give both the "
            "same length"
        )
    if item.dimensions is not None and len(item.low) not in (1, item.dimensions):
        raise SchemaError(
            f"{where}: low and high have {len(item.low)} numbers for {item.dimensions} dimensions; "
            "give one, or one a dimension"
        )
    for low, high in zip(item.low, item.high, strict=True):
        if low >= high:
            raise SchemaError(f"{where}: expected low below high, got low {low} and high {high}")


def _is_unscaled(normalization: str | None, source: str) -> bool:
    if normalization in (None, "none"):
        return normalization == "none"
    raise SchemaError(
        f"{source}: parameters.normalization: expected none, which says that observations were not "
        f"scaled in training, got {show(normalization)}; VecNormalize's statistics go beside the "
        "policy as vec_normalize.pkl"
    )


def _url_path(url_path: str | None, source: str) -> str:
    path = (url_path or "").strip("/")
    if path and (not _URL_PATH.fullmatch(path) or {".", ".."} & set(path.split("/"))):
        raise SchemaError(
            f"{source}: parameters.url_path: expected a path such as app/v1, got {show(url_path)}"
        )
    return path
