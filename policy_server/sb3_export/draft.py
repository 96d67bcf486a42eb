"""Draft a schema.yaml from a training environment's spaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np
import yaml

from policy_server.access_keys import random_key
from policy_server.errors import ExportError, SchemaError
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    MultiDiscreteSpace,
    Space,
)
from policy_server.policy import distinct_names
from policy_server.sb3_export.training_spaces import (
    Values,
    flatten_space,
    list_choices,
    shortest_decimals,
)
from policy_server.schema import (
    ActionField,
    ObservationField,
    ServerSchema,
    parse_schema,
    public_schema,
)

__all__ = [
    "ACTION_MASK",
    "action_sizes",
    "draft_action_fields",
    "draft_observation_fields",
    "draft_schema",
    "find_action_mask",
    "observation_width",
]

ACTION_MASK = "action_mask"


def draft_observation_fields(
    space: Space, names: Sequence[str] | Mapping[str, int] | None = None
) -> tuple[ObservationField, ...]:
    """Describe an observation space by named fields, in the order that it is flattened in.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
        names: names for a Box or MultiBinary observation: one a value, or a mapping from a name to
            its number of values.

    Returns:
        The fields; their widths add up to the policy's input.

    Raises:
        ExportError: if the space has another type, is an image, or the names don't fit.
    """
    if isinstance(space, DictSpace):
        if names is not None:
            raise ExportError(
                "observation names: the keys of the Dict observation are the names; leave them out"
            )
        return tuple(
            _say_key(field, key)
            for key, name in zip(space.parts, distinct_names(list(space.parts)), strict=True)
            for field in _whole(space.parts[key], name)
        )
    if names is None:
        return _whole(space, "observation")
    if isinstance(space, DiscreteSpace | MultiDiscreteSpace):
        if len(names) != 1:
            kind = type(space).__name__.removesuffix("Space")
            raise ExportError(f"observation names: expected one for a {kind}, got {len(names)}")
        return _whole(space, next(iter(names)))
    return _named(flatten_space(space, "observation"), names)


def draft_action_fields(
    space: Space, names: Sequence[str] | None = None, *, is_normalized: bool = False
) -> tuple[ActionField, ...]:
    """Describe an action space by named fields, one for each component of the distribution.

    Args:
        space: Discrete, MultiDiscrete or Box.
        names: one a component: a Box is one component however many dimensions it has.
        is_normalized: the policy's numbers lie in [-1, 1] and are rescaled to the Box, as SAC's
            are; otherwise they are in the environment's units and only clipped, as PPO's and A2C's
            are.

    Returns:
        The fields in order.

    Raises:
        ExportError: if the space has another type, or the number of names is wrong.
    """
    if isinstance(space, BoxSpace):
        low, high = (shortest_decimals(bound) for bound in (space.low, space.high))
        is_bounded = bool(np.isfinite(low).all() and np.isfinite(high).all())
        if is_normalized and not is_bounded:
            raise ExportError(
                "the action space: a squashed policy needs finite bounds, the Box has none"
            )
        fields = [
            ActionField(
                "action",
                dimensions=low.size,
                low=tuple(low.tolist()) if is_bounded else None,
                high=tuple(high.tolist()) if is_bounded else None,
                normalized=is_normalized,
            )
        ]
    else:
        sizes = action_sizes(space)
        prefix = "action" if len(sizes) == 1 else "action_{}"
        fields = [
            ActionField(prefix.format(index), choices=size) for index, size in enumerate(sizes)
        ]
    if names is None:
        return tuple(fields)
    if isinstance(names, str) or len(names) != len(fields):
        given = 1 if isinstance(names, str) else len(names)
        raise ExportError(
            f"action names: expected a list of {len(fields)}, one for each component, got {given}"
        )
    if len(set(names)) != len(names):
        raise ExportError(f"action names: expected each name once, got {list(names)}")
    return tuple(replace(field, name=str(name)) for field, name in zip(fields, names, strict=True))


def action_sizes(space: Space) -> tuple[int, ...]:
    """Return the number of choices of each integer action.

    Args:
        space: Discrete, or MultiDiscrete of one dimension; counted from 0.

    Returns:
        One number for each action.

    Raises:
        ExportError: if the space is another.
    """
    sizes = list_choices(space)
    if sizes is None:
        raise ExportError(
            "the action space: expected Box, or Discrete or MultiDiscrete from 0 on, got "
            f"{type(space).__name__.removesuffix('Space')}"
        )
    return sizes


def find_action_mask(fields: Sequence[ObservationField], action_space: Space) -> int:
    """Find the part of an observation that holds the action mask.

    Args:
        fields: the observation.
        action_space: Discrete or MultiDiscrete.

    Returns:
        Where in the flat observation the mask begins.

    Raises:
        ExportError: if no field is called `action_mask`, or it doesn't have one value for each
            choice.
    """
    choices, start = sum(action_sizes(action_space)), 0
    for field in fields:
        width = _width(field)
        if field.name == ACTION_MASK:
            if width != choices:
                raise ExportError(
                    f"{ACTION_MASK}: expected {choices} values, one for each choice, got {width}"
                )
            return start
        start += width
    raise ExportError(
        f"the policy masks actions: expected a part of the observation called {ACTION_MASK}, got "
        f"{', '.join(field.name for field in fields)}; name it by the Dict's key or by "
        f"observation names such as position:2,{ACTION_MASK}:{choices}; or serve the .zip itself, "
        "which takes a mask beside the observation"
    )


def observation_width(fields: Sequence[ObservationField]) -> int:
    """Return how many numbers the fields have together."""
    return sum(_width(field) for field in fields)


def draft_schema(
    fields: Sequence[ObservationField], actions: Sequence[ActionField], *, source: str
) -> str:
    """Write the text of a schema.yaml with a random access key.

    Args:
        fields: the observation.
        actions: the action components.
        source: the policy's origin in words, for the first line.

    Returns:
        YAML that `parse_schema` accepts.

    Raises:
        ExportError: if a name can't be used.
    """
    is_discrete = actions[0].choices is not None
    schema = ServerSchema(
        observations=tuple(fields),
        actions=tuple(actions),
        discrete=is_discrete,
        tuple=len(actions) > 1,
    )
    document = public_schema(schema)
    document["parameters"] = {
        "discrete": schema.discrete,
        "tuple": schema.tuple,
        "api_key": random_key(18),
    }
    body = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100)
    text = f"# Drafted from {source}: name and describe the values, then serve it.\n{body}"
    try:
        parse_schema(text)
    except SchemaError as error:
        raise ExportError(f"the drafted {error.message}") from error
    return text


def _width(field: ObservationField) -> int:
    return field.max_items or 1


def _whole(space: Space, name: str) -> tuple[ObservationField, ...]:
    values = flatten_space(space, name)
    return _named(values, {name: values.low.size})


def _named(
    values: Values, names: Sequence[str] | Mapping[str, int]
) -> tuple[ObservationField, ...]:
    width = values.low.size
    if isinstance(names, str):
        raise ExportError(
            f"observation names: expected a list or a mapping, got the text {names!r}"
        )
    pairs = list(names.items() if isinstance(names, Mapping) else zip(names, repeat(1)))
    if any(count < 1 for _, count in pairs) or sum(count for _, count in pairs) != width:
        raise ExportError(
            f"observation names: expected names for {width} values, got {dict(pairs)}"
        )
    if len({name for name, _ in pairs}) != len(pairs):
        raise ExportError(f"observation names: expected each name once, got {list(names)}")
    return tuple(_fields(values, pairs))


def _fields(values: Values, pairs: Sequence[tuple[str, int]]) -> Iterator[ObservationField]:
    start = 0
    for name, count in pairs:
        low, high = values.low[start : start + count], values.high[start : start + count]
        convert = {"int": int, "float": float}[values.kind]
        # A mask that forbids everything is no example of an observation.
        values_shown = (
            np.clip(1.0, low, high)
            if name == ACTION_MASK
            else values.example[start : start + count]
        )
        example = [convert(value) for value in values_shown]
        is_list = count > 1
        yield ObservationField(
            name=str(name),
            kind=values.kind,
            is_list=is_list,
            min_items=count if is_list else 0,
            max_items=count if is_list else None,
            description=values.description or None,
            example=example if is_list else example[0],
            # YAML and JSON have no infinity, so a value without a bound is left open.
            minimum=convert(low.min()) if np.isfinite(low).all() else None,
            maximum=convert(high.max()) if np.isfinite(high).all() else None,
        )
        start += count


def _say_key(field: ObservationField, key: str) -> ObservationField:
    """Return the field, with its key in the description where that is no name for a field."""
    if field.name == key:
        return field
    known = [f"{key!r} in the environment", *filter(None, [field.description])]
    return replace(field, description="; ".join(known))
