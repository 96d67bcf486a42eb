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
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn

from policy_server.http_server.socket_file import SocketFile
from policy_server.http_server.start_signals import end_if_noted
from policy_server.http_server.workers import Worker

__all__ = ["accept_clients", "end_listening_first"]

logger = logging.getLogger(__name__)

# linux/filter.h and asm-generic/socket.h: a program of one instruction, which keeps 0 bytes of each
# packet. A connection that is made already has packets of its own.
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
# An event loop takes one or several of those that lie in a queue in each turn (`many_accepts`).
_QUEUE_S = 0.03
# A process that got no processor time has taken none by then. Where clients can't be refused, the
# queue is never empty for sure.
_LONGEST_QUEUE_S = 5.0


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
    worker: Worker | None = None,
    *,
    is_given: bool = False,
    on_ending: Callable[[], None] = lambda: None,
    drain_s: float = 0.0,
) -> Callable[[], None]:
    """Take what lies in the queues before uvicorn hears of SIGINT, SIGTERM or SIGHUP.

    SIGHUP, which uvicorn would end by without answering, is to it a SIGTERM.

    Called from the lifespan. Outside of the main thread, which alone has handlers of signals,
    uvicorn is stopped by other means, and nothing is changed.

    Args:
        running: the uvicorn of this process.
        worker: this process among several, of which the last one has clients refused; None where
            it is alone. One that is started later calls `accept_clients`.
        is_given: whether another program has opened the sockets, such as systemd: clients may wait
            there for the next server, and are not refused.
        on_ending: is called at the first signal, before anything ends.
        drain_s: for how long clients are still taken after a SIGTERM, in seconds.

    Returns:
        A function to call when uvicorn has stopped listening, and all requests are answered.

    Raises:
        NotReadyError: if uvicorn has heard of a signal already.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    # Once it has, it takes no clients: it would listen for a moment, and reset their connections.
    end_if_noted()
    ending = _EndOfListening(running, worker, on_ending, drain_s, is_given=is_given)
    ending.hear()
    return ending.put_back


class _EndOfListening:
    """The steps between a signal and uvicorn's hearing of it."""

    def __init__(
        self,
        running: uvicorn.Server,
        worker: Worker | None,
        on_ending: Callable[[], None],
        drain_s: float,
        *,
        is_given: bool,
    ) -> None:
        self._running = running
        self._worker = worker
        self._on_ending = on_ending
        self._drain_s = drain_s
        self._loop = asyncio.get_running_loop()
        self._noting: dict[int, Any] = {}
        self._has_come = self._is_noted = self._is_over = False
        self._is_given = is_given
        self._file: SocketFile | None = None
        self._listener: socket.socket | None = None

    def hear(self) -> None:
        """Hear of signals in place of uvicorn."""
        self._find_file()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._noting[number] = signal.signal(number, self._hear)
        # By a terminal that closes; where it is ignored (`nohup`), it stays so.
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        # Nobody waits for a terminal that closes.
        drain_s = self._drain_s if number == signal.SIGTERM else 0.0
        if number == signal.SIGHUP:
            if self._loop.is_closed() or (self._is_over and not self._has_come):
                # A program goes on behind its server. Unlike uvicorn's two, nobody puts it back.
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
                return
            number = signal.SIGTERM
        if not self._has_come:
            self._has_come = True
            self._loop.call_soon_threadsafe(self._begin, number, drain_s)
        elif self._running.started and not self._is_told_again(number):
            # The second one ends uvicorn at once.
            self._note(number, frame)

    def _is_told_again(self, number: int) -> bool:
        """Return whether the supervisor tells of a SIGTERM, which all of them may have had."""
        is_supervised = self._worker is not None and self._worker.has_supervisor()
        return is_supervised and number == signal.SIGTERM

    def _begin(self, number: int, drain_s: float) -> None:
        self._on_ending()
        if drain_s:
            logger.info("draining", extra={"seconds": drain_s})
        self._loop.call_later(drain_s, self._refuse, number)

    def _find_file(self) -> None:
        """Find the file of a UNIX socket: that of the supervisor, or uvicorn's once it listens."""
        config = self._running.config
        path, notify = config.uds, config.callback_notify
        if path is None or self._is_given:
            return
        if self._worker is not None:
            self._file = SocketFile(path, supervisor=self._worker.supervisor)
            return

        async def find() -> None:
            self._file = SocketFile(path)
            config.callback_notify = notify
            if notify is not None:
                await notify()

        # uvicorn calls it first when it listens.
        config.callback_notify = find

    def _refuse(self, number: int) -> None:
        if not self._running.started:
            # uvicorn listens in a moment. It hears of the signal as soon as that can be ended.
            self._loop.call_later(_QUEUE_S, self._refuse, number)
            return
        is_last = self._worker is None or self._worker.stop_serving()
        listening: list[int] = []
        if is_last and not self._is_given:
            listening = [
                known.fileno() for server in self._running.servers for known in server.sockets
            ]
            for descriptor in listening:
                _refuse_clients(descriptor)
            self._leave_file()
        latest = self._loop.time() + _LONGEST_QUEUE_S
        self._loop.call_later(_QUEUE_S, self._end, number, listening, latest)

    def _leave_file(self) -> None:
        if self._file is None:
            return
        if self._worker is not None and self._worker.has_supervisor():
            [known, *_] = self._running.servers[0].sockets
            self._listener = socket.socket(fileno=os.dup(known.fileno()))
            self._file.put_aside()
        else:
            self._file.remove()
            # uvicorn would remove the file of the next server there.
            self._running.config.uds = None

    def put_back(self) -> None:
        """Leave the file of a UNIX socket to the supervisor, for its end or its next workers.

        And SIGHUP to the program, if it has one of its own to do behind the server.
        """
        self._is_over = True
        if self._file is not None and self._listener is not None:
            with self._listener:
                self._file.put_back(self._listener)

    def _end(self, number: int, listening: Sequence[int], latest: float) -> None:
        # A second signal may have come first: uvicorn takes SIGINT behind another one for haste.
        if self._is_noted:
            return
        if self._loop.time() < latest and _has_client(listening):
            self._loop.call_later(_QUEUE_S, self._end, number, listening, latest)
        else:
            self._note(number, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_noted = True
        if self._worker is None:
            # A second signal comes before its time.
            self._leave_file()
        noted = self._noting[number]
        if callable(noted):
            noted(number, frame)


def _refuse_clients(descriptor: int) -> None:
    """Let no other connection be made by a socket; those that are made can still be accepted.

    Clients try again after a second, and hear then that nobody listens, or that somebody does.
    """
    code = ctypes.create_string_buffer(_DROP_ALL)
    program = struct.pack("HL", 1, ctypes.addressof(code))
    # A UNIX socket has no packets (see `socket_file`), and other systems no such filter.
    with socket.socket(fileno=os.dup(descriptor)) as listener, suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _has_client(listening: Iterable[int]) -> bool:
    """Return whether a connection lies in the queue of a socket."""
    queues = select.poll()
    for descriptor in listening:
        queues.register(descriptor, select.POLLIN)
    return any(events & select.POLLIN for _, events in queues.poll(0))
