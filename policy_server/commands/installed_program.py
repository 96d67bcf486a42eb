"""The entry of `policy-server`, the command of the installed package."""

from __future__ import annotations

import sys

__all__ = ["installed_program"]

# As of each command that Ctrl-C ends; its own module takes the time that is guarded here.
_INTERRUPTED = 130


def installed_program() -> int:
    """Run the command that the arguments of this process name.

    Returns:
        The exit code.
    """
    try:
        # Takes the better part of a second, in which Ctrl-C would show a traceback.
        from policy_server.commands import program

        return program.main(sys.argv[1:], program="policy-server")
    except KeyboardInterrupt:
        return _INTERRUPTED
