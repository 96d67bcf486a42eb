"""The keys `shape`, `one_hot` and `normalize` of an observation, which change its place in the row.

For example `{type: int, one_hot: 4}` takes the integers 0 to 3 and fills four columns of the row.
"""

from __future__ import annotations

import math

from policy_server.errors import SchemaError
from policy_server.schema.fields import Normalization
from policy_server.schema.yaml_document import NormalizeEntry, ObservationEntry, show

__all__ = ["MOST_ITEMS", "check_words", "item_bounds", "normalization_of"]

MOST_ITEMS = 1_000_000
# More levels than any array of an environment has.
_MOST_LEVELS = 8


def check_words(item: ObservationEntry, where: str) -> None:
    """Refuse keys of an observation that are wrong, or contradict others.

    Args:
        item: the entry of schema.yaml.
        where: the file and the entry's name, for messages.

    Raises:
        SchemaError: naming the first such key.
    """
    _check_shape(item, where)
    _check_one_hot(item, where)
    if item.normalize is not None:
        _check_normalization(item, item.normalize, where)


def item_bounds(item: ObservationEntry) -> tuple[int, int | None]:
    """Return the fewest and the most items of a list; 0 and None for a single value.

    Args:
        item: an entry that `check_words` has passed.
    """
    if item.shape is not None:
        return (math.prod(item.shape),) * 2
    if item.one_hot is not None and len(item.one_hot) > 1:
        return (len(item.one_hot),) * 2
    most = item.max_items
    if item.one_hot is not None and item.type.is_list and most is None:
        # A row of one request may not take all memory.
        most = MOST_ITEMS // item.one_hot[0]
    return item.min_items or 0, most


def normalization_of(item: ObservationEntry) -> Normalization | None:
    """Return the rule by which an observation is normalized; None for none.

    Args:
        item: an entry that `check_words` has passed.
    """
    rule = item.normalize
    if rule is None:
        return None
    return Normalization(rule.mean, rule.std, rule.clip, float(rule.epsilon))


def _check_shape(item: ObservationEntry, where: str) -> None:
    if item.shape is None:
        return
    if not item.type.is_list:
        raise SchemaError(
            f"{where}.shape: is for lists, the type is {item.type}; remove it or make the type "
            f"List[{item.type}]"
        )
    is_right = 0 < len(item.shape) <= _MOST_LEVELS and min(item.shape) > 0
    if not is_right or math.prod(item.shape) > MOST_ITEMS:
        raise SchemaError(
            f"{where}.shape: expected the length of each level, such as [84, 84, 3], with at most "
            f"{MOST_ITEMS} items in all, got {show(list(item.shape))}"
        )
    for key in ("min_items", "max_items"):
        if getattr(item, key) is not None:
            raise SchemaError(f"{where}.{key}: the shape tells how many items there are; remove it")


def _check_one_hot(item: ObservationEntry, where: str) -> None:
    sizes = item.one_hot
    if sizes is None:
        return
    if item.type.kind != "int":
        raise SchemaError(f"{where}.one_hot: is for integers, the type is {item.type}; remove it")
    if not sizes or min(sizes) < 1 or max(sizes) > MOST_ITEMS:
        raise SchemaError(
            f"{where}.one_hot: expected how many integers there are, such as 4 for 0 to 3, got "
            f"{show(list(sizes))}"
        )
    for key in ("maximum", "normalize"):
        if getattr(item, key) is not None:
            raise SchemaError(f"{where}.{key}: one_hot tells the integers' range; remove it")
    _check_columns(item, sizes, where)
    if len(sizes) > 1 and item.shape is not None:
        raise SchemaError(
            f"{where}.one_hot: has a size for each item of a shape; give one size for all"
        )
    if len(sizes) > 1:
        _check_count(item, len(sizes), f"{where}.one_hot")


def _check_columns(item: ObservationEntry, sizes: tuple[int, ...], where: str) -> None:
    most = math.prod(item.shape) if item.shape else max(item.max_items or 1, item.min_items or 1)
    if max(sizes[0] * most, sum(sizes)) > MOST_ITEMS:
        raise SchemaError(
            f"{where}.one_hot: gives more than {MOST_ITEMS} numbers in all; mend it, or the number "
            "of items"
        )


def _check_normalization(item: ObservationEntry, rule: NormalizeEntry, where: str) -> None:
    where = f"{where}.normalize"
    if item.type.kind == "bool":
        raise SchemaError(f"{where}: is for numbers, the type is {item.type}; remove it")
    for key, values in (("mean", rule.mean), ("std", rule.std)):
        if len(values) > 1:
            _check_count(item, len(values), f"{where}.{key}")
    if rule.epsilon < 0 or min(rule.std) < 0 or min(rule.std) + rule.epsilon <= 0:
        raise SchemaError(
            f"{where}.std: expected numbers above 0, or from 0 on with an epsilon above 0, got "
            f"{show(min(rule.std))} and {show(rule.epsilon)}"
        )
    if rule.clip is not None and rule.clip <= 0:
        raise SchemaError(f"{where}.clip: expected a number above 0, got {show(rule.clip)}")


def _check_count(item: ObservationEntry, count: int, where: str) -> None:
    """Refuse a value for each item where the observation has not as many."""
    if not item.type.is_list:
        raise SchemaError(f"{where}: has {count} values for a single {item.type}; give one")
    if item.shape is not None:
        bounds = [math.prod(item.shape)]
    elif item.one_hot is not None:
        # It tells how many there are, where nothing else does.
        bounds = [bound for bound in (item.min_items, item.max_items) if bound is not None]
    else:
        bounds = [item.min_items or 0, item.max_items or 0]
    if any(bound != count for bound in bounds):
        raise SchemaError(
            f"{where}: has {count} values, one for each item; give one for all, or a shape, or "
            "min_items and max_items, of as many items"
        )
