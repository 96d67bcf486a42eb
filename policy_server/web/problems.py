"""Errors over HTTP: `{"detail": ...}`, a list of mistakes for 422, one sentence otherwise."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policy_server.errors import ObservationError, PolicyServerError

__all__ = ["error_response", "install_error_handlers"]

logger = logging.getLogger(__name__)

_GENERIC = "internal error; the server's log has the reason"


def error_response(error: Exception, *, request_id: str) -> Response:
    """Translate an exception into the answer that a client gets.

    Args:
        error: anything that a route raised. What is no error of ours is a generic 500, and logged
            with its traceback.
        request_id: what the log names the request by.
    """
    if isinstance(error, ObservationError):
        return _response(error.status, error.problems, error.headers)
    if not isinstance(error, PolicyServerError) or error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("request_failed", exc_info=error, extra={"request_id": request_id})
    if not isinstance(error, PolicyServerError):
        return _response(HTTPStatus.INTERNAL_SERVER_ERROR, _GENERIC)
    return _response(error.status, error.message, error.headers)


def install_error_handlers(app: FastAPI) -> None:
    """Give every error of the app the one shape.

    Args:
        app: the application.
    """
    app.add_middleware(_Guard)

    async def on_our_error(request: Request, error: Exception) -> Response:
        return error_response(error, request_id=request.state.request_id)

    async def on_http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for it alone"
        return _response(error.status_code, _detail(error), error.headers)

    async def on_invalid_parameter(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError), "registered for it alone"
        problems = [
            {"type": item["type"], "loc": list(item["loc"]), "msg": item["msg"]}
            for item in error.errors()
        ]
        return _response(HTTPStatus.UNPROCESSABLE_ENTITY, problems)

    app.add_exception_handler(PolicyServerError, on_our_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid_parameter)


class _Guard:
    """Answer what no handler foresaw; Starlette's own way logs it a second time."""

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
            raise
        except Exception as error:
            if is_started:
                raise
            response = error_response(error, request_id=scope["state"]["request_id"])
            await response(scope, receive, send)


def _detail(error: HTTPException) -> str:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return "no such route; /docs lists them"
    return str(error.detail).lower()


def _response(status: int, detail: object, headers: Mapping[str, str] | None = None) -> Response:
    content = orjson.dumps({"detail": detail})
    return Response(content, status, headers, media_type="application/json")
