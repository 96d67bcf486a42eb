"""The fast path: routes that are asked often, in front of FastAPI's routing.

They answer one observation or a team's, or say whether the server is healthy. It calls the same
`PolicyAnswering.answer`, `TeamAnswering.answer`, health checks and `error_response` as FastAPI's
own routes, and leaves out only FastAPI's machinery between the two. FastAPI's routes
stay for OpenAPI, for requests with a query or a state token, and for every other method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from policy_server.web.answering import PolicyAnswering
from policy_server.web.gone_clients import given_up_without_client
from policy_server.web.health import HealthCheck
from policy_server.web.media_types import is_npy
from policy_server.web.parts import send_body
from policy_server.web.problems import error_response
from policy_server.web.route_table import AnswerRoute, RouteTable
from policy_server.web.team_answering import StepRequest, TeamAnswering

__all__ = ["FastPath"]

_CHECKING = frozenset({"GET", "HEAD"})
Header = tuple[bytes, bytes]
# The JSON of an answer, and headers of its own.
OwnAnswer = tuple[bytes, Iterable[Header]]
# A body and the gate's notes about its request -> the answer.
Answering = Callable[[bytes, Mapping[str, Any]], Awaitable[OwnAnswer]]


class FastPath:
    """ASGI middleware behind the gate, which has checked the key and counts the body's bytes."""

    def __init__(
        self,
        app: ASGIApp,
        table: RouteTable,
        policies: Mapping[str, PolicyAnswering],
        *,
        team: TeamAnswering | None,
        checks: Mapping[str, HealthCheck],
    ) -> None:
        """Own nothing; all but answers to observations and health checks is the application's.

        Args:
            app: answers everything else.
            table: the server's routes.
            policies: answer observations, by the policies' names.
            team: answers a team's steps; None where there is no team.
            checks: the health checks, by their addresses.
        """
        self._checks = checks
        self._app = app
        self._routes: dict[str, Answering] = {
            route.path: _answering_one(policies[route.policy], route)
            for route in table.answering("single")
        }
        for route in table.answering("team"):
            assert team is not None, "its routes stand where there is a team"
            self._routes[route.path] = _answering_team(team, route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an observation or a health check, or pass the request on."""
        answer = self._answer_to(scope, receive)
        if answer is None:
            await self._app(scope, receive, send)
            return
        try:
            text, own = await answer
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
        await send_body(send, text)

    def _answer_to(self, scope: Scope, receive: Receive) -> Awaitable[OwnAnswer] | None:
        """Return the answer to a request; None where it is the application's."""
        if scope["type"] != "http":
            return None
        path = scope["state"]["path"]
        if scope["method"] in _CHECKING and path in self._checks:
            return _checked(self._checks[path])
        route = self._routes.get(path)
        if route is None or not _is_plain(scope):
            return None
        return _asked(route, scope, receive)


async def _checked(check: HealthCheck) -> OwnAnswer:
    return orjson.dumps(await check()), ()


async def _asked(route: Answering, scope: Scope, receive: Receive) -> OwnAnswer:
    body = await _body(receive)
    async with given_up_without_client(receive):
        return await route(body, scope["state"])


def _answering_one(policy: PolicyAnswering, route: AnswerRoute) -> Answering:
    async def answer(body: bytes, asked: Mapping[str, Any]) -> OwnAnswer:
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
    async def answer(body: bytes, asked: Mapping[str, Any]) -> OwnAnswer:
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
