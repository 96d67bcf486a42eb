"""Packages that a library imports wherever they are installed, kept out of it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType

__all__ = ["without_packages"]


class _Without(MetaPathFinder):
    """Tells one thread that packages are not installed; others may be importing them."""

    def __init__(self, names: Sequence[str]) -> None:
        """Own nothing but the thread's name.

        Args:
            names: the packages' names.
        """
        self._names = names
        self._thread = threading.get_ident()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 -- Python's own
        target: ModuleType | None = None,  # noqa: ARG002 -- Python's own
    ) -> None:
        """Find nothing, and refuse the packages."""
        if fullname in self._names and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{fullname} is kept out", name=fullname)


@contextmanager
def without_packages(*names: str) -> Iterator[None]:
    """Hide packages from this thread while the block runs, unless they are there already.

    The process may be another program's, which gets all packages as they are.

    Args:
        names: the packages' names, such as `pandas`.
    """
    finder = _Without(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
