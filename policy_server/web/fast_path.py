"""The fast path: the routes that answer one observation or a team's, in front of FastAPI's routing.

It calls the same `PolicyAnswering.answer` and `TeamAnswering.answer` and the same `error_response`
as FastAPI's own routes, and leaves out only FastAPI's machinery between the two. FastAPI's routes
stay for OpenAPI, for requests with a query or a state token, and for every other method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from policy_server.web.answering import PolicyAnswering
from policy_server.web.gone_clients import given_up_without_client
from policy_server.web.media_types import is_npy
from policy_server.web.problems import error_response
from policy_server.web.route_table import AnswerRoute, RouteTable
from policy_server.web.team_answering import StepRequest, TeamAnswering

__all__ = ["FastPath"]

Header = tuple[bytes, bytes]
# A body and the gate's notes about its request -> the JSON of the answer, and headers of its own.
Answering = Callable[[bytes, Mapping[str, Any]], Awaitable[tuple[bytes, Iterable[Header]]]]


class FastPath:
    """ASGI middleware behind the gate, which has checked the key and counts the body's bytes."""

    def __init__(
        self,
        app: ASGIApp,
        table: RouteTable,
        policies: Mapping[str, PolicyAnswering],
        team: TeamAnswering | None,
    ) -> None:
        """Own nothing; all but answers to observations is the application's.

        Args:
            app: answers everything else.
            table: the server's routes.
            policies: answer observations, by the policies' names.
            team: answers a team's steps; None where there is no team.
        """
        self._app = app
        self._routes: dict[str, Answering] = {
            route.path: _answering_one(policies[route.policy], route)
            for route in table.answering("single")
        }
        for route in table.answering("team"):
            assert team is not None, "its routes stand where there is a team"
            self._routes[route.path] = _answering_team(team, route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an observation, or pass the request on."""
        route = self._routes.get(scope["state"]["path"]) if scope["type"] == "http" else None
        if route is None or not _is_plain(scope):
            await self._app(scope, receive, send)
            return
        try:
            body = await _body(receive)
            async with given_up_without_client(receive):
                text, own = await route(body, scope["state"])
        except ClientDisconnect:
            raise
        except Exception as error:
            response = error_response(error, request_id=scope["state"]["request_id"])
            await response(scope, receive, send)
            return
        headers = [
            (b"content-length", b"%d" % len(text)),
            (b"content-type", b"application/json"),
            *own,
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


def _answering_one(policy: PolicyAnswering, route: AnswerRoute) -> Answering:
    async def answer(body: bytes, asked: Mapping[str, Any]) -> tuple[bytes, Iterable[Header]]:
        found = await policy.answer(
            route.kind,
            body,
            is_raw=route.is_raw,
            is_npy=is_npy(asked["content_type"]),
            request_id=asked["request_id"],
            episode=asked["episode"],
            wanted=asked["version"],
            deadline=asked["deadline"],
        )
        return found.text, found.version.lone_headers

    return answer


def _answering_team(team: TeamAnswering, route: AnswerRoute) -> Answering:
    async def answer(body: bytes, asked: Mapping[str, Any]) -> tuple[bytes, Iterable[Header]]:
        step = StepRequest(
            route,
            content_type=asked["content_type"],
            request_id=asked["request_id"],
            episode=asked["episode"],
            wanted=asked["version"],
            deadline=asked["deadline"],
        )
        return await team.answer(body, step, charge=asked["charge"])

    return answer


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
