"""slipcover beside threads that import."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

__all__ = ["steady_coverage"]


def steady_coverage() -> None:
    """Have slipcover look for functions in copies, which no other thread changes meanwhile.

    It gives functions their own code back while the tests run, within whatever covered code
    runs at that moment. Where another thread imported then, that code got slipcover's RuntimeError
    ("dictionary changed size during iteration"): a policy was refused, or a test failed, at random.
    """
    module = sys.modules.get("slipcover.slipcover")
    if module is None:
        return
    slipcover: Any = module.Slipcover
    find = slipcover.find_functions

    def find_in_copy(items: Iterable[object], visited: set[object]) -> list[object]:
        found: list[object] = find(list(items), visited)
        return found

    slipcover.find_functions = staticmethod(find_in_copy)
