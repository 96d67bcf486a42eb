"""FastAPI's routes of the policies, made from the table."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator, Field

from policy_server.client_limits import client_name
from policy_server.errors import ObservationError
from policy_server.observations import problem
from policy_server.policy import LARGEST_SEED, AnswerKind
from policy_server.schema import public_schema
from policy_server.serving import (
    NOTHING_STATED,
    PolicySlot,
    PolicyVersion,
    StatedStep,
)
from policy_server.serving.state_tokens import STATE_HEADER, StateTokens
from policy_server.settings import Settings
from policy_server.web.answering import PolicyAnswering
from policy_server.web.batch_answering import BatchAnswering, BatchRequest
from policy_server.web.gone_clients import (
    body_given_up_without_client,
    given_up_without_client,
)
from policy_server.web.media_types import JSON, NPY, is_npy, media_type
from policy_server.web.parts import PartedResponse
from policy_server.web.policy_list import listed_actions
from policy_server.web.query import QueryCheckedRoute, in_digits
from policy_server.web.route_table import AnswerRoute, Route, RouteTable
from policy_server.web.unread_answers import UnreadAnswers

__all__ = ["ROUTE_TEXTS", "Seed", "policy_routes"]

_QUALITY = re.compile(r";\s*q=([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", re.IGNORECASE)
Seed = Annotated[
    Annotated[int, Field(ge=0, le=LARGEST_SEED), BeforeValidator(in_digits)] | None,
    Query(
        description="Makes the draw reproducible; left out, each draw is new",
    ),
]
BatchSeed = Annotated[
    Annotated[int, Field(ge=0, le=LARGEST_SEED), BeforeValidator(in_digits)] | None,
    Query(
        description="Makes the draws reproducible: observation i, from 0, is drawn with this plus "
        "i; left out, each draw is new",
    ),
]
LogProbability = Annotated[
    bool,
    Query(
        description="Appends the log-probability as the last column to an answer in npy format; "
        "JSON has it in any case",
    ),
]

_BATCH_BODY = (
    "The body is a JSON list of observations, or an object with a list for each field, or, with "
    "the content type `application/x-npy`, a NumPy array of shape (N, width). The answer is in "
    "columns, in the order of the observations; with `Accept: application/x-npy` it is one array, "
    "its columns the numbers of the action, then the probability."
)

ROUTE_TEXTS: dict[AnswerKind, tuple[str, str]] = {
    "predict": (
        "Draw an action",
        "Draws an action from the policy's own distribution and gives its probability, and the "
        "logarithm of that: of a density where actions are continuous.",
    ),
    "predict_deterministic": (
        "Give the deterministic action",
        "Gives the policy's mode, as RLlib does with exploration off, and its probability.",
    ),
    "distribution": (
        "Give the exact action distribution",
        "Gives every action component's exact distribution, from one forward pass: probabilities, "
        "or mean and standard deviation.",
    ),
}


BATCH_TEXTS: dict[AnswerKind, tuple[str, str]] = {
    "predict": (
        "Draw an action for each observation of a batch",
        "Draws actions as `/predict` does, for many observations at once. " + _BATCH_BODY,
    ),
    "predict_deterministic": (
        "Give the deterministic action for each observation of a batch",
        "Gives the policy's modes, for many observations at once. " + _BATCH_BODY,
    ),
    "distribution": (
        "Give the exact action distribution for each observation of a batch",
        "Gives distributions as `/distribution` does, with a list of rows in place of each list. "
        + _BATCH_BODY,
    ),
}


def policy_routes(
    table: RouteTable,
    policies: Mapping[str, PolicyAnswering],
    settings: Settings,
    tokens: StateTokens,
    unread: UnreadAnswers,
) -> APIRouter:
    """Return the routes that answer observations, and each policy's `/schema`.

    Args:
        table: the server's routes.
        policies: answer observations, by the policies' names.
        settings: limits of batches.
        tokens: carry the memory of episodes.
        unread: the answers to batches that wait to be read.
    """
    router = APIRouter(route_class=QueryCheckedRoute)
    batches = {
        name: BatchAnswering(policy.slot, settings, unread) for name, policy in policies.items()
    }
    for route in table.answering("single", "batch"):
        is_batch = route.transport == "batch"
        summary, text = (BATCH_TEXTS if is_batch else ROUTE_TEXTS)[route.kind]
        flat = " of flat observations" if is_batch else " for a flat observation"
        router.add_api_route(
            route.path,
            _batch_endpoint(batches[route.policy], route, unread)
            if is_batch
            else _endpoint(policies[route.policy], route, tokens),
            methods=["POST"],
            operation_id=route.operation,
            summary=summary + (flat if route.is_raw else ""),
            description=text,
            tags=[_tag(route)],
            response_class=Response,
        )
    for page in table.schemas():
        router.add_api_route(
            page.path,
            _schema_endpoint(policies[page.policy].slot),
            operation_id=f"get_{page.operation}",
            summary="Give the schema, without the key",
            tags=[_tag(page)],
        )
    return router


def _tag(route: Route) -> str:
    """Return the section of the documentation that a route stands in."""
    return f"Policy {route.namespace}" if route.namespace else "Policy"


def _endpoint(
    policy: PolicyAnswering, route: AnswerRoute, tokens: StateTokens
) -> Callable[..., Awaitable[Response]]:
    async def answer(request: Request, seed: int | None) -> Response:
        asked, memory = request.state, None
        if asked.state_token:
            memory = tokens.memory_of(
                policy.slot, asked.state_token, episode=asked.episode, wanted=asked.version
            )
        body = await request.body()
        async with given_up_without_client(request.receive):
            found = await policy.answer(
                route.kind,
                body,
                is_raw=route.is_raw,
                is_npy=is_npy(request.state.content_type),
                seed=seed,
                request_id=request.state.request_id,
                episode=request.state.episode,
                wanted=request.state.version,
                memory=memory,
                stated=NOTHING_STATED if memory is None else StatedStep.of(request.headers),
                deadline=asked.deadline,
            )
        response = PartedResponse(found.text, media_type=JSON)
        if memory is None:
            return _named(response, found.version)
        token = tokens.token_of(memory).encode()
        response.raw_headers += [found.version.header, (STATE_HEADER.encode(), token)]
        return response

    async def draw(request: Request, seed: Seed = None) -> Response:
        return await answer(request, seed)

    async def give(request: Request) -> Response:
        return await answer(request, None)

    return draw if route.kind == "predict" else give


def _batch_endpoint(
    answering: BatchAnswering, route: AnswerRoute, unread: UnreadAnswers
) -> Callable[..., Awaitable[Response]]:
    async def answer(
        request: Request, seed: int | None, *, has_log_probability: bool = False
    ) -> Response:
        if request.state.state_token:
            raise ObservationError(
                [problem("state_token", ["header", STATE_HEADER], "A batch belongs to no episode")]
            )
        accepted = _qualities(request.headers.get("accept", ""))
        batch = BatchRequest(
            route.kind,
            is_raw=route.is_raw,
            is_npy=is_npy(request.state.content_type),
            wants_npy=accepted.get(NPY, 0) > accepted.get(JSON, 0),
            seed=seed,
            request_id=request.state.request_id,
            client=client_name(request.state.key, request.state.client),
            episode=request.state.episode,
            wanted=request.state.version,
            has_log_probability=has_log_probability,
            deadline=request.state.deadline,
            charge=request.state.charge,
        )
        async with body_given_up_without_client(request.receive) as parts:
            body, version = await answering.answer(batch, parts)
        media_type = NPY if batch.wants_npy else JSON
        while_sent = unread.held(batch.client, len(body))
        answer = PartedResponse(body, media_type=media_type, while_sent=while_sent)
        return _named(answer, version)

    async def draw(
        request: Request, seed: BatchSeed = None, *, log_probability: LogProbability = False
    ) -> Response:
        return await answer(request, seed, has_log_probability=log_probability)

    async def give(request: Request, *, log_probability: LogProbability = False) -> Response:
        return await answer(request, None, has_log_probability=log_probability)

    async def describe(request: Request) -> Response:
        return await answer(request, None)

    return {"predict": draw, "predict_deterministic": give, "distribution": describe}[route.kind]


def _named(response: Response, version: PolicyVersion) -> Response:
    """Return a response that names the version of the policy, and says where it has no memory."""
    response.raw_headers.extend(version.lone_headers)
    return response


def _qualities(accept: str) -> dict[str, float]:
    """Return the quality of each media type in an `accept` (RFC 9110, section 12.5.1)."""
    qualities = {}
    for part in accept.split(","):
        found = _QUALITY.search(part)
        qualities[media_type(part)] = float(found[1]) if found else 1.0
    return qualities


def _schema_endpoint(slot: PolicySlot) -> Callable[[], Awaitable[dict[str, Any]]]:
    async def schema() -> dict[str, Any]:
        document = public_schema(slot.schema)
        version = slot.current()
        signature, previous = version.signature, version.previous_step
        actions = signature.action_outputs
        if document["parameters"]["discrete"] is None:
            document["parameters"]["discrete"] = all(action.is_integer for action in actions)
        if document["parameters"]["tuple"] is None:
            document["parameters"]["tuple"] = len(actions) > 1
        document["policy"] = {
            "observation_width": signature.observation_width,
            "family": signature.family,
            "is_proved": signature.is_proved,
            "basis": signature.basis,
            "action_mask": None
            if signature.mask_name is None
            else {"name": signature.mask_name, "sizes": signature.mask_sizes},
            "memory_width": signature.memory_width,
            "previous_step": ["action"] * previous.takes_action
            + ["reward"] * previous.takes_reward,
            "components": [action.model_dump() for action in listed_actions(signature) or ()],
        }
        return document

    return schema
