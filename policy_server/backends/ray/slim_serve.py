"""Ray Serve without pandas, which it imports wherever that is installed.

It could answer data frames then, which no policy does. pandas takes some 30 MB of each process of
Ray Serve's: the web process, the controller and every replica.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

__all__ = ["import_serve"]


class _WithoutPandas(MetaPathFinder):
    """Tells one thread that pandas is not installed; others may be importing it."""

    def __init__(self) -> None:
        """Own nothing but the thread's name."""
        self._thread = threading.get_ident()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 -- Python's own
        target: ModuleType | None = None,  # noqa: ARG002 -- Python's own
    ) -> None:
        """Find nothing, and refuse pandas."""
        if fullname == "pandas" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("pandas is kept out of Ray Serve", name=fullname)


def import_serve() -> None:
    """Import Ray Serve, without pandas unless that is there already."""
    finder = _WithoutPandas()
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("ray.serve")
    finally:
        sys.meta_path.remove(finder)
