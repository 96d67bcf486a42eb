"""The command line of a clone: python generate.py COMMAND, with --help for each."""

from __future__ import annotations

import sys

try:
    from policy_server.commands import program
except ModuleNotFoundError as error:
    sys.exit(
        f"generate.py: needs the package {error.name}; install what requirements.txt lists, or use "
        ".venv/bin/python after `make venv`"
    )

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run the command that the arguments name.

    Args:
        arguments: the arguments behind the program's name.

    Returns:
        The exit code.
    """
    return program.main(arguments, program="python generate.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
