"""Errors over HTTP: `{"detail": ...}`, a list of mistakes for 422, one sentence otherwise."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policy_server.errors import (
    ExportError,
    ModelError,
    ObservationError,
    PolicyServerError,
    SchemaError,
    SettingsError,
)
from policy_server.files.regular import shortage_of_system

__all__ = ["NOT_SERVED", "describe_error", "error_response", "install_error_handlers", "send_error"]

logger = logging.getLogger(__name__)

# ASGI's extension by which a server answers a web socket's handshake by HTTP.
_REFUSAL = "websocket.http.response"
_POLICY_VIOLATION = 1008
_GONE_AFTER_S = 1.0
NOT_SERVED = "the policy can't be served; the server's log has the reason"
_LATER: Mapping[str, str] = {"retry-after": "5"}
_GENERIC = "internal error; the server's log has the reason"
# Of these, the message is for the operator: it names files and settings of the server's machine.
_OPERATORS = (ExportError, ModelError, SchemaError, SettingsError)


def error_response(error: Exception, *, request_id: str) -> Response:
    """Return the answer that a client gets for an exception.

    Args:
        error: anything that a route raised. An exception that is no error of ours is a generic
            500, and logged with its traceback.
        request_id: the id of the request in the log.
    """
    status, detail, headers = describe_error(error, request_id=request_id)
    return _response(status, detail, headers)


async def send_error(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or refuse a web socket, with an error.

    Args:
        error: see `error_response`.
        scope: the request's scope, as the gate leaves it.
        receive: the request's `receive`.
        send: the request's `send`.
    """
    if scope["type"] == "websocket" and _REFUSAL not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return
    response = error_response(error, request_id=scope["state"]["request_id"])
    await response(scope, receive, send)
    if scope["type"] == "websocket":
        await _until_gone(receive)


async def _until_gone(receive: Receive) -> None:
    """Wait for a refused web socket's end; before it, uvicorn logs that it was forgotten."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_GONE_AFTER_S):
            # It was connected, it is refused, it is gone.
            for _ in range(3):
                await receive()


def describe_error(
    error: Exception, *, request_id: str
) -> tuple[int, object, Mapping[str, str] | None]:
    """Return the answer to an exception, and log one that is no client's fault.

    Args:
        error: anything; see `error_response`.
        request_id: the id of the request in the log.

    Returns:
        Its status, its `detail`, and its headers.
    """
    if isinstance(error, ObservationError):
        return error.status, error.problems, error.headers
    if isinstance(error, HTTPException):
        return error.status_code, _detail(error), error.headers
    if not isinstance(error, PolicyServerError) and (shortage := shortage_of_system(error)):
        return _describe_shortage(shortage, request_id)
    if not isinstance(error, PolicyServerError) or error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("request_failed", exc_info=error, extra={"request_id": request_id})
    if not isinstance(error, PolicyServerError):
        return HTTPStatus.INTERNAL_SERVER_ERROR, _GENERIC, None
    if isinstance(error, _OPERATORS):
        return error.status, NOT_SERVED, error.headers
    return error.status, error.message, error.headers


def _describe_shortage(
    shortage: OSError, request_id: str
) -> tuple[int, object, Mapping[str, str] | None]:
    """Return the answer to a request that may succeed once the system has what it takes."""
    reason = shortage.strerror
    logger.error(
        "request_failed",
        extra={"request_id": request_id, "reason": reason, "path": str(shortage.filename or "")},
    )
    detail = f"the server's system is short of something ({reason}); try again later"
    return HTTPStatus.SERVICE_UNAVAILABLE, detail, _LATER


def install_error_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Give every error of the app the one shape.

    Args:
        app: the application.
        routes: its routes, those of its routers too.
    """
    app.add_middleware(_Guard)

    async def on_error(request: Request, error: Exception) -> Response:
        if getattr(error, "status_code", None) == HTTPStatus.METHOD_NOT_ALLOWED:
            error = HTTPException(
                HTTPStatus.METHOD_NOT_ALLOWED, headers={"allow": _allowed(routes, request.scope)}
            )
        return error_response(error, request_id=request.state.request_id)

    async def on_invalid_parameter(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError), "registered for it alone"
        problems = [
            {"type": item["type"], "loc": list(item["loc"]), "msg": item["msg"]}
            for item in error.errors()
        ]
        return _response(HTTPStatus.UNPROCESSABLE_ENTITY, problems)

    app.add_exception_handler(PolicyServerError, on_error)
    app.add_exception_handler(HTTPException, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid_parameter)


def _allowed(routes: Sequence[BaseRoute], scope: Scope) -> str:
    """Return the methods of an address for `Allow`; Starlette names those of one route alone."""
    matching = [
        route
        for route in routes
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE
    ]
    # `/sessions/agents` is no session, though the address of one would fit too.
    fewest = min((len(route.param_convertors) for route in matching), default=0)
    methods = {
        method
        for route in matching
        if len(route.param_convertors) == fewest
        for method in route.methods or ()
    }
    return ", ".join(sorted(methods))


class _Guard:
    """Answer an exception that no handler foresaw; Starlette's own way logs it a second time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_started = False

        async def watched(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            # No client reads an answer, and nothing went wrong here.
            logger.info("client_disconnected", extra={"request_id": scope["state"]["request_id"]})
        except Exception as error:
            if is_started:
                raise
            await send_error(error, scope, receive, send)


def _detail(error: HTTPException) -> str:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return "no such route; /docs lists them"
    return str(error.detail).lower()


def _response(status: int, detail: object, headers: Mapping[str, str] | None = None) -> Response:
    content = orjson.dumps({"detail": detail})
    return Response(content, status, headers, media_type="application/json")
