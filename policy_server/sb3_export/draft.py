"""Draft a schema.yaml from a training environment's spaces."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from policy_server.errors import ExportError, SchemaError
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

_Space = Any  # gymnasium.Space; gymnasium is there for training and tests only.


@dataclass(frozen=True)
class _Values:
    """A flat run of an observation's numbers and what is known of each."""

    kind: Literal["int", "float", "bool"]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    example: NDArray[np.float64]
    description: str = ""


def draft_observation_fields(
    space: _Space, names: Sequence[str] | Mapping[str, int] | None = None
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
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        if names is not None:
            raise ExportError(
                "observation names: the keys of the Dict observation are the names; leave them out"
            )
        return tuple(
            field for key, part in space.spaces.items() for field in _whole(part, _identifier(key))
        )
    if names is None:
        return _whole(space, "observation")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        if len(names) != 1:
            raise ExportError(
                f"observation names: expected one for a {type(space).__name__}, got {len(names)}"
            )
        return _whole(space, next(iter(names)))
    return _named(_flatten(space, "observation"), names)


def draft_action_fields(
    space: _Space, names: Sequence[str] | None = None, *, is_normalized: bool = False
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
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
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
    return tuple(replace(field, name=str(name)) for field, name in zip(fields, names, strict=True))


def action_sizes(space: _Space) -> tuple[int, ...]:
    """Return the number of choices of each integer action.

    Args:
        space: Discrete, or MultiDiscrete of one dimension; counted from 0.

    Returns:
        One number for each action.

    Raises:
        ExportError: if the space is another.
    """
    sizes = _choices(space)
    if sizes is None:
        raise ExportError(
            f"the action space: expected Box, or Discrete or MultiDiscrete from 0 on, got {space}"
        )
    return sizes


def find_action_mask(fields: Sequence[ObservationField], action_space: _Space) -> int:
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
        f"observation names such as position:2,{ACTION_MASK}:{choices}"
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
        source: what it was drafted from, for its first line.

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
        "api_key": secrets.token_urlsafe(18),
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


def _whole(space: _Space, name: str) -> tuple[ObservationField, ...]:
    values = _flatten(space, name)
    return _named(values, {name: values.low.size})


def _named(
    values: _Values, names: Sequence[str] | Mapping[str, int]
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


def _fields(values: _Values, pairs: Sequence[tuple[str, int]]) -> Iterator[ObservationField]:
    start = 0
    for name, count in pairs:
        low, high = values.low[start : start + count], values.high[start : start + count]
        convert = {"int": int, "float": float, "bool": bool}[values.kind]
        # YAML and JSON have no infinity, so a value without a bound is left open.
        has_bounds = values.kind != "bool"
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
            minimum=convert(low.min()) if has_bounds and np.isfinite(low).all() else None,
            maximum=convert(high.max()) if has_bounds and np.isfinite(high).all() else None,
        )
        start += count


def _flatten(space: _Space, name: str) -> _Values:
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) == 3:
            raise ExportError(f"{name}: is an image {space.shape}; only vectors can be exported")
        kind: Literal["int", "float"] = "int" if np.issubdtype(space.dtype, np.integer) else "float"
        low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
        shape = "" if len(space.shape) == 1 else f"an array {space.shape}, row by row"
        return _Values(kind, low, high, np.clip(0.0, low, high), shape)
    if isinstance(space, spaces.MultiBinary):
        width = int(np.prod(space.shape))
        return _Values("bool", np.zeros(width), np.ones(width), np.zeros(width))
    sizes = _choices(space)
    if sizes is None:
        raise ExportError(
            f"{name}: expected a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of "
            f"these, got {space}"
        )
    each = "" if len(sizes) == 1 else f" for each of the parts {list(sizes)} in turn"
    note = (
        f"one-hot, as stable-baselines3 trains it: 1 at the index of the value, 0 elsewhere{each}"
    )
    width = sum(sizes)
    example = np.concatenate([np.eye(size)[0] for size in sizes])
    return _Values("int", np.zeros(width), np.ones(width), example, note)


def _choices(space: _Space) -> tuple[int, ...] | None:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete) and space.start == 0:
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not np.any(space.start):
        return tuple(int(size) for size in space.nvec)
    return None


def _identifier(key: str) -> str:
    name = re.sub(r"\W", "_", key, flags=re.ASCII)
    return f"_{name}" if name[:1].isdigit() else name
