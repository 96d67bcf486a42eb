"""The observations of schema.yaml with the words of the policy's file, and held against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from policy_server.errors import SchemaError
from policy_server.observation_fit.lengths import fit_lists
from policy_server.observation_fit.readings import expand_integers
from policy_server.policy import ObservationPart, PolicySignature, part_names
from policy_server.schema import ObservationField, ServerSchema, narrowed, number_range

__all__ = ["fit_observations"]


def fit_observations(
    schema: ServerSchema, signature: PolicySignature
) -> tuple[ObservationField, ...] | None:
    """Return the observations of schema.yaml as the policy takes them, without an action mask.

    Args:
        schema: the contents of schema.yaml.
        signature: the policy's signature.

    Returns:
        The observations, with the words of the policy's file and with lengths of lists narrowed by
        its width; as they were where neither tells more. None where schema.yaml lists none.

    Raises:
        SchemaError: if schema.yaml contradicts the policy's file.
    """
    fields = _fitted(schema, signature)
    if fields is None:
        return None
    numbers = number_range(signature.observation_dtype, signature.observation_columns)
    known = list(takewhile(lambda field: field.has_fixed_length, fields))
    fitted = [narrowed(field, start, numbers) for field, start in _placed(known)]
    return (*fitted, *fields[len(known) :])


def _fitted(
    schema: ServerSchema, signature: PolicySignature
) -> tuple[ObservationField, ...] | None:
    """Return the observations as the file's parts of an observation tell more of them."""
    fields, width, parts = (
        schema.without(signature.mask_name).observations,
        signature.observation_width,
        signature.observation_parts,
    )
    if fields is None or not parts:
        return fit_lists(fields, width)
    _check_order(fields, parts, schema.source)
    fields = fit_lists(_with_lengths(fields, parts), width) or ()
    if not all(field.has_fixed_length for field in fields):
        return fields
    expanded = expand_integers(fields, parts, schema.source)
    if expanded is None:
        return fields
    return tuple(
        _held_against(field, start, parts, schema.source) for field, start in _placed(expanded)
    )


def _check_order(
    fields: Sequence[ObservationField], parts: Sequence[ObservationPart], source: str
) -> None:
    names = part_names(parts)
    given = tuple(field.name for field in fields)
    if given != names and sorted(given) == sorted(names):
        raise SchemaError(
            f"{source}: observations: are in another order than in the policy's file; order them "
            f"as {', '.join(names)}"
        )


def _with_lengths(
    fields: tuple[ObservationField, ...], parts: Sequence[ObservationPart]
) -> tuple[ObservationField, ...]:
    """Return fields that are one for each part, open lists with the part's columns."""
    if len(fields) != len(parts):
        return fields
    return tuple(
        replace(field, min_items=part.columns, max_items=part.columns)
        if not field.has_fixed_length and _allows(field, part.columns)
        else field
        for field, part in zip(fields, parts, strict=True)
    )


def _allows(field: ObservationField, items: int) -> bool:
    return field.min_items <= items and (field.max_items is None or items <= field.max_items)


def _placed(fields: Sequence[ObservationField]) -> Iterator[tuple[ObservationField, int]]:
    """Give each field with its first column."""
    start = 0
    for field in fields:
        yield field, start
        start += field.max_columns or 0


def _held_against(
    field: ObservationField, start: int, parts: Sequence[ObservationPart], source: str
) -> ObservationField:
    """Return a field with what the file tells of its columns.

    Raises:
        SchemaError: if the field contradicts that.
    """
    where = f"{source}: observations.{field.name}"
    end, column = start + (field.max_columns or 0), 0
    for part in parts:
        first, column = column, column + part.columns
        if column <= start or first >= end:
            continue
        _check_one_hot(field, start, part, first, where)
        if field.normalize is not None and part.is_normalized:
            raise SchemaError(
                f"{where}.normalize: the policy's file normalizes observations already; remove it"
            )
        is_whole = (start, end) == (first, column)
        if is_whole and field.shape is not None:
            _check_shape(field.shape, part.shape, where)
        if part.kind == "binary" and first <= start and end <= column and field.kind != "float":
            return _with_flags(field)
    return field


def _check_one_hot(
    field: ObservationField, start: int, part: ObservationPart, first: int, where: str
) -> None:
    """Refuse a one-hot field that is not just the one-hot vectors of a part, and other parts."""
    if part.kind != "one_hot":
        return
    sizes = field.one_hot
    bounds = [first + sum(part.sizes[:index]) for index in range(len(part.sizes))]
    if sizes is None:
        return
    sizes = sizes if len(sizes) > 1 else sizes * field.items
    index = bounds.index(start) if start in bounds else None
    expected = part.sizes if index is None else part.sizes[index : index + len(sizes)]
    if index is None or tuple(sizes) != expected:
        shown = expected[0] if len(expected) == 1 else list(expected)
        name = f" ({part.key!r})" if part.key else ""
        raise SchemaError(
            f"{where}.one_hot: is {sizes[0] if len(sizes) == 1 else list(sizes)}, the policy's "
            f"file has {shown} there{name}; mend it or leave it out"
        )
    if field.first:
        raise SchemaError(
            f"{where}.minimum: is {field.first}, the policy's file has {part} there; remove it"
        )


def _check_shape(given: tuple[int, ...], known: tuple[int, ...], where: str) -> None:
    if len(given) > 1 and len(known) > 1 and given != known:
        raise SchemaError(
            f"{where}.shape: is {list(given)}, the policy's file has {list(known)} there; mend it"
        )


def _with_flags(field: ObservationField) -> ObservationField:
    """Return a field of zeros and ones, which may come as false and true."""
    if field.kind == "bool":
        return replace(field, takes_flags=True)
    low, high = (0 if field.minimum is None else field.minimum), field.maximum
    if low > 0 or (high is not None and high < 1):
        # schema.yaml allows one of the two alone.
        return field
    return replace(field, takes_flags=True, minimum=0, maximum=1)
