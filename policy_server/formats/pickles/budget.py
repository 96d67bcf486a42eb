"""The bounds of what a pickle may cost: what its calls make, its keys and its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from policy_server.formats.pickles.stubs import PickleFaultError, Stub

__all__ = ["Budget", "Maker", "checked_key", "checked_literal"]

_MOST_KEY_PARTS = 16
_LARGEST_KEY = 2**63
# Keys that are equal are compared to their ends.
_LONGEST_KEY = 1024
# The hashes of numbers, and of tuples of them, are no secret: so many may all be made to meet, and
# each is then compared with all. Real policies have some dozens; text is hashed with a secret.
_MOST_NUMBER_KEYS = 10_000
_MOST_TUPLE_KEYS = 1_000
# The state of a generator of random numbers has 128; all of these convert to a float.
_MOST_BITS = 512


class Budget:
    """The bytes that the calls of one pickle may make, and its keys; owned by its reading."""

    def __init__(self, most_bytes: int) -> None:
        """Begin with all of it.

        Args:
            most_bytes: the sum of all results.
        """
        self._left = most_bytes
        self._number_keys, self._tuple_keys = _MOST_NUMBER_KEYS, _MOST_TUPLE_KEYS

    def spend(self, count: int, *, item_bytes: int = 1) -> None:
        """Take some away.

        Args:
            count: the number of items.
            item_bytes: the size of each.

        Raises:
            PickleFaultError: if there is not that much left.
        """
        self._left -= count * item_bytes
        if self._left < 0:
            raise PickleFaultError("makes more than its own size accounts for")

    def spend_key(self, key: object) -> None:
        """Count a key of a dictionary, or an item of a set, whose hash a pickle can choose.

        Args:
            key: of any type.

        Raises:
            PickleFaultError: if there are too many.
        """
        if isinstance(key, tuple):
            self._tuple_keys -= 1
        elif isinstance(key, int | float):
            self._number_keys -= 1
        if self._tuple_keys < 0 or self._number_keys < 0:
            raise PickleFaultError(f"has too many keys of the type {type(key).__name__}")


@dataclass(frozen=True)
class Maker:
    """A class or function that a pickle names; as a value of its own it is nothing but a name.

    Attributes:
        path: the name, with its module.
        make: is called with the arguments; None for a class that is only named.
    """

    path: str
    make: Callable[[Budget, tuple[Any, ...]], Any] | None = None


def checked_key(value: object, budget: Budget) -> Any:  # noqa: ANN401 -- the value itself
    """Return a key of a dictionary or an item of a set, if it takes little time to compare.

    A nested tuple is hashed anew at each place that it stands at, and whole numbers of a thousand
    digits may all have one hash.

    Args:
        value: as the pickle has it.
        budget: gets the key taken away.

    Raises:
        PickleFaultError: if it is none.
    """
    parts = value if isinstance(value, tuple) else (value,)
    if len(parts) > _MOST_KEY_PARTS or not all(map(_is_plain_key, parts)):
        raise PickleFaultError(f"has a key of the type {type(value).__name__}")
    if any(isinstance(part, str | bytes) and len(part) > _LONGEST_KEY for part in parts):
        raise PickleFaultError(f"has a key of more than {_LONGEST_KEY} characters")
    budget.spend_key(value)
    return value


def checked_literal(value: Any) -> Any:  # noqa: ANN401 -- the value itself
    """Return a number or a text, unless it is a whole number that takes its time to reckon with.

    Args:
        value: as the pickle has it.

    Raises:
        PickleFaultError: if it has too many digits.
    """
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise PickleFaultError(f"has a whole number of more than {_MOST_BITS} bits")
    return value


def _is_plain_key(value: object) -> bool:
    if isinstance(value, int):
        return abs(value) < _LARGEST_KEY
    is_class = isinstance(value, type) and issubclass(value, Stub)
    return value is None or is_class or isinstance(value, str | bytes | float | Stub | Maker)
