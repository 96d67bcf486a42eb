"""The extent of data that a pickle made: how far its containers go when they are written out.

A list that holds one list ten times, which holds another ten times, and so on, takes a few bytes
and is endless to whoever prints, compares or stacks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from policy_server.formats.pickles.stubs import PickleFaultError, Stub

__all__ = ["check_extent"]

_SPARE_BYTES = 64 * 1024 * 1024
_MOST_TIMES = 8
_MOST_DEPTH = 100
_ITEM_BYTES = 8


def check_extent(found: object, size: int) -> None:
    """Refuse data that holds itself, or is much larger than the pickle when it is written out.

    A stand-in counts as one item of what holds it, and what it holds is checked by itself.

    Args:
        found: the data.
        size: of the pickle, in bytes.

    Raises:
        PickleFaultError: if it is so.
    """
    _Measuring(_SPARE_BYTES + _MOST_TIMES * size).measure(found)


@dataclass
class _Container:
    """A container under way, with the items that are left, and its size and depth so far."""

    value: object
    items: Iterator[Any]
    size: int = _ITEM_BYTES
    depth: int = 0


class _Measuring:
    """One measurement: each container is measured once, however often it is held."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._extents: dict[int, tuple[int, int]] = {}
        self._stubs: set[int] = set()
        self._unmeasured: list[Stub] = []
        self._under_way: set[int] = set()
        self._path: list[_Container] = []

    def measure(self, found: object) -> None:
        roots = [found]
        while roots:
            self._measure(roots.pop())
            while self._unmeasured:
                stub = self._unmeasured.pop()
                roots.extend((stub.arguments, stub.named, stub.state, stub.items, stub.entries))

    def _measure(self, root: object) -> None:
        self._path = [_Container(None, iter((root,)))]
        while self._path:
            container = self._path[-1]
            for item in container.items:
                if self._enter(item):
                    break
            else:
                self._leave(self._path.pop())

    def _enter(self, item: object) -> bool:
        """Count an item; return whether it is a container that comes first."""
        items = _items_of(item)
        if items is None:
            if isinstance(item, Stub) and id(item) not in self._stubs:
                self._stubs.add(id(item))
                self._unmeasured.append(item)
            self._add(_bytes_of(item), 0)
            return False
        if (extent := self._extents.get(id(item))) is not None:
            self._add(*extent)
            return False
        if id(item) in self._under_way:
            raise PickleFaultError("holds a container within itself")
        self._under_way.add(id(item))
        self._path.append(_Container(item, items))
        return True

    def _leave(self, container: _Container) -> None:
        if self._path:
            extent = container.size, container.depth + 1
            self._extents[id(container.value)] = extent
            self._under_way.remove(id(container.value))
            self._add(*extent)

    def _add(self, size: int, depth: int) -> None:
        container = self._path[-1]
        container.size += size
        container.depth = max(container.depth, depth)
        if container.size > self._most_bytes:
            raise PickleFaultError("holds far more than its own size once it is written out")
        if container.depth > _MOST_DEPTH:
            raise PickleFaultError(f"has more than {_MOST_DEPTH} containers within each other")


def _items_of(value: object) -> Iterator[Any] | None:
    """Return the items of a container; None for another value."""
    if isinstance(value, dict):
        return (part for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return iter(value)
    return None


def _bytes_of(value: object) -> int:
    if isinstance(value, str | bytes | bytearray):
        return len(value) + _ITEM_BYTES
    if isinstance(value, np.ndarray):
        return int(value.nbytes) + _ITEM_BYTES
    return _ITEM_BYTES
