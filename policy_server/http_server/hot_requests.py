"""Hot requests: one observation, one answer, without ASGI between the connection and the policy.

The application says which requests are hot (`HotRoutes`), validates their bodies and renders their
answers; the protocol of a connection reads requests and writes answers in order. What the two hand
to each other is defined here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from policy_server.serving import Waiting

__all__ = ["Connection", "HotRequest", "HotRoute", "HotRoutes", "OwnParts", "RequestHead"]


class OwnParts(NamedTuple):
    """The parts of a head that differ from request to request, and are no part of the decision.

    Attributes:
        request_id: the id that the client gave; empty where it gave none.
        stamp: of the client's observation, which the answer repeats; empty for none.
        session_id: the session's name in the address: 32 hexadecimal digits; empty for none.
        timeout_ms: how many milliseconds the answer is of use; None where the client doesn't say.
        step: the header `x-step`; None for none.
        previous_reward: the header `x-previous-reward` as it was sent; None for none.
        previous_action: the header `x-previous-action` as it was sent; None for none.
        head_came: when the head had come, by `time.perf_counter`, where its body came later; None
            where the request came whole.
    """

    request_id: str = ""
    stamp: str = ""
    session_id: str = ""
    timeout_ms: int | None = None
    step: int | None = None
    previous_reward: str | None = None
    previous_action: str | None = None
    head_came: float | None = None

    def with_head_at(self, moment: float) -> OwnParts:
        """Return the parts of a request whose body is still to come.

        Args:
            moment: when its head had come, by `time.perf_counter`.
        """
        return self._replace(head_came=moment)


@dataclass(frozen=True, eq=False, slots=True)
class RequestHead:
    """The head of a POST with a body of known length and without a query, as ASGI would give it.

    The headers of `OwnParts` are not among its own, but for those that are of no strict form.

    Attributes:
        path: the address, unquoted, behind uvicorn's `--root-path`.
        root_path: uvicorn's `--root-path`.
        headers: names in lower case, and values, in the order of the request.
        length: how many bytes the body has.
        is_kept_alive: whether the connection stays open after the answer.
        is_forwarded: whether a proxy says whom it forwards for.
        session_id: the last part of the address that looks like a session's name, which other
            requests of the same decision have in its place; empty where there is none.
    """

    path: str
    root_path: str
    headers: tuple[tuple[bytes, bytes], ...]
    length: int
    is_kept_alive: bool
    is_forwarded: bool = False
    session_id: str = ""


class Connection(Protocol):
    """The connection of a client, which writes answers in the order of their requests."""

    def begin(self, request: HotRequest) -> None:
        """Add a request behind those that are not answered yet."""

    def finish(self, request: HotRequest, status: int, lines: bytes, body: bytes) -> None:
        """Write a request's answer once those before it are written.

        Args:
            request: one that was begun.
            status: of the answer.
            lines: the answer's own headers, each ended by CRLF.
            body: the answer's body.
        """

    def client_of(self, head: RequestHead) -> str | None:
        """Return the address of the client that sent a request, a trusted proxy's own client."""

    def forget(self, request: HotRequest) -> None:
        """Wait for a request no more: it has no answer.

        Args:
            request: one that was begun.
        """

    def drop(self) -> None:
        """Close the connection without the answers that are still to come."""


class HotRequest(Waiting):
    """A request of a connection, which is told of its question's answer.

    Attributes:
        connection: the connection.
        head: the head of the request.
        started: when it had come whole, by `time.perf_counter`.
        outcome: the status, own headers and body of its answer, where it waits for those before it.
    """

    connection: Connection
    head: RequestHead
    started: float
    outcome: tuple[int, bytes, bytes] | None = None

    def tell(self, status: int, lines: bytes) -> bytes:
        """Count and log the answer, whose turn it is to be written.

        Args:
            status: of the answer.
            lines: its own headers, each ended by CRLF.

        Returns:
            The headers, with those that tell of the moment.
        """
        raise NotImplementedError

    def note_sent(self) -> None:
        """Take note that the answer was sent, or can't be."""

    def disconnect(self) -> None:
        """Give the question up: the client has gone.

        A request that is not done then goes on without it.
        """
        self.give_up()

    def cancel(self, msg: str | None = None) -> None:  # noqa: ARG002 -- as a task's
        """End the connection, as uvicorn cancels the tasks of a shutdown that takes too long.

        It does so a moment later: uvicorn still goes through all that it counts.
        """
        asyncio.get_running_loop().call_soon(self.abort)

    def abort(self) -> None:
        """End the connection without an answer."""
        self.connection.drop()
        self.connection.forget(self)


class HotRoute(Protocol):
    """The decision about all requests with one head, which the gate has let pass.

    Attributes:
        head: the requests'.
    """

    head: RequestHead

    def ask(self, body: bytes, connection: Connection, own: OwnParts) -> None:
        """Begin a request, and finish it now or later; nothing is raised.

        Args:
            body: of the head's length.
            connection: the client's.
            own: the parts of the head that are the request's own.
        """


class HotRoutes(Protocol):
    """The routes whose requests may be hot."""

    @property
    def changes(self) -> int:
        """Return how often what passes has changed; decisions from before hold no more."""

    def find(self, head: RequestHead) -> HotRoute | None:
        """Return the route of a request; None where ASGI has to answer it, by an error too.

        Args:
            head: the request's head, which may be remembered with the outcome.
        """
