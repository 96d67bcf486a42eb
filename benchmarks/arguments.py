"""The command lines of the small benchmarks: what each measures, told by `--help`."""

from __future__ import annotations

import argparse

__all__ = ["parser_of", "port_number"]

_LAST_PORT = 65_535


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


def port_number(text: str) -> int:
    """Return the port that an argument names.

    Args:
        text: the argument.

    Raises:
        argparse.ArgumentTypeError: if it names none.
    """
    if not text.isdecimal() or not 0 < int(text) <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text}: expected a port, from 1 to {_LAST_PORT}")
    return int(text)
