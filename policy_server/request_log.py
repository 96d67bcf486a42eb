"""The access log: a line for each request, of which there may be tens of thousands a second.

Where the log is the server's own, lines are held back for up to 50 ms and written together;
the order is that of the answers. They are written before any other line, and at the end of the
process; one that a signal kills loses the last 50 ms.
"""

from __future__ import annotations

import logging
import random
from http import HTTPStatus

from policy_server.telemetry import ACCESS_LOGGER, hold_line

__all__ = ["RequestLog"]

logger = logging.getLogger(ACCESS_LOGGER)

_EVENT = "request"


class RequestLog:
    """The lines about requests, or about a share of them."""

    def __init__(self, *, rate: float = 1.0) -> None:
        """Own nothing: lines belong to the log.

        Args:
            rate: the share of requests that have a line, from 0 to 1; each has one that was
                answered by an error.
        """
        self._rate = rate

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
        fields = {
            "request_id": request_id,
            "client": client,
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1000, 3),
            "model_version": model_version,
        }
        if not hold_line(logger, _EVENT, fields):
            logger.info(_EVENT, extra=fields)
