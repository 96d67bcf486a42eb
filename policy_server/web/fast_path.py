"""The fast path: the routes that answer one observation, in front of FastAPI's routing.

It calls the same `PolicyAnswering.answer` and the same `error_response` as FastAPI's own routes,
and leaves out only FastAPI's machinery between the two. FastAPI's routes stay for OpenAPI, for
requests with a query or a state token, and for every other method.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from policy_server.policy import AnswerKind
from policy_server.web.answering import PolicyAnswering
from policy_server.web.media_types import is_npy
from policy_server.web.problems import error_response
from policy_server.web.route_table import RouteTable

__all__ = ["FastPath"]


class FastPath:
    """ASGI middleware behind the gate, which has checked the key and counts the body's bytes."""

    def __init__(
        self, app: ASGIApp, table: RouteTable, policies: Mapping[str, PolicyAnswering]
    ) -> None:
        """Own nothing; all but answers to observations is the application's.

        Args:
            app: answers everything else.
            table: the server's routes.
            policies: answer observations, by the policies' names.
        """
        self._app = app
        self._routes: dict[str, tuple[PolicyAnswering, AnswerKind, bool]] = {
            route.path: (policies[route.policy], route.kind, route.is_raw)
            for route in table.answering("single")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an observation, or pass the request on."""
        route = self._routes.get(scope["state"]["path"]) if scope["type"] == "http" else None
        if route is None or not _is_plain(scope):
            await self._app(scope, receive, send)
            return
        policy, kind, is_raw = route
        try:
            answer = await policy.answer(
                kind,
                await _body(receive),
                is_raw=is_raw,
                is_npy=is_npy(scope["state"]["content_type"]),
                request_id=scope["state"]["request_id"],
                episode=scope["state"]["episode"],
                wanted=scope["state"]["version"],
            )
        except ClientDisconnect:
            raise
        except Exception as error:
            response = error_response(error, request_id=scope["state"]["request_id"])
            await response(scope, receive, send)
            return
        headers = [
            (b"content-length", b"%d" % len(answer.text)),
            (b"content-type", b"application/json"),
            *answer.version.lone_headers,
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer.text})


def _is_plain(scope: Scope) -> bool:
    """Return whether a request has neither options nor a memory."""
    return (
        scope["method"] == "POST"
        and not scope["query_string"]
        and not scope["state"]["state_token"]
    )


async def _body(receive: Receive) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        whole: bytes = message.get("body", b"")
        return whole
    parts = []
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
