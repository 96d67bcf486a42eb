"""Lists of open length, narrowed by the number of values that a policy takes."""

from __future__ import annotations

from dataclasses import replace

from policy_server.schema import ObservationField

__all__ = ["fit_lists"]

# More than any list holds, in sums of lengths.
_ENDLESS = 10**9


def fit_lists(
    fields: tuple[ObservationField, ...] | None, width: int | None
) -> tuple[ObservationField, ...] | None:
    """Return the observations, with the lengths of lists narrowed by the policy's width.

    Example:
        With a `speed` and a list `links` of any length, a policy that takes 11 values leaves 10
        items for `links`.

    Args:
        fields: the observations of schema.yaml.
        width: how many numbers the policy expects; None where it leaves that open.

    Returns:
        The observations; as they were where the width is open, or no lengths give it. A list's
        example of another length is left out.
    """
    if fields is None or width is None:
        return fields
    fewest = sum(item.min_columns for item in fields)
    most = sum(_most(item) for item in fields)
    if not fewest <= width <= most:
        return fields
    return tuple(
        item
        if item.has_fixed_length
        else _fit_list(item, width - most + _most(item), width - fewest + item.min_columns)
        for item in fields
    )


def _most(item: ObservationField) -> int:
    return _ENDLESS if item.max_columns is None else item.max_columns


def _fit_list(item: ObservationField, low: int, high: int) -> ObservationField:
    """Return a list of open length that takes at least `low` columns of the row, at most `high`."""
    each = item.columns_of(1)
    fewest = max(item.min_items, -(-low // each))
    most = high // each if item.max_items is None else min(item.max_items, high // each)
    if fewest > most:
        return item
    shown = item.example if isinstance(item.example, list) else None
    example = shown if shown is not None and fewest <= len(shown) <= most else None
    return replace(item, min_items=fewest, max_items=most, example=example)
