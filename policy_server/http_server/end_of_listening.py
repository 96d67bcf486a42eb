"""The end of listening: connections that were made are taken before a signal stops uvicorn.

Load balancers hear first that the server is not ready, and may be given time for it.

uvicorn closes its listening sockets, and the kernel resets the connections that lie in their queues
with the requests in them. And the supervisor of several workers holds the sockets until all have
ended, so that others are made meanwhile which nobody takes.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn

__all__ = ["accept_clients", "end_listening_first"]

logger = logging.getLogger(__name__)

# linux/filter.h and asm-generic/socket.h: a program of one instruction, which keeps 0 bytes of each
# packet. A connection that is made already has packets of its own.
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
# An event loop takes one or several of those that lie in a queue in each turn (`many_accepts`).
_QUEUE_S = 0.03


def accept_clients(listeners: Iterable[socket.socket]) -> None:
    """Let clients connect again, where a worker before this one has kept them from it.

    Args:
        listeners: the sockets that the workers share.
    """
    for listener in listeners:
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def end_listening_first(
    running: uvicorn.Server,
    is_last: Callable[[], bool] = lambda: True,
    *,
    on_ending: Callable[[], None] = lambda: None,
    drain_s: float = 0.0,
) -> None:
    """Take what lies in the queues before uvicorn hears of SIGINT, SIGTERM or SIGHUP.

    SIGHUP, which uvicorn would end by without answering, is to it a SIGTERM.

    Called from the lifespan. Outside of the main thread, which alone has handlers of signals,
    uvicorn is stopped by other means, and nothing is changed.

    Args:
        running: the uvicorn of this process; no other program takes clients from its sockets.
        is_last: returns whether no other worker takes clients from them any more. One that is
            started later calls `accept_clients`.
        on_ending: is called at the first signal, before anything ends.
        drain_s: for how long clients are still taken after a SIGTERM, in seconds.
    """
    if threading.current_thread() is threading.main_thread():
        _EndOfListening(running, is_last, on_ending, drain_s).hear()


class _EndOfListening:
    """The steps between a signal and uvicorn's hearing of it."""

    def __init__(
        self,
        running: uvicorn.Server,
        is_last: Callable[[], bool],
        on_ending: Callable[[], None],
        drain_s: float,
    ) -> None:
        self._running = running
        self._is_last = is_last
        self._on_ending = on_ending
        self._drain_s = drain_s
        self._loop = asyncio.get_running_loop()
        self._noting: dict[int, Any] = {}
        self._has_come = self._is_noted = False

    def hear(self) -> None:
        """Hear of signals in place of uvicorn."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._noting[number] = signal.signal(number, self._hear)
        # By a terminal that closes; where it is ignored (`nohup`), it stays so.
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        # Nobody waits for a terminal that closes.
        drain_s = self._drain_s if number == signal.SIGTERM else 0.0
        if number == signal.SIGHUP:
            number = signal.SIGTERM
        if self._has_come or self._loop.is_closed():
            # The second one ends uvicorn at once.
            self._note(number, frame)
        else:
            self._has_come = True
            self._loop.call_soon_threadsafe(self._begin, number, drain_s)

    def _begin(self, number: int, drain_s: float) -> None:
        self._on_ending()
        if drain_s:
            logger.info("draining", extra={"seconds": drain_s})
        self._loop.call_later(drain_s, self._refuse, number)

    def _refuse(self, number: int) -> None:
        for server in self._running.servers if self._is_last() else ():
            for known in server.sockets:
                _refuse_clients(known.fileno())
        self._loop.call_later(_QUEUE_S, self._end, number)

    def _end(self, number: int) -> None:
        # A second signal may have come first: uvicorn takes SIGINT behind another one for haste.
        if not self._is_noted:
            self._note(number, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_noted = True
        noted = self._noting[number]
        if callable(noted):
            noted(number, frame)


def _refuse_clients(descriptor: int) -> None:
    """Let no other connection be made by a socket; those that are made can still be accepted.

    Clients try again after a second, and hear then that nobody listens, or that somebody does.
    """
    code = ctypes.create_string_buffer(_DROP_ALL)
    program = struct.pack("HL", 1, ctypes.addressof(code))
    # A UNIX socket has no packets, and other systems no such filter.
    with socket.socket(fileno=os.dup(descriptor)) as listener, suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
