"""Imports of libraries without what a server does not need of them."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType

from pydantic import BaseModel, ConfigDict

__all__ = ["built_when_used", "without_collections", "without_packages"]


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


@contextmanager
def built_when_used() -> Iterator[None]:
    """Have pydantic build the models that the block defines when each is first used.

    FastAPI's import alone defines the 35 models of an OpenAPI document, which most servers are
    never asked for, and Ray Serve's comes with as many.
    """
    known = BaseModel.model_config
    BaseModel.model_config = ConfigDict(**{**known, "defer_build": True})
    try:
        yield
    finally:
        BaseModel.model_config = known


@contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage while the block runs, unless that is off already."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
