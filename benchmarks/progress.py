"""What a benchmark says while it runs."""

from __future__ import annotations

import sys

__all__ = ["say"]


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, file=sys.stdout, flush=True)
