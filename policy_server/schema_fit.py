"""Whether schema.yaml fits the policy that it describes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from policy_server.errors import SchemaError
from policy_server.observation_fit import fit_observations
from policy_server.policy import ActionComponent, ComponentKind, PolicySignature
from policy_server.schema import (
    ActionField,
    ActionValues,
    ServerSchema,
    check_fields,
    number_range,
)

__all__ = [
    "check_schema_fits",
    "describe_components",
    "describe_known_components",
    "describe_signature",
    "settings_without_effect",
]

# How far bounds that people write may lie from those of a file, which are float32.
_BOUND_TOLERANCE = 1e-5
_VALUES: Mapping[ComponentKind, tuple[ActionValues, ...]] = {
    "categorical": ("logits", "probabilities"),
    "normal": ("normal",),
    "squashed_normal": ("squashed_normal",),
    "deterministic": ("action",),
}


def check_schema_fits(schema: ServerSchema, signature: PolicySignature) -> None:
    """Refuse a schema.yaml that does not fit the policy.

    Args:
        schema: the contents of schema.yaml.
        signature: the policy's signature.

    Raises:
        SchemaError: naming the first disagreement with both figures.
    """
    _check_module(schema, signature)
    stated = schema.without(signature.mask_name)
    observed = replace(stated, observations=fit_observations(schema, signature))
    expected, beside = signature.observation_width, ""
    if stated != schema:
        _check_mask(schema, signature)
        beside = f" beside {signature.mask_name}"
    if schema.observations is not None and expected is not None:
        fewest, most = observed.min_width, observed.max_width
        if fewest == most != expected:
            raise SchemaError(
                f"{schema.source}: gives {fewest} values{beside}, the policy expects {expected}; "
                "list each value of an observation once, in the order of training"
            )
        if fewest > expected or (most is not None and most < expected):
            given = f"at least {fewest}" if fewest > expected else f"at most {most}"
            raise SchemaError(
                f"{schema.source}: gives {given} values{beside}, the policy expects {expected}; "
                "mend the lists' bounds"
            )
    numbers = number_range(signature.observation_dtype, signature.observation_columns)
    # An example of another length than the policy leaves is in the first ones only.
    for fields in (stated.observations, observed.observations):
        check_fields(fields or (), numbers, schema.source)
    _check_flags(schema, signature)


def _check_module(schema: ServerSchema, signature: PolicySignature) -> None:
    if schema.module in (None, signature.module):
        return
    found = (
        "the policy's file names none"
        if signature.module is None
        else f"the policy is {signature.module!r}"
    )
    raise SchemaError(f"{schema.source}: module: is {schema.module!r}, {found}; mend or remove it")


def _check_mask(schema: ServerSchema, signature: PolicySignature) -> None:
    """Refuse an observation of the mask's name that describes no mask of the policy."""
    (item,) = (item for item in schema.observations or () if item.name == signature.mask_name)
    where, choices = f"{schema.source}: observations.{item.name}", sum(signature.mask_sizes)
    most = choices if item.max_items is None else item.max_items
    if not item.is_list or not item.min_items <= choices <= most:
        given = f"{item.min_items} to {most}" if item.min_items != most else most
        raise SchemaError(
            f"{where}: the policy's action mask is a list of {choices} items, one a choice, got "
            f"{given if item.is_list else 'no list'}; mend it, or rename what is no mask"
        )
    if item.minimum not in (None, 0) or item.maximum not in (None, 1):
        raise SchemaError(f"{where}: an action mask holds 0 and 1; leave minimum and maximum out")
    if isinstance(item.example, list) and not _allows_some(item.example, signature.mask_sizes):
        raise SchemaError(
            f"{where}.example: expected 0 and 1, of which some 1 for each action, got "
            f"{item.example}; mend it or leave it out"
        )


def _allows_some(mask: Sequence[float], sizes: Sequence[int]) -> bool:
    ends = list(itertools.accumulate(sizes, initial=0))
    parts = [mask[first:end] for first, end in itertools.pairwise(ends)]
    return len(mask) == ends[-1] and set(mask) <= {0, 1} and all(map(any, parts))


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


def describe_signature(
    signature: PolicySignature,
    schema: ServerSchema | None,
    *,
    has_own_bounds: bool = False,
    has_separate_scaling: bool = False,
) -> PolicySignature:
    """Return the signature with the names and bounds of schema.yaml, after checking that both fit.

    Args:
        signature: the policy's signature.
        schema: the contents of schema.yaml; None leaves the signature as it is.
        has_own_bounds: whether the policy's file tells the bounds of its actions, which
            schema.yaml then may not change.
        has_separate_scaling: whether training may have scaled the observations by statistics that
            are not in the policy's file, so that schema.yaml may say that it did not.

    Raises:
        SchemaError: naming the first disagreement with both values.
    """
    if schema is None:
        return signature
    if schema.is_unscaled and not has_separate_scaling:
        raise SchemaError(
            f"{schema.source}: parameters.normalization: is for policies of stable-baselines3, "
            "whose VecNormalize is in a file of its own; remove it"
        )
    check_schema_fits(schema, signature)
    moot = settings_without_effect(schema, signature)
    signature = replace(signature, findings=(*signature.findings, *moot))
    if schema.actions is None or signature.components is None:
        return signature
    describe = describe_known_components if has_own_bounds else describe_components
    components = describe(signature.components, schema.actions, schema.source)
    _check_values(signature, schema)
    return replace(signature, components=components)


def _check_values(signature: PolicySignature, schema: ServerSchema) -> None:
    """Refuse another meaning of the network's numbers than the one that they are read by."""
    for part, entry in zip(signature.components or (), schema.actions or (), strict=True):
        read = ("q_values",) if signature.is_value_based else _VALUES[part.kind]
        if entry.values is not None and entry.values not in read:
            raise SchemaError(
                f"{schema.source}: actions.{entry.name}.values: is {entry.values}, by the policy's "
                f"file they are {read[0]}; mend it or leave it out"
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


def describe_known_components(
    components: Sequence[ActionComponent], fields: Sequence[ActionField], source: str
) -> tuple[ActionComponent, ...]:
    """Give each component its name and labels, and hold schema.yaml's bounds against the file's.

    Args:
        components: the components in order, with the bounds and labels that the policy's file
            states.
        fields: the entries of schema.yaml's `actions` section in order.
        source: the file's name, for messages.

    Returns:
        The components with their descriptions, and the bounds of the policy's file.

    Raises:
        SchemaError: as `describe_components`, or if schema.yaml states other bounds.
    """
    described = describe_components(components, fields, source)
    return tuple(
        replace(_with_known_bounds(known, stated, source), labels=stated.labels or known.labels)
        for known, stated in zip(components, described, strict=True)
    )


def _with_known_bounds(
    known: ActionComponent, stated: ActionComponent, source: str
) -> ActionComponent:
    if known.low is None and known.high is None:
        return stated
    for side, file, schema in (("low", known.low, stated.low), ("high", known.high, stated.high)):
        if file is None or schema is None:
            continue
        for ours, theirs in zip(schema, file, strict=True):
            if not math.isclose(ours, theirs, rel_tol=_BOUND_TOLERANCE, abs_tol=_BOUND_TOLERANCE):
                raise SchemaError(
                    f"{source}: actions.{stated.name}.{side}: is {ours:g}, the policy's file says "
                    f"{theirs:g}; mend it or leave it out"
                )
    if stated.low is not None and stated.is_normalized != known.is_normalized:
        raise SchemaError(
            f"{source}: actions.{stated.name}.normalized: is {stated.is_normalized}, by the "
            f"policy's file it is {known.is_normalized}; mend it, or leave the bounds out"
        )
    return replace(stated, low=known.low, high=known.high, is_normalized=known.is_normalized)


def _describe(part: ActionComponent, entry: ActionField, source: str) -> ActionComponent:
    where = f"{source}: actions.{entry.name}"
    if part.is_integer and (entry.low is not None or entry.dimensions is not None):
        raise SchemaError(
            f"{where}: low, high and dimensions are for continuous actions, the policy's is an "
            "integer; remove them"
        )
    if not part.is_integer and entry.choices is not None:
        raise SchemaError(
            f"{where}: labels and choices are for integer actions, the policy's is continuous; "
            "remove them"
        )
    if part.kind == "categorical" and entry.choices not in (None, part.size):
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
