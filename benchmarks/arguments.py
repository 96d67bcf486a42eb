"""The command lines of the small benchmarks: what each measures, told by `--help`."""

from __future__ import annotations

import argparse

__all__ = ["parser_of"]


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a benchmark's arguments, which has none yet.

    Args:
        name: the module's, as `benchmarks.steps`.
        description: its docstring.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
