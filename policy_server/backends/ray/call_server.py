"""A replica's side of the calls: it computes them one after another, as they come."""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from policy_server.backends.ray.call_connection import PROOF_TIMEOUT_S, CallConnection
from policy_server.backends.ray.call_frames import (
    Body,
    Frame,
    FrameError,
    FrameKind,
    answer_frame,
    bare_frame,
    error_frame,
    inputs_of,
)
from policy_server.backends.ray.call_notes import CallNote
from policy_server.backends.ray.call_proofs import KEY_BYTES, server_handshake
from policy_server.backends.ray.replica_list import ReplicaAddress, new_socket_path
from policy_server.errors import PolicyFailedError, PolicyServerError
from policy_server.policy import PolicyInputs, PolicyOutputs

__all__ = ["CallServer", "failure_of"]

# So many calls of one connection may wait before nothing more of it is read.
_MOST_WAITING = 256
# So many connections may be about to prove the key.
_MOST_STRANGERS = 64

_Infer = Callable[[PolicyInputs], PolicyOutputs]


class CallServer:
    """The address of a replica, the connections to it, and the calls that wait."""

    def __init__(
        self,
        infer: _Infer,
        *,
        infer_apart: _Infer | None = None,
        application: str,
        replica: str,
        actor: str = "",
        key: bytes | None = None,
        proof_timeout_s: float = PROOF_TIMEOUT_S,
    ) -> None:
        """Own a key for the replica's life; a port or socket from `listen` to `aclose`.

        Args:
            infer: answers observations at once, as `Policy.infer`.
            infer_apart: answers those of calls that are watched; None for `infer`.
            application: the name of the application that the replica belongs to.
            replica: Ray's name of the replica.
            actor: the name of its actor.
            key: the key that both sides of a connection prove; None for a random one.
            proof_timeout_s: how long a connection may take to prove the key, in seconds.
        """
        self.application = application
        self.replica = replica
        self.key = key or secrets.token_bytes(KEY_BYTES)
        self.proof_timeout_s = proof_timeout_s
        self._actor = actor
        self._infer = infer
        self._infer_apart = infer_apart or infer
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._note = CallNote()
        self._callers: set[_Caller] = set()
        self._strangers: set[_Caller] = set()
        self._waiting: deque[tuple[_Caller, int]] = deque()
        self._is_scheduled = False

    async def listen(self, host: str = "", *, folder: Path | None = None) -> ReplicaAddress:
        """Take connections from now on, and return the address for them.

        Args:
            host: the address to listen on, at a port that the system chooses.
            folder: the folder for a UNIX socket, which takes the place of a port.

        Raises:
            OSError: if that is not possible.
        """
        loop, port = asyncio.get_running_loop(), 0
        if folder is not None:
            self._path = new_socket_path(folder)
            self._note.publish(self._path)
            self._server = await loop.create_unix_server(self._connected, str(self._path))
        else:
            self._server = await loop.create_server(self._connected, host, 0)
            port = self._server.sockets[0].getsockname()[1]
        path = "" if self._path is None else str(self._path)
        return ReplicaAddress(
            self.application, self.replica, host, port, path, self.key, self._actor
        )

    async def aclose(self) -> None:
        """Take no more calls, end the connections, and wait until the port is free."""
        self.close()
        if self._server is not None:
            await self._server.wait_closed()

    def close(self) -> None:
        """Take no more calls, and end the connections; those in flight are lost."""
        if self._server is not None:
            self._server.close()
        for caller in [*self._callers, *self._strangers]:
            caller.connection.close("the replica ends")
        self._note.close()
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _connected(self) -> CallConnection:
        caller = _Caller(self)
        self._strangers.add(caller)
        if len(self._strangers) > _MOST_STRANGERS:
            caller.connection.refuse("too many connections without a proof")
        return caller.connection

    def admit(self, caller: _Caller) -> None:
        """Count a caller that has proved the key."""
        self._strangers.discard(caller)
        self._callers.add(caller)

    def forget(self, caller: _Caller) -> None:
        """Count a caller no more that has gone; its calls are not computed."""
        self._strangers.discard(caller)
        self._callers.discard(caller)

    def enqueue(self, caller: _Caller, number: int) -> None:
        """Have a call wait for its turn.

        Args:
            caller: gets the answer.
            number: the number of the call.
        """
        self._waiting.append((caller, number))

    def compute(self) -> None:
        """Compute the calls that wait: the first one now, unless their turns have begun."""
        if not self._is_scheduled:
            self._compute_next()

    def _compute_next(self) -> None:
        """Compute the first call that is still wanted; the others in later turns of the loop."""
        self._is_scheduled = False
        while self._waiting:
            caller, number = self._waiting[0]
            if caller.tell_begun(number):
                # In the next turn of the loop, which begins once the telling has been sent.
                break
            self._waiting.popleft()
            if (inputs := caller.take(number)) is not None:
                infer = self._infer_apart if caller.was_told(number) else self._infer
                caller.answer(self._outcome(number, inputs, infer))
                break
        if self._waiting:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._compute_next)

    def _outcome(self, number: int, inputs: PolicyInputs, infer: _Infer) -> Frame:
        self._note.begin(number)
        try:
            return answer_frame(number, infer(inputs))
        except Exception as error:
            return error_frame(number, failure_of(error))
        finally:
            self._note.end()


class _Caller:
    """A connection of a web process, and its calls that wait; see `FrameReceiver`."""

    def __init__(self, server: CallServer) -> None:
        self._server = server
        handshake = server_handshake(server.key, server.application, server.replica)
        self.connection = CallConnection(handshake, self, proof_timeout_s=server.proof_timeout_s)
        self._waiting: dict[int, PolicyInputs] = {}
        # The calls of which it is to be told when they begin, and those of which it was.
        self._watched: set[int] = set()
        self._told: set[int] = set()
        self._is_choked = False

    def proved(self) -> None:
        self._server.admit(self)

    def received(self, kind: int, number: int, body: Body) -> None:
        if kind == FrameKind.CALL:
            if number in self._waiting:
                raise FrameError("a number twice")
            self._waiting[number] = inputs_of(body)
            self._server.enqueue(self, number)
        elif body:
            raise FrameError("a body in a frame that has none")
        elif kind == FrameKind.CANCEL:
            self._waiting.pop(number, None)
            self._watched.discard(number)
            self._told.discard(number)
        elif kind == FrameKind.WATCH:
            if len(self._watched) >= _MOST_WAITING:
                raise FrameError("too many calls to be watched")
            self._watched.add(number)
        elif kind == FrameKind.PING:
            self.connection.send(bare_frame(FrameKind.PONG, number))
        else:
            raise FrameError(f"a frame of kind {kind}")

    def read(self) -> None:
        self._server.compute()
        if self._waiting:
            self._read_or_wait()

    def choked(self, *, is_choked: bool) -> None:
        self._is_choked = is_choked
        self._read_or_wait()
        if not is_choked:
            for number in self._waiting:
                self._server.enqueue(self, number)
            self._server.compute()

    def ended(self) -> None:
        self._waiting.clear()
        self._watched.clear()
        self._told.clear()
        self._server.forget(self)

    def tell_begun(self, number: int) -> bool:
        """Tell that a call begins, if it is watched and nothing was told yet; return whether."""
        if self._is_choked or number not in self._watched or number not in self._waiting:
            return False
        self._watched.discard(number)
        self._told.add(number)
        self.connection.send(bare_frame(FrameKind.BEGUN, number))
        return True

    def was_told(self, number: int) -> bool:
        """Return whether it was told that a call begins; asked once, as the call does."""
        is_told = number in self._told
        self._told.discard(number)
        return is_told

    def take(self, number: int) -> PolicyInputs | None:
        """Return the inputs of a call that is computed now.

        None if it is no longer wanted, or if the web process does not read its answers: it has its
        turn when they have been read.
        """
        return None if self._is_choked else self._waiting.pop(number, None)

    def answer(self, outcome: Frame) -> None:
        """Send the answer to a call, or its error."""
        self.connection.send(outcome)
        if self.connection.is_paused:
            self._read_or_wait()

    def _read_or_wait(self) -> None:
        """Read no more calls of a web process that does not read its answers, or asks too many."""
        self.connection.pause(is_paused=self._is_choked or len(self._waiting) >= _MOST_WAITING)


def failure_of(error: Exception) -> PolicyServerError:
    """Return the error to raise in the process that asked, for one that a call has raised.

    Its cause does not cross to another process, so that the traceback goes along as a note: the web
    process logs it, once for each observation to blame and not for each call that was made to find
    that.

    Args:
        error: what the call raised.
    """
    failed = PolicyFailedError.of(error)
    # A replica that could not load its policy raises the same error for every call.
    if failed.__cause__ is not None and not hasattr(failed, "__notes__"):
        reason = "".join(traceback.format_exception(failed.__cause__))
        failed.add_note(f"In the replica:\n{reason}")
    return failed
