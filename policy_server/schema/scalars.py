"""Unquoted values of a schema.yaml: text as it stands in the file, until a key gives its type.

YAML 1.1 decides by the value's looks: `14:30` is the number 870 in base 60, `010` is 8, `1e3` is
text, `no` is false, `2024-01-01` a date. None of these is meant by a label or a bound.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["Unquoted", "as_looks", "is_nothing", "read_flag", "read_number"]

_DECIMAL = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?")
_WITH_PREFIX = re.compile(r"[-+]?0(?:[xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# The words that YAML 1.1 has for a truth value; each in lower case, in capitals, or with one.
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NOTHING = frozenset({"", "~", "null", "Null", "NULL"})


class Unquoted(str):
    """A value without quotes, as it stands in the file."""

    __slots__ = ()


def is_nothing(value: object) -> bool:
    """Return whether a value is empty: nothing behind the colon, `~` or `null`.

    Args:
        value: anything that YAML gives.
    """
    return isinstance(value, Unquoted) and value in _NOTHING


def read_number(value: object) -> int | float | None:
    """Return the number that a person reads in a value; None where it is no number.

    Args:
        value: anything that YAML gives. `010` is 10 and `1e3` 1000; text in quotes is no number,
            nor is `14:30`.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if not isinstance(value, Unquoted):
        return None
    text = value.replace("_", "")
    if _WITH_PREFIX.fullmatch(value):
        return _integer(text, base=0)
    if _DECIMAL.fullmatch(value):
        return _integer(text, base=10)
    if _SPECIAL.fullmatch(value):
        return float(text.replace(".", "", 1))
    return float(text) if _FLOAT.fullmatch(value) else None


def _integer(text: str, *, base: int) -> int | float | None:
    try:
        return int(text, base)
    except ValueError:
        # `0x_`, or more than the 4300 digits that Python reads: no float holds that many either.
        return float(text) if base == 10 else None


def read_flag(value: object) -> bool | None:
    """Return the truth value that a word of YAML stands for; None where it is no such word.

    Args:
        value: anything that YAML gives; text in quotes is no truth value.
    """
    if isinstance(value, bool):
        return value
    if not isinstance(value, Unquoted) or value not in {
        value.lower(),
        value.upper(),
        value.capitalize(),
    }:
        return None
    return _FLAGS.get(value.lower())


def as_looks(value: object, *, depth: int = 4) -> Any:  # noqa: ANN401 -- whatever it looks like
    """Return a value in the type that it looks like, for messages.

    Example:
        `5` without quotes is the number 5, `yes` is True, and `keep left` stays text.

    Args:
        value: anything that YAML gives.
        depth: how many levels of lists and mappings are looked into; an anchor may hold itself.
    """
    if depth and isinstance(value, list):
        return [as_looks(item, depth=depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return {key: as_looks(item, depth=depth - 1) for key, item in value.items()}
    if not isinstance(value, Unquoted):
        return value
    if is_nothing(value):
        return None
    found = (read_number(value), read_flag(value))
    return next((item for item in found if item is not None), str(value))
