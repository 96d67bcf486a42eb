"""Sessions over HTTP: a client's episode, whose memory the server keeps between its requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from fastapi import APIRouter, Body, Header, Path, Request, Response
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictStr,
    WithJsonSchema,
)
from starlette.routing import Match
from starlette.types import Scope

from policy_server.client_limits import client_name
from policy_server.policy import LARGEST_SEED
from policy_server.serving import SessionRecord, Sessions, StatedStep
from policy_server.serving.team_sessions import TeamSessions
from policy_server.web.json_bodies import BodySeed, JsonRoute
from policy_server.web.media_types import JSON
from policy_server.web.openapi_headers import SESSION_ID
from policy_server.web.openapi_schemas import REWARD
from policy_server.web.parts import PartedResponse
from policy_server.web.query import in_digits
from policy_server.web.request_headers import LONGEST_EPISODE_ID, episode_of_session
from policy_server.web.route_table import AGENTS, AnswerRoute, Route, RouteTable, SessionRoutes
from policy_server.web.routes import ROUTE_TEXTS, Seed
from policy_server.web.session_answering import SessionAnswering, SessionStep

__all__ = [
    "LONG",
    "SessionId",
    "SessionStart",
    "SessionTexts",
    "Step",
    "add_session_pages",
    "session_routes",
]

SessionId = Annotated[
    str,
    Path(
        description="The session's name, as `POST /sessions` gave it", json_schema_extra=SESSION_ID
    ),
]
Step = Annotated[
    Annotated[int, Field(ge=0, le=LARGEST_SEED), BeforeValidator(in_digits)] | None,
    Header(
        description="The number of the step in its episode, from 0: that of the last step gives "
        "its answer again without a step, so that a request may be sent twice",
    ),
]
Reward = Annotated[
    Annotated[float, BeforeValidator(in_digits), WithJsonSchema(REWARD)] | None,
    Header(description="The reward of the step before, where the policy takes it"),
]
Action = Annotated[
    str | None,
    Header(
        description="The JSON of the action that the environment executed in the step before, in "
        "the form of `actions`, where the policy takes it and it is not the answered one"
    ),
]

# A client library would take them for numbers of 32 bits.
LONG: dict[str, JsonValue] = {"format": "int64"}
_STEP = (
    " The memory of the session's episode makes one step. A request that may be sent again carries "
    "the number of its step in `x-step`; the answer names it too."
)


class SessionStart(BaseModel):
    """How an episode begins; all of it may be left out."""

    model_config = ConfigDict(extra="forbid")

    seed: BodySeed | None = Field(
        None,
        description="Makes the draws reproducible: step i, from 0, is drawn with this plus i",
        json_schema_extra=LONG,
    )
    episode_id: StrictStr = Field(
        "", max_length=LONGEST_EPISODE_ID, description="The client's own name of the episode"
    )


class Session(BaseModel):
    """A session, and how far its episode is."""

    session_id: str = Field(description="Its name in the addresses of its steps")
    policy: str = Field(description="The policy's name")
    version: str = Field(description="The version that answers it")
    steps: int = Field(
        description="How many steps were answered: the next `x-step`", json_schema_extra=LONG
    )
    seed: int | None = Field(
        description="The seed of the episode's first draw", json_schema_extra=LONG
    )
    episode_id: str = Field(description="The client's own name of the episode")


SessionBegin = Annotated[SessionStart | None, Body()]


@dataclass(frozen=True, kw_only=True)
class SessionTexts:
    """The words and types of sessions' routes in OpenAPI.

    Attributes:
        model: the type that shows a session.
        tags: their groups.
        of: stands behind "a session".
        begin: describes how one begins.
        reset: describes what a reset does.
    """

    model: type[BaseModel]
    tags: list[str | Enum]
    of: str = ""
    begin: str
    reset: str


class _SessionRoute(JsonRoute):
    """A route of a policy's sessions, which takes no other address for that of a session.

    Without it `DELETE /sessions/agents`, an address that begins a team's session, would look for a
    session of the name `agents`.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return how a request fits the route; see Starlette's `Route`."""
        match, child = super().matches(scope)
        name = child.get("path_params", {}).get("session_id")
        return (Match.NONE, {}) if f"/{name}" == AGENTS else (match, child)


def session_routes(table: RouteTable, answering: Mapping[str, SessionAnswering]) -> APIRouter:
    """Return the routes of the policies' sessions.

    Args:
        table: the server's routes.
        answering: answer the steps of sessions, by the policies' names.
    """
    router = APIRouter(route_class=_SessionRoute)
    for routes in table.sessions():
        _add_pages(router, routes, answering[routes.begin.policy].sessions)
    for route in table.answering("session"):
        summary, text = ROUTE_TEXTS[route.kind]
        flat = " for a flat observation" if route.is_raw else ""
        router.add_api_route(
            route.path,
            _endpoint(answering[route.policy], route),
            methods=["POST"],
            operation_id=route.operation,
            summary=f"{summary} in a session{flat}",
            description=text + _STEP,
            tags=[_tag(route)],
            response_class=Response,
        )
    return router


def _tag(route: Route) -> str:
    return f"Sessions {route.namespace}" if route.namespace else "Sessions"


def add_session_pages(
    router: APIRouter,
    routes: SessionRoutes,
    sessions: Sessions | TeamSessions,
    texts: SessionTexts,
    *,
    reset: Callable[..., Awaitable[BaseModel]],
    shown: Callable[[SessionRecord], BaseModel],
) -> None:
    """Add the routes that begin, show, end and reset sessions.

    Args:
        router: gets them.
        routes: their addresses.
        sessions: a policy's, or a team's.
        texts: say in OpenAPI what they do.
        reset: answers a reset.
        shown: returns what a client sees of a session.
    """

    async def begin(request: Request, start: SessionBegin = None) -> BaseModel:
        asked = start or SessionStart()
        record = await sessions.begin(
            seed=asked.seed,
            episode_id=episode_of_session(request.state.episode, asked.episode_id),
            wanted=request.state.version,
            client=client_name(request.state.key, request.state.client),
        )
        return shown(record)

    async def show(session_id: SessionId) -> BaseModel:
        return shown(await sessions.describe(session_id))

    async def end(session_id: SessionId) -> None:
        await sessions.end(session_id)

    one, model, of = routes.one.operation, texts.model, texts.of
    router.add_api_route(
        routes.begin.path,
        begin,
        methods=["POST"],
        status_code=201,
        response_model=model,
        operation_id=f"begin_{one}",
        summary=f"Begin a session{of}",
        description=texts.begin,
        tags=texts.tags,
    )
    router.add_api_route(
        routes.one.path,
        show,
        response_model=model,
        operation_id=f"get_{one}",
        summary=f"Show a session{of}",
        tags=texts.tags,
    )
    router.add_api_route(
        routes.one.path,
        end,
        methods=["DELETE"],
        status_code=204,
        operation_id=f"end_{one}",
        summary=f"End a session{of}",
        tags=texts.tags,
    )
    router.add_api_route(
        routes.reset.path,
        reset,
        methods=["POST"],
        response_model=model,
        operation_id=f"reset_{one}",
        summary=f"Begin another episode in a session{of}",
        description=texts.reset,
        tags=texts.tags,
    )


def _add_pages(router: APIRouter, routes: SessionRoutes, sessions: Sessions) -> None:
    async def reset(session_id: SessionId, start: SessionBegin = None) -> Session:
        asked = start or SessionStart()
        return _shown(
            await sessions.reset(session_id, seed=asked.seed, episode_id=asked.episode_id)
        )

    texts = SessionTexts(
        model=Session,
        tags=[_tag(routes.begin)],
        begin="Begins an episode whose memory the server keeps from step to step; for a "
        "policy without memory too. It ends by DELETE, or when it was idle for too long.",
        reset="Empties the memory; seed and name stay unless others are given.",
    )
    add_session_pages(router, routes, sessions, texts, reset=reset, shown=_shown)


def _shown(record: SessionRecord) -> Session:
    return Session(
        session_id=record.session_id,
        policy=record.policy,
        version=record.version,
        steps=record.steps,
        seed=record.seed,
        episode_id=record.episode_id,
    )


def _endpoint(
    answering: SessionAnswering, route: AnswerRoute
) -> Callable[..., Awaitable[Response]]:
    async def answer(
        request: Request, session_id: str, number: int | None, seed: int | None
    ) -> Response:
        # A slow body keeps no other request waiting.
        body, stated = await request.body(), StatedStep.of(request.headers)
        asked = request.state
        step = SessionStep(
            session_id, number, seed, stated, asked.content_type, asked.request_id, asked.deadline
        )
        text, headers = await answering.answer(route, body, step)
        response = PartedResponse(text, media_type=JSON)
        response.raw_headers += headers
        return response

    async def draw(
        request: Request,
        session_id: SessionId,
        seed: Seed = None,
        x_step: Step = None,
        x_previous_reward: Reward = None,  # noqa: ARG001 -- read with the action
        x_previous_action: Action = None,  # noqa: ARG001 -- for OpenAPI
    ) -> Response:
        return await answer(request, session_id, x_step, seed)

    async def give(
        request: Request,
        session_id: SessionId,
        x_step: Step = None,
        x_previous_reward: Reward = None,  # noqa: ARG001 -- read with the action
        x_previous_action: Action = None,  # noqa: ARG001 -- for OpenAPI
    ) -> Response:
        return await answer(request, session_id, x_step, None)

    return draw if route.kind == "predict" else give
