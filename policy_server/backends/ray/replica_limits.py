"""The limits of a replica: how long one of its calls may take, and how much memory calls may have.

Nothing outside can end a call that a policy computes. Its process can end, and Ray Serve starts
another one in its place.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
from dataclasses import dataclass

from policy_server.backends.call_limit import SHARE_APART, CallLimit
from policy_server.process_memory import bound_further_memory

__all__ = ["CallWatch", "ReplicaLimits", "bound_memory"]

logger = logging.getLogger(__name__)

# For Ray's own threads, whose stacks count.
_BESIDE_CALLS_BYTES = 256 * 1024 * 1024
_STDERR = 2


@dataclass(frozen=True)
class ReplicaLimits:
    """The limits of a replica.

    Attributes:
        longest_call_s: the longest that a call may take, in seconds; at least five are allowed.
        call_memory_bytes: the most memory that calls may take beyond what the process had before
            the first; 0 for any amount.
    """

    longest_call_s: float
    call_memory_bytes: int = 0


class CallWatch:
    """Ends the process whose event loop is held up for too long by a call (`CallLimit`).

    The process writes to its standard error where each of its threads stood. The watch needs
    neither the event loop nor Python's lock, which a call may hold.
    """

    def __init__(self, limit: CallLimit, *, look_every_s: float = 1.0) -> None:
        """Own the watch; `run` watches.

        Args:
            limit: how long a call may take.
            look_every_s: how much later than that the end comes at most, in seconds. That of a call
                apart comes on time.
        """
        self._limit = limit
        self._look_every_s = look_every_s

    async def run(self) -> None:
        """Watch the event loop until cancelled."""
        try:
            while True:
                self._arm(self._limit.least_s + self._look_every_s)
                await asyncio.sleep(self._look_every_s)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def begin(self, rows: int, *, is_apart: bool = False) -> None:
        """Allow a call the time that it may need.

        Args:
            rows: how many observations it has.
            is_apart: whether it is asked again, since a replica has ended that had it.
        """
        allowed_s = self._limit.allowed_s(rows)
        if is_apart:
            self._arm(SHARE_APART * allowed_s)
        elif allowed_s > self._limit.least_s:
            self._arm(allowed_s + self._look_every_s)

    def end_apart(self) -> None:
        """Allow the next call as much time as ever: it may come before the event loop looks."""
        self._arm(self._limit.least_s + self._look_every_s)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a call that was answered; see `CallLimit.observe`."""
        self._limit.observe(rows, seconds)

    def _arm(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, file=_STDERR, exit=True)


def bound_memory(call_memory_bytes: int) -> None:
    """Let what comes from here on take a bounded amount of memory; more is a MemoryError.

    Linux counts what a process has mapped for itself (`RLIMIT_DATA`), the stacks of its threads
    too; elsewhere nothing is bounded, and a warning says so.

    Args:
        call_memory_bytes: see `ReplicaLimits`.
    """
    if not call_memory_bytes:
        return
    try:
        bound_further_memory(_BESIDE_CALLS_BYTES + call_memory_bytes)
    except (OSError, ValueError) as error:
        logger.warning("memory_not_bounded", extra={"reason": repr(error)[:300]})
