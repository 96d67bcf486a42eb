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

from policy_server.telemetry import (
    ACCESS_LOGGER,
    NUMBER_PLACE,
    TEXT_PLACE,
    HoldingHandler,
    LineForm,
    handler_of,
    line_form,
)

__all__ = ["RequestLog"]

logger = logging.getLogger(ACCESS_LOGGER)

_EVENT = "request"
# Clients, routes, statuses, models and keys, in all combinations that are seen.
_MOST_FORMS = 1024
_Known = tuple[str | None, str, str, int, str, str | None]


class RequestLog:
    """The lines about requests, or about a share of them."""

    def __init__(self, *, rate: float = 1.0) -> None:
        """Own the forms of lines; the lines belong to the log.

        Args:
            rate: the share of requests that have a line, from 0 to 1; each has one that was
                answered by an error.
        """
        self._rate = rate
        self._handler: HoldingHandler | None = None
        self._forms: dict[_Known, LineForm] = {}

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
        key: str | None = None,
    ) -> None:
        """Log a request, where the share has it.

        Args:
            request_id: its id: letters, digits and `._:-`.
            client: the address of the client.
            method: its method.
            route: its route, as metrics name it.
            status: of its answer.
            seconds: from its arrival to its answer.
            model_version: the start of the digest of the model that is served.
            key: the name of the access key that let it in; None where none did.
        """
        is_sampled = self._rate < 1 and status < HTTPStatus.BAD_REQUEST
        if is_sampled and random.random() >= self._rate:  # noqa: S311 -- a sample, no secret
            return
        handler = self._handler
        # Where lines are held back, the handler was found less than 50 ms ago.
        if handler is None or not handler.held:
            self._handler = handler = handler_of(logger)
        if handler is None:
            duration_ms = round(seconds * 1000, 3)
            fields = _fields(
                request_id, client, method, route, status, duration_ms, model_version, key
            )
            logger.info(_EVENT, extra=fields)
            return
        known = (client, method, route, status, model_version, key)
        form = self._forms.get(known) or self._form_of(known)
        handler.hold((time.time(), form, request_id, seconds * 1000))

    def _form_of(self, known: _Known) -> LineForm:
        client, method, route, status, model_version, key = known
        if len(self._forms) >= _MOST_FORMS:
            self._forms.clear()
        fields = _fields(
            TEXT_PLACE, client, method, route, status, NUMBER_PLACE, model_version, key
        )
        form = self._forms[known] = line_form(ACCESS_LOGGER, _EVENT, fields)
        return form


def _fields(
    request_id: object,
    client: str | None,
    method: str,
    route: str,
    status: int,
    duration_ms: object,
    model_version: str,
    key: str | None,
) -> dict[str, object]:
    return {
        "request_id": request_id,
        "client": client,
        "method": method,
        "route": route,
        "status": status,
        "duration_ms": duration_ms,
        "model_version": model_version,
        "key": key,
    }
