"""The routes of a team: one step of all its agents, by itself or in a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from policy_server.errors import ObservationError
from policy_server.observations import problem
from policy_server.serving import NOTHING_STATED, SessionRecord
from policy_server.serving.state_tokens import STATE_HEADER
from policy_server.serving.team_sessions import TeamSessions
from policy_server.web.gone_clients import given_up_without_client
from policy_server.web.json_bodies import JsonRoute
from policy_server.web.media_types import JSON
from policy_server.web.parts import PartedResponse
from policy_server.web.route_table import AnswerRoute, RouteTable, SessionRoutes
from policy_server.web.routes import ROUTE_TEXTS, Seed
from policy_server.web.session_answering import SessionStep
from policy_server.web.session_routes import (
    LONG,
    SessionId,
    SessionStart,
    SessionTexts,
    Step,
    add_session_pages,
)
from policy_server.web.team_answering import StepRequest, TeamAnswering, refuse_array
from policy_server.web.team_session_answering import TeamSessionAnswering

__all__ = ["team_routes"]

_TAG = "Teams"
_BY_AGENT = (
    " The body is an object with an observation for each agent of a team, by its id, and so is the "
    "answer. Either all agents are answered or none is."
)
_STEP = (
    " The memory of each agent that is there makes one step. A request that may be sent again "
    "carries the number of the team's step in `x-step`; the answer names it too."
)


class TeamReset(SessionStart):
    """How another episode begins; or the agents that alone begin anew."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"agents": {"type": "array"}}, "required": ["agents"]},
            "then": {"properties": {"seed": {"type": "null"}, "episode_id": {"const": ""}}},
        }
    )

    agents: list[StrictStr] | None = Field(
        None, description="Only the memories of these agents are emptied; the episode goes on"
    )


class TeamSession(BaseModel):
    """A team's session, and how far its episode is."""

    session_id: str = Field(description="Its name in the addresses of its steps")
    versions: dict[str, str] = Field(description="The version that answers, by policy")
    steps: int = Field(
        description="How many steps were answered: the next `x-step`", json_schema_extra=LONG
    )
    agents: list[str] = Field(description="The agents that have a memory")
    seed: int | None = Field(
        description="The seed of the episode's first step", json_schema_extra=LONG
    )
    episode_id: str = Field(description="The client's own name of the episode")


_Reset = Annotated[TeamReset | None, Body()]


def team_routes(
    table: RouteTable, answering: TeamAnswering, sessions: TeamSessionAnswering
) -> APIRouter:
    """Return the routes of a team.

    Args:
        table: the server's routes.
        answering: answers the team's steps.
        sessions: answers the steps of its sessions.
    """
    router = APIRouter(route_class=JsonRoute, tags=[_TAG])
    _add_pages(router, table.team_sessions(), sessions.sessions)
    for route in table.answering("team", "team_session"):
        is_step = route.transport == "team_session"
        summary, text = ROUTE_TEXTS[route.kind]
        flat = " from flat observations" if route.is_raw else ""
        router.add_api_route(
            route.path,
            _step_endpoint(sessions, route) if is_step else _endpoint(answering, route),
            methods=["POST"],
            operation_id=route.operation,
            summary=f"{summary} for each agent{' in a session' if is_step else ''}{flat}",
            description=text + _BY_AGENT + (_STEP if is_step else ""),
            response_class=Response,
        )
    return router


def _add_pages(router: APIRouter, routes: SessionRoutes, sessions: TeamSessions) -> None:
    async def reset(session_id: SessionId, start: _Reset = None) -> TeamSession:
        asked = start or TeamReset()
        if asked.agents is None:
            record = await sessions.reset(session_id, seed=asked.seed, episode_id=asked.episode_id)
            return _shown(record)
        _refuse_options(asked)
        return _shown(await sessions.reset_agents(session_id, asked.agents))

    texts = SessionTexts(
        model=TeamSession,
        tags=[],
        of=" of a team",
        begin="Begins an episode in which the server keeps the memory of each agent from "
        "step to step. It ends by DELETE, or when it was idle for too long.",
        reset="Empties the memories of all agents; seed and name stay unless others are "
        "given. With `agents` it empties theirs alone, as for agents that begin anew or have left.",
    )
    add_session_pages(router, routes, sessions, texts, reset=reset, shown=_shown)


def _refuse_options(asked: TeamReset) -> None:
    """Refuse a seed or a name of an episode that some agents alone would begin."""
    message = "Input is for a reset of all agents; leave it out, or leave out agents"
    # A client library sends what a field is without a value, too.
    given = [name for name in ("seed", "episode_id") if getattr(asked, name) not in (None, "")]
    if given:
        raise ObservationError([problem("not_allowed", ["body", name], message) for name in given])


def _shown(record: SessionRecord) -> TeamSession:
    assert record.team is not None, "it is a team's session"
    return TeamSession(
        session_id=record.session_id,
        versions={policy: name.label for policy, name in record.team.versions.items()},
        steps=record.steps,
        agents=list(record.team.agents),
        seed=record.seed,
        episode_id=record.episode_id,
    )


def _endpoint(answering: TeamAnswering, route: AnswerRoute) -> Callable[..., Awaitable[Response]]:
    async def answer(request: Request, seed: int | None) -> Response:
        asked = request.state
        if asked.state_token:
            message = "A team has no state token; its sessions and streams keep a memory"
            raise ObservationError([problem("state_token", ["header", STATE_HEADER], message)])
        step = StepRequest(
            route,
            content_type=asked.content_type,
            seed=seed,
            request_id=asked.request_id,
            episode=asked.episode,
            wanted=asked.version,
            deadline=asked.deadline,
        )
        body = await request.body()
        async with given_up_without_client(request.receive):
            text, headers = await answering.answer(body, step, charge=asked.charge)
        response = PartedResponse(text, media_type=JSON)
        response.raw_headers += headers
        return response

    async def draw(request: Request, seed: Seed = None) -> Response:
        return await answer(request, seed)

    async def give(request: Request) -> Response:
        return await answer(request, None)

    return draw if route.kind == "predict" else give


def _step_endpoint(
    answering: TeamSessionAnswering, route: AnswerRoute
) -> Callable[..., Awaitable[Response]]:
    async def answer(
        request: Request, session_id: str, number: int | None, seed: int | None
    ) -> Response:
        asked = request.state
        refuse_array(asked.content_type)
        step = SessionStep(
            session_id,
            number,
            seed,
            NOTHING_STATED,
            asked.content_type,
            asked.request_id,
            asked.deadline,
            asked.charge,
        )
        # A slow body keeps no other request waiting.
        text, headers = await answering.answer(route, await request.body(), step)
        response = PartedResponse(text, media_type=JSON)
        response.raw_headers += headers
        return response

    async def draw(
        request: Request, session_id: SessionId, seed: Seed = None, x_step: Step = None
    ) -> Response:
        return await answer(request, session_id, x_step, seed)

    async def give(request: Request, session_id: SessionId, x_step: Step = None) -> Response:
        return await answer(request, session_id, x_step, None)

    return draw if route.kind == "predict" else give
