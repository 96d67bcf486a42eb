"""What a benchmark says while it runs, and how it writes figures."""

from __future__ import annotations

import sys

__all__ = ["ABSENT", "number", "say"]

# What stands for a figure that was not measured.
ABSENT = "-"
_FEWEST_DIGITS_BELOW = 100


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, file=sys.stdout, flush=True)


def number(value: float | None, *, digits: int = 3) -> str:
    """Return a figure as tables show it: so many significant digits, thousands apart.

    Args:
        value: the figure; None shows a dash.
        digits: how many are significant below 100.
    """
    if value is None:
        return ABSENT
    if abs(value) >= _FEWEST_DIGITS_BELOW:
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{float(text):g}"
