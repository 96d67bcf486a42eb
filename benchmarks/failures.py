"""What ends a benchmark, or one subject of it, in one line."""

from __future__ import annotations

__all__ = ["BenchmarkError"]


class BenchmarkError(Exception):
    """Says what is missing or went wrong, and what helps."""
