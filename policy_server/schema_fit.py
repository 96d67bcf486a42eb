"""Whether schema.yaml fits the policy that it describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from policy_server.errors import SchemaError
from policy_server.policy import ActionComponent, PolicySignature
from policy_server.schema import ActionField, ServerSchema, number_range

__all__ = ["check_schema_fits", "describe_components", "settings_without_effect"]


def check_schema_fits(schema: ServerSchema, signature: PolicySignature) -> None:
    """Refuse a schema.yaml that does not fit the policy.

    Args:
        schema: the contents of schema.yaml.
        signature: the policy's signature.

    Raises:
        SchemaError: naming the first disagreement with both figures.
    """
    expected = signature.observation_width
    if schema.observations is not None and expected is not None:
        fewest, most = schema.min_width, schema.max_width
        if fewest == most != expected:
            raise SchemaError(
                f"{schema.source}: gives {fewest} values, the policy expects {expected}; list each "
                "value of an observation once, in the order of training"
            )
        if fewest > expected or (most is not None and most < expected):
            given = f"at least {fewest}" if fewest > expected else f"at most {most}"
            raise SchemaError(
                f"{schema.source}: gives {given} values, the policy expects {expected}; mend the "
                "lists' bounds"
            )
    numbers = number_range(signature.observation_dtype)
    numbers.check_fields(schema.observations or (), schema.source)
    _check_flags(schema, signature)


def _check_flags(schema: ServerSchema, signature: PolicySignature) -> None:
    actions = signature.action_outputs
    integers = [action.is_integer for action in actions]
    if schema.discrete is not None and schema.discrete not in integers:
        found = "integers" if all(integers) else "continuous"
        raise SchemaError(
            f"{schema.source}: parameters.discrete: is {schema.discrete}, the policy's actions are "
            f"{found}; set it to {not schema.discrete} or leave it out"
        )
    if schema.tuple is False and len(actions) > 1:
        raise SchemaError(
            f"{schema.source}: parameters.tuple: is False, the policy gives {len(actions)} "
            "actions; set it to True or leave it out"
        )


def settings_without_effect(schema: ServerSchema, signature: PolicySignature) -> tuple[str, ...]:
    """Return the disagreements between schema.yaml and the policy that change no answer.

    Args:
        schema: the contents of schema.yaml, which `check_schema_fits` has passed.
        signature: the policy's signature.

    Returns:
        A line for each, as the log shows it.
    """
    actions = signature.action_outputs
    # A MultiDiscrete policy is one vector of several actions: some people call it a tuple.
    is_multi_discrete = len(actions) == 1 and actions[0].is_integer and actions[0].is_vector
    if not schema.tuple or len(actions) != 1 or is_multi_discrete or signature.is_tuple_of_one:
        return ()
    return (
        f"{schema.source}: parameters.tuple: is True, the policy gives one action; that changes "
        "nothing, as every answer lists its actions",
    )


def describe_components(
    components: Sequence[ActionComponent], fields: Sequence[ActionField], source: str
) -> tuple[ActionComponent, ...]:
    """Give each component the name, labels and bounds of schema.yaml's `actions` section.

    Args:
        components: the distribution's components in order.
        fields: the entries of the section in order.
        source: the file's name, for messages.

    Returns:
        The components with their descriptions.

    Raises:
        SchemaError: if the number of entries, labels or bounds is not the policy's.
    """
    if len(fields) != len(components):
        raise SchemaError(
            f"{source}: actions: names {len(fields)} actions, the policy has {len(components)}; "
            "list each once, in order"
        )
    return tuple(
        _describe(part, entry, source) for part, entry in zip(components, fields, strict=True)
    )


def _describe(part: ActionComponent, entry: ActionField, source: str) -> ActionComponent:
    where = f"{source}: actions.{entry.name}"
    is_integer = part.kind == "categorical"
    if is_integer and (entry.low is not None or entry.dimensions is not None):
        raise SchemaError(
            f"{where}: low, high and dimensions are for continuous actions, the policy's is an "
            "integer; remove them"
        )
    if not is_integer and entry.choices is not None:
        raise SchemaError(
            f"{where}: labels and choices are for integer actions, the policy's is continuous; "
            "remove them"
        )
    if entry.choices is not None and entry.choices != part.size:
        raise SchemaError(f"{where}: gives {entry.choices} choices, the policy has {part.size}")
    if entry.dimensions not in (None, part.size):
        raise SchemaError(
            f"{where}: gives {entry.dimensions} dimensions, the policy has {part.size}"
        )
    return replace(
        part,
        name=entry.name,
        labels=entry.labels,
        low=_bounds(entry.low, part.size, f"{where}.low"),
        high=_bounds(entry.high, part.size, f"{where}.high"),
        is_normalized=entry.normalized,
    )


def _bounds(values: tuple[float, ...] | None, size: int, where: str) -> tuple[float, ...] | None:
    if values is None or len(values) == size:
        return values
    if len(values) > 1:
        raise SchemaError(
            f"{where}: gives {len(values)} numbers, the action has {size} dimensions; give one, or "
            "one a dimension"
        )
    return values * size
