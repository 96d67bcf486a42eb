"""The OpenAPI document: FastAPI's own, with the types of exactly these policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from policy_server import __version__
from policy_server.errors import SettingsError
from policy_server.policy import LARGEST_SEED, AnswerKind
from policy_server.serving import PolicyRegistry, PolicySlot
from policy_server.serving.state_tokens import STATE_HEADER
from policy_server.serving.team import Team
from policy_server.web.answering import render_examples
from policy_server.web.media_types import NPY
from policy_server.web.openapi_errors import (
    describe_error,
    describe_errors,
    describe_mistakes,
    json_of,
)
from policy_server.web.openapi_headers import (
    describe_memory,
    describe_previous_action,
    describe_version,
)
from policy_server.web.openapi_schemas import (
    TypeNames,
    error_schemas,
    policy_schemas,
    sized,
)
from policy_server.web.openapi_timing import describe_timing
from policy_server.web.route_table import AnswerRoute, Route, RouteTable
from policy_server.web.team_schemas import TeamSchemas

__all__ = ["build_openapi", "refuse_shared_type_names"]

Document = dict[str, Any]
# The answer of each kind, by policy.
Examples = Mapping[str, Mapping[AnswerKind, Any]]

_DESCRIPTION = """Serves a trained reinforcement-learning policy: observations in, actions out.

Every route but the health checks and the documentation takes the access key in the header
`access-token`, or as `Authorization: Bearer`. Errors have the shape `{"detail": ...}`; every answer
carries an `x-request-id`. Bodies are JSON in UTF-8, or arrays where a route takes them; with the
header `content-encoding: gzip` they may be packed.

Each route that answers one observation has a twin for web sockets, such as `WS /predict/stream`:
one observation a frame in JSON or MessagePack, one answer a frame, in order, many in flight."""
_COLUMNS = (
    "In place of the list an object is taken too, with a list for each field, all of one length: "
    "the schema `{name}`"
)
_ARRAY = (
    " With the content type `application/x-npy` the body is a NumPy array of any type of real "
    "numbers: {shape}, in the order of training."
)
_TEXT = {"type": "string"}
_NEXT_STATE = "The memory after the step, for the next request; where the request had an `x-state`"
_STEP = "The number of the step in its episode, from 0"
_VERSION = "The version of the policy that answered"
_MEMORY = "`none`: the answer is that of an episode's first step, since no memory belongs to it"
_FROM_ZERO = (
    ", from the zero state, as at the first step of an episode: this policy has a memory, which "
    "sessions and streams keep"
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_SECURITY: list[dict[str, list[str]]] = [{"accessToken": []}, {"bearer": []}]


def build_openapi(
    app: FastAPI,
    table: RouteTable,
    registry: PolicyRegistry,
    *,
    root_path: str,
    max_agents: int,
    is_open: bool,
) -> Document:
    """Return the OpenAPI 3.1 document.

    Args:
        app: has the routes.
        table: the server's routes.
        registry: the policies; the widths of their observations are exact once they are loaded.
        root_path: the server's own prefix.
        max_agents: the most agents in a step of a team.
        is_open: whether the server has no key, and answers everybody.
    """
    document = get_openapi(
        title=app.title,
        version=__version__,
        description=_DESCRIPTION,
        routes=app.routes,
        servers=[{"url": root_path}] if root_path else None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    _state_seeds(document)
    components = document.setdefault("components", {})
    components["securitySchemes"] = {
        "accessToken": {"type": "apiKey", "in": "header", "name": "access-token"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    schemas = components["schemas"] = dict(components.get("schemas", {}))
    for page in table.schemas():
        schemas |= policy_schemas(registry[page.policy], namespace=page.namespace)
    schemas |= error_schemas()
    team = _team_of(registry, table, max_agents)
    if team is not None:
        schemas |= team.schemas()
        if "TeamReset" in schemas:
            schemas["TeamReset"] = team.describe_reset(schemas["TeamReset"])
    examples = {slot.name: render_examples(slot) for slot in registry}
    for path, methods in document["paths"].items():
        route = table.find(path)
        assert route is not None, "FastAPI's routes are the table's"
        for operation in methods.values():
            _describe_operation(operation, route, is_open=is_open)
        if "post" in methods:
            _describe_post(methods["post"], route, registry, examples, team)
    return document


def _state_seeds(node: object) -> None:
    """Give the largest seed as it is: FastAPI rounds it up to a float, which the server refuses."""
    if isinstance(node, dict):
        if node.get("maximum") == float(LARGEST_SEED):
            node["maximum"] = LARGEST_SEED
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        _state_seeds(child)


def _describe_post(
    operation: Document,
    route: Route,
    registry: PolicyRegistry,
    examples: Examples,
    team: TeamSchemas | None,
) -> None:
    if not isinstance(route, AnswerRoute):
        # A session is begun, or begun anew.
        for status in (408, 413, 415):
            describe_error(operation, status)
        _describe_sessions(operation)
        if "{session_id}" not in route.path:
            describe_error(operation, 409, of="version")
            describe_version(operation, begins_session=True)
        return
    if not route.policy:
        assert team is not None, "its routes stand where there is a team"
        _describe_team_step(operation, route, team, examples)
    else:
        describe = _describe_batch if route.transport == "batch" else _describe_answer
        example = examples[route.policy].get(route.kind)
        describe(operation, route, registry[route.policy], example)
    if not route.has_session:
        describe_error(operation, 409, of="version")
    describe_timing(operation)
    if not route.has_session:
        describe_version(operation, begins_session=False)


def _team_of(registry: PolicyRegistry, table: RouteTable, max_agents: int) -> TeamSchemas | None:
    if registry.agents is None:
        return None
    # A policy's types by its own name, where it has the short ones too.
    namespaces = {page.policy: page.namespace for page in table.schemas()}
    return TeamSchemas(Team(registry, registry.agents), namespaces, max_agents=max_agents)


def _describe_team_step(
    operation: Document,
    route: AnswerRoute,
    team: TeamSchemas,
    examples: Examples,
) -> None:
    team.describe(operation, route, examples)
    describe_errors(operation)


def _describe_operation(operation: Document, route: Route, *, is_open: bool) -> None:
    """Describe what any operation of a route has: its key, and errors of its address."""
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _without_null(parameter["schema"])
    if route.access == "key":
        # The empty one makes the others optional.
        operation["security"] = [*_SECURITY, {}] if is_open else _SECURITY
        describe_error(operation, 401)
        describe_error(operation, 429)
        describe_mistakes(operation, "a parameter or a body that is not as described here")
    if route.path.endswith(("/livez", "/readyz", "/schema")):
        describe_error(operation, 503)
    if "{session_id}" in route.path:
        describe_error(operation, 404)
        describe_error(operation, 409)
        _describe_sessions(operation)


def _describe_sessions(operation: Document) -> None:
    """Describe the errors of the store of sessions."""
    for status in (501, 503):
        describe_error(operation, status, of="sessions")


def refuse_shared_type_names(table: RouteTable, registry: PolicyRegistry) -> None:
    """Refuse policies whose types would have one name in the document.

    Examples: `lift-2` and `lift_2` both have a Lift2Observation; the flat observation of `door` and
    the named one of `door-raw` are both a DoorRawObservation.

    Args:
        table: the server's routes.
        registry: the policies.

    Raises:
        SettingsError: naming the two policies and the type.
    """
    owners: dict[str, str] = {}
    for page in table.schemas():
        for name in policy_schemas(registry[page.policy], namespace=page.namespace):
            if name in owners:
                raise SettingsError(
                    f"policies: {page.policy!r}: its type {name} in OpenAPI has the name of one of "
                    f"{owners[name]!r}; rename the policy"
                )
            owners[name] = page.policy


def _without_null(schema: Document) -> Document:
    """Return the type of a parameter that may be left out, which is all that null meant."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return sized({**kinds[0], **rest})


def _describe_answer(
    operation: Document,
    route: AnswerRoute,
    slot: PolicySlot,
    example: Document | None,
) -> None:
    names = TypeNames(route.namespace)
    body = names.of("RawObservation" if route.is_raw else "Observation")
    content = json_of(body)
    if slot.space.arrays.are_taken(is_raw=route.is_raw):
        content[NPY] = _BINARY
        shape = slot.space.arrays.shape(is_raw=route.is_raw)
        known = "flat" if shape is None else f"of the shape {list(shape)}, or flat"
        operation["description"] += _ARRAY.format(shape=known)
    operation["requestBody"] = {"required": True, "content": content}
    kind = "Distribution" if route.kind == "distribution" else "Prediction"
    answer = json_of(names.of(kind))
    if example is not None:
        answer["application/json"]["example"] = example
    operation["responses"]["200"] = {"description": "The policy's answer", "content": answer}
    if route.transport == "session":
        describe_previous_action(operation, slot)
    elif slot.signature is not None and slot.signature.memory:
        describe_memory(operation, slot)
    _describe_headers(operation["responses"]["200"], route, slot)
    describe_errors(operation)


def _describe_headers(answer: Document, route: AnswerRoute, slot: PolicySlot) -> None:
    """Describe the headers of an answer that tell of its version, and an episode's memory."""
    answer["headers"] = {"x-policy-version": {"description": _VERSION, "schema": _TEXT}}
    if route.transport == "session":
        answer["headers"] |= {"x-step": {"description": _STEP, "schema": {"type": "integer"}}}
    elif slot.signature is not None and slot.signature.memory:
        answer["description"] += _FROM_ZERO
        answer["headers"] |= {
            "x-policy-memory": {"description": _MEMORY, "schema": {"const": "none"}},
        }
        if route.transport == "single":
            answer["headers"] |= {STATE_HEADER: {"description": _NEXT_STATE, "schema": _TEXT}}


def _describe_batch(
    operation: Document,
    route: AnswerRoute,
    slot: PolicySlot,
    example: Document | None,
) -> None:
    names, prefix = TypeNames(route.namespace), "Raw" if route.is_raw else ""
    body = json_of(names.of(f"{prefix}Observation"))
    rows = {"type": "array", "items": body["application/json"]["schema"]}
    columns = names.reference(f"{prefix}ObservationColumns")
    operation["requestBody"] = {"required": True, "content": {**body, NPY: _BINARY}}
    # JSON Schema can't say that several lists are of one length, so that it would allow others.
    if len(slot.space.names(is_raw=route.is_raw)) == 1:
        rows = {"oneOf": [rows, columns]}
    else:
        columns_name = names.of(f"{prefix}ObservationColumns")
        operation["requestBody"]["description"] = _COLUMNS.format(name=columns_name)
    body["application/json"] = {"schema": rows}
    operation["requestBody"]["content"] |= body
    kind = "DistributionBatch" if route.kind == "distribution" else "PredictionBatch"
    answer = json_of(names.of(kind))
    if example is not None:
        answer["application/json"]["example"] = _batch_of_one(example)
    operation["responses"]["200"] = {
        "description": "The policy's answers",
        "content": {**answer, NPY: _BINARY},
    }
    _describe_headers(operation["responses"]["200"], route, slot)
    describe_errors(operation)


def _batch_of_one(answer: Document) -> Document:
    """Return an answer as that of a batch of one observation: values become columns."""
    if "components" not in answer:
        return {name: [value] for name, value in answer.items()}
    texts = ("kind", "name", "labels")
    return {
        "components": [
            {name: value if name in texts else [value] for name, value in part.items()}
            for part in answer["components"]
        ]
    }
