"""The command line of a clone: python generate.py COMMAND, with --help for each."""

from __future__ import annotations

import sys

# Before the imports, which an older Python can't read. ruff takes the oldest one for given.
if sys.version_info < (3, 11):  # noqa: UP036 -- a clone may be started with any Python
    sys.exit(
        f"generate.py: needs Python 3.11 or newer, not {sys.version.split()[0]}; use "
        ".venv/bin/python after `make venv`"
    )

try:
    from policy_server.commands import program
except ModuleNotFoundError as error:
    sys.exit(
        f"generate.py: needs the package {error.name}; install what requirements.txt lists, or use "
        ".venv/bin/python after `make venv`"
    )
except KeyboardInterrupt:
    # As of each command that Ctrl-C ends; imports take the first second.
    sys.exit(130)

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run the command that the arguments name.

    Args:
        arguments: the arguments behind the program's name.

    Returns:
        The exit code.
    """
    try:
        return program.main(arguments, program="python generate.py")
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
