"""A deadline for a store, however slowly its bytes trickle.

The libraries of the stores only limit a silence: a byte a second may go on for ever. So a thread of
its own reads, and the thread that needs the bytes waits for it until the deadline.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

from policy_server.errors import ModelError
from policy_server.remote_files.stores import RemoteContent, opened
from policy_server.remote_files.uris import RemoteUri

__all__ = ["DeadlineError", "end_with", "opened_until"]

_MOST_CHUNKS = 4
_POLL_S = 0.5
_is_ended: ContextVar[threading.Event | None] = ContextVar("_is_ended", default=None)


class DeadlineError(Exception):
    """The deadline came before the end of the file."""


def end_with(is_ended: threading.Event) -> None:
    """End each download of this thread when an event is set.

    Args:
        is_ended: the event.
    """
    _is_ended.set(is_ended)


@contextlib.contextmanager
def opened_until(
    deadline: float, uri: RemoteUri, *, known_etag: str | None, silence_s: float
) -> Iterator[RemoteContent | None]:
    """Open a file as `opened` does, and end each wait for it at the deadline.

    Args:
        deadline: by the clock of `time.monotonic`.
        uri: the address of the file.
        known_etag: the ETag of the version that is here already, if there is one.
        silence_s: how long the store may be silent, in seconds.

    Yields:
        The file; None if its version is the known one.

    Raises:
        DeadlineError: if the deadline comes first, also while the chunks are read.
        PassingError: if the store fails but may answer later.
        ModelError: if it fails otherwise, or `end_with` ends it.
    """
    pump = _Pump(deadline)
    # A store that never ends its answer must not keep the process.
    threading.Thread(
        target=pump.run, args=(uri, known_etag, silence_s), name="fetch", daemon=True
    ).start()
    try:
        content = pump.receive()
        assert content is None or isinstance(content, RemoteContent), "the first is the file"
        yield content and RemoteContent(content.size, content.etag, pump.chunks())
    finally:
        pump.is_wanted.clear()


_Item = RemoteContent | bytes | BaseException | None


class _Pump:
    """The queue between the thread that reads and the thread that waits."""

    def __init__(self, deadline: float) -> None:
        self.is_wanted = threading.Event()
        self.is_wanted.set()
        self._deadline = deadline
        self._items: queue.Queue[_Item] = queue.Queue(_MOST_CHUNKS)

    def run(self, uri: RemoteUri, known_etag: str | None, silence_s: float) -> None:
        """Read the file, until its end or until the waiting thread has stopped."""
        try:
            with opened(uri, known_etag=known_etag, silence_s=silence_s) as content:
                self._send(content)
                for chunk in () if content is None else content.chunks:
                    self._send(chunk)
                    if not self.is_wanted.is_set():
                        return
            self._send(b"")
        except BaseException as error:
            # For the thread that waits, where it is raised.
            self._send(error)

    def receive(self) -> _Item:
        """Return the next item that was read, or raise the reader's error."""
        is_ended = _is_ended.get()
        while True:
            left_s = max(self._deadline - time.monotonic(), 0)
            if is_ended is not None and is_ended.is_set():
                raise ModelError("the download was ended")
            try:
                item = self._items.get(timeout=min(left_s, _POLL_S))
                break
            except queue.Empty:
                if left_s <= _POLL_S:
                    raise DeadlineError from None
        if isinstance(item, BaseException):
            raise item
        return item

    def chunks(self) -> Iterator[bytes]:
        """Return the file's bytes."""
        while chunk := self.receive():
            assert isinstance(chunk, bytes), "the file came before"
            yield chunk

    def _send(self, item: _Item) -> None:
        while self.is_wanted.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=_POLL_S)
                return
