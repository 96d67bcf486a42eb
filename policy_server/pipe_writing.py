"""Texts to a pipe whose reader may be slow, without a wait for it.

What the pipe takes is written at once, which costs no change of thread. A thread writes the rest,
and whatever comes behind it, until the reader has caught up.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque

__all__ = ["PipeWriter"]

# A pipe that can be written to takes so many bytes without waiting (pipe(7)).
_PIECE_BYTES = select.PIPE_BUF
# So much waits for a slow reader: some thousand lines of a log.
_MOST_WAITING_BYTES = 1024 * 1024
# At the end a reader that stands still is waited for so long, and any other one longer.
_LONGEST_STILL_S = 0.5
_LONGEST_END_S = 5.0
# Of poll(2).
_FOR_EVER = -1


class PipeWriter:
    """Writes to one pipe in the order of the calls; used from any thread."""

    def __init__(self, descriptor: int, lock: threading.RLock) -> None:
        """Own what waits to be written; the pipe outlives it.

        Args:
            descriptor: the pipe's end to write to.
            lock: that of the log's handler. A second one could be held by this writer's thread, in
                which a destructor logs, while whoever has the handler's waits for it.
        """
        self.descriptor = descriptor
        self._changed = threading.Condition(lock)
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._is_writing = False

    def write(self, content: bytes, *, lines: int) -> None:
        """Write lines, now or once the reader has read those before.

        Args:
            content: the lines.
            lines: their number.

        Raises:
            OSError: if too much waits already, or nobody will ever read. The lines are lost then.
        """
        with self._changed:
            if self._waiting:
                if self._waiting_bytes + len(content) > _MOST_WAITING_BYTES:
                    raise BlockingIOError(errno.EAGAIN, "nobody reads the log")
            else:
                content = _put(self.descriptor, content)
            if content:
                self._waiting.append((content, lines))
                self._waiting_bytes += len(content)
                self._start()

    def take_lost(self) -> int:
        """Return how many lines the thread could not write since the last call."""
        with self._changed:
            lost, self._lost = self._lost, 0
        return lost

    def drain(self) -> None:
        """Wait until all is written, if somebody reads."""
        until = time.monotonic() + _LONGEST_END_S
        with self._changed:
            while self._waiting and time.monotonic() < until:
                self._start()
                if not self._changed.wait(_LONGEST_STILL_S):
                    return

    def _start(self) -> None:
        if self._is_writing:
            return
        own = -1
        try:
            # The pipe may be closed meanwhile, and another file get the number.
            own = os.dup(self.descriptor)
            threading.Thread(target=self._run, args=(own,), name="log", daemon=True).start()
        except (OSError, RuntimeError):
            # Too many threads or files: the next line tries again.
            if own >= 0:
                os.close(own)
            return
        self._is_writing = True

    def _run(self, descriptor: int) -> None:
        try:
            while (content := self._next()) is not None:
                try:
                    rest = _put(descriptor, content, wait_ms=_FOR_EVER, most=1)
                except OSError:
                    # Nobody reads any more.
                    rest = None
                self._settle(content, rest)
        finally:
            os.close(descriptor)

    def _next(self) -> bytes | None:
        """Return the first that waits; None at the end of the thread."""
        with self._changed:
            if self._waiting:
                return self._waiting[0][0]
            self._is_writing = False
            return None

    def _settle(self, content: bytes, rest: bytes | None) -> None:
        """Note that the first that waits was written up to a rest; None where it can't be."""
        with self._changed:
            _, lines = self._waiting.popleft()
            self._waiting_bytes -= len(content)
            if rest is None:
                self._lost += lines
            elif rest:
                self._waiting.appendleft((rest, lines))
                self._waiting_bytes += len(rest)
            self._changed.notify_all()


def _put(descriptor: int, content: bytes, *, wait_ms: int = 0, most: int | None = None) -> bytes:
    """Write pieces, at most so many, while the pipe takes them; return the rest."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    end = len(content) if most is None else most * _PIECE_BYTES
    start = 0
    while start < min(end, len(content)) and poll.poll(wait_ms):
        start += os.write(descriptor, content[start : start + _PIECE_BYTES])
    return content[start:]
