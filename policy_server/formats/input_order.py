"""The order in which the inputs of a network make up one observation."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["in_stated_order"]


def in_stated_order(names: Sequence[str], stated: Sequence[str]) -> list[str]:
    """Return inputs in the order in which an observation's numbers come.

    Args:
        names: the inputs', in the file's own order.
        stated: the observations of schema.yaml, whose order counts where they are named as the
            inputs are.
    """
    return list(stated if sorted(names) == sorted(stated) else names)
