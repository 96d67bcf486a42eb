"""The access log: a line for each request, of which there may be tens of thousands a second.

Where the log is the server's own, lines are held back for up to 50 ms and written together;
the order is that of the answers. They are written before any other line, and at the end of the
process; one that a signal kills loses the last 50 ms.
"""

from __future__ import annotations

import logging
import random
import time
from http import HTTPStatus

from policy_server.telemetry import ACCESS_LOGGER, HeldLine, HoldingHandler, handler_of

__all__ = ["RequestLog"]

logger = logging.getLogger(ACCESS_LOGGER)

_EVENT = "request"
_NAMES = (
    "request_id",
    "client",
    "method",
    "route",
    "status",
    "duration_ms",
    "model_version",
)


class RequestLog:
    """The lines about requests, or about a share of them."""

    def __init__(self, *, rate: float = 1.0) -> None:
        """Own nothing: lines belong to the log.

        Args:
            rate: the share of requests that have a line, from 0 to 1; each has one that was
                answered by an error.
        """
        self._rate = rate
        self._handler: HoldingHandler | None = None

    @property
    def is_on(self) -> bool:
        """Return whether requests have lines."""
        return logger.isEnabledFor(logging.INFO)

    def note(
        self,
        request_id: str,
        client: str | None,
        method: str,
        route: str,
        status: int,
        seconds: float,
        model_version: str,
    ) -> None:
        """Log a request, where the share has it.

        Args:
            request_id: its id.
            client: the address of the client.
            method: its method.
            route: its route, as metrics name it.
            status: of its answer.
            seconds: from its arrival to its answer.
            model_version: the start of the digest of the model that is served.
        """
        is_sampled = self._rate < 1 and status < HTTPStatus.BAD_REQUEST
        if is_sampled and random.random() >= self._rate:  # noqa: S311 -- a sample, no secret
            return
        values = (
            request_id,
            client,
            method,
            route,
            status,
            round(seconds * 1000, 3),
            model_version,
        )
        handler = self._handler
        # Where lines are held back, the handler was found less than 50 ms ago.
        if handler is None or not handler.held:
            self._handler = handler = handler_of(logger)
        if handler is not None:
            handler.hold(HeldLine(time.time(), ACCESS_LOGGER, _EVENT, _NAMES, values))
        else:
            logger.info(_EVENT, extra=dict(zip(_NAMES, values, strict=True)))
