"""Whether a replica gets on with the call that it computes, by the processor time that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from policy_server.backends.ray_processes import UseOf

__all__ = ["CallProgress"]

# Long beside the kernel's ticks, in which processor time is counted (most often 10 ms).
_WINDOW_S = 0.1
# A process that shares its processors with twenty others gets as much; one that waits for a lock,
# or is frozen, has its library's other threads alone.
_LEAST_SHARE = 0.05
# A machine that is short of time gives less to one that is ready to compute, but something.
_STARVED_S = 2.0


class CallProgress:
    """Tells a process that computes for long from one that stands still.

    It counts as computing until it was seen to take no processor time for a tenth of a second, or
    for two seconds while it waited for a processor; not where a signal has stopped it.
    """

    def __init__(
        self,
        use_of: UseOf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Own what was seen of one process.

        Args:
            use_of: tells what a process has used so far.
            clock: the time in seconds.
        """
        self._use_of = use_of
        self._clock = clock
        self._call = 0
        self._since = 0.0
        self._had_s = 0.0
        self._is_made = False

    def is_made(self, process: int, call: int) -> bool:
        """Return whether a process gets on with a call.

        Args:
            process: its id.
            call: the number of the call that it has begun.
        """
        use, now = self._use_of(process), self._clock()
        if use is None or use.is_stopped:
            self._call = 0
            return False
        if call != self._call:
            self._call, self._is_made = call, True
        elif now < self._since + (_STARVED_S if use.is_ready else _WINDOW_S):
            return self._is_made
        else:
            taken_s = use.processor_s - self._had_s
            is_enough = taken_s >= _LEAST_SHARE * (now - self._since)
            self._is_made = is_enough or (use.is_ready and taken_s > 0)
        self._since, self._had_s = now, use.processor_s
        return self._is_made
