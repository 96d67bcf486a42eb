"""The OpenAPI document: FastAPI's own, with the types that belong to exactly this policy."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from policy_server import __version__
from policy_server.web.gate import OPEN_PATHS
from policy_server.web.openapi_schemas import policy_schemas, sized
from policy_server.web.routes import NPY, ROUTE_TEXTS
from policy_server.web.served_policy import ServedPolicy

__all__ = ["build_openapi"]

Document = dict[str, Any]

_DESCRIPTION = """Serves a trained reinforcement-learning policy: observations in, actions out.

Every route but the health checks and the documentation takes the access key in the header
`access-token`, or as `Authorization: Bearer`. Errors have the shape `{"detail": ...}`; every answer
carries an `x-request-id`. Bodies are JSON in UTF-8, or arrays where a route takes them; with the
header `content-encoding: gzip` they may be packed.

Each route that answers one observation has a twin for web sockets, such as `WS /predict/stream`:
one observation a frame in JSON or MessagePack, one answer a frame, in order, many in flight."""
_ERRORS = {
    401: (
        "no access key, or a wrong one",
        "no access key; send it in the header 'access-token' or as 'Authorization: Bearer'",
    ),
    408: (
        "a body that takes too long to arrive",
        "the body did not arrive within 30 s; send the batch in parts",
    ),
    413: (
        "a body that is too large",
        "the body is larger than 1048576 bytes (POLICY_SERVER_MAX_BODY_BYTES)",
    ),
    415: (
        "a body that is packed or encoded in a way that is not taken",
        "content-encoding 'br' is not taken; send the body packed with gzip, or as it is",
    ),
    500: (
        "a policy that fails",
        "the policy failed on this observation; the server's log has the reason",
    ),
    501: (
        "an answer that the policy's family does not allow",
        "this policy's action distribution could not be proved",
    ),
    503: (
        "overload, or a policy that is not ready",
        "4096 observations are waiting already; try again in a second",
    ),
}
_COLUMNS = (
    "In place of the list an object is taken too, with a list for each field, all of one length: "
    "the schema `ObservationColumns`"
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_SECURITY: list[dict[str, list[str]]] = [{"accessToken": []}, {"bearer": []}]


def build_openapi(app: FastAPI, policy: ServedPolicy) -> Document:
    """Return the OpenAPI 3.1 document.

    Args:
        app: whose routes are described.
        policy: whose observations and actions are described; their widths are exact once it is
            loaded.
    """
    document = get_openapi(
        title=app.title,
        version=__version__,
        description=_DESCRIPTION,
        routes=app.routes,
        servers=[{"url": policy.schema.root_path}] if policy.schema.root_path else None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    components = document.setdefault("components", {})
    components["securitySchemes"] = {
        "accessToken": {"type": "apiKey", "in": "header", "name": "access-token"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    components["schemas"] = {**components.get("schemas", {}), **policy_schemas(policy)}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _without_null(parameter["schema"])
            if path not in OPEN_PATHS:
                operation["security"] = _SECURITY
                _describe_error(operation, 401)
            if path == "/readyz":
                _describe_error(operation, 503)
        name, _, tail = path.strip("/").partition("/")
        kind = name.removesuffix("_raw")
        if kind in ROUTE_TEXTS:
            describe = _describe_batch if tail else _describe_answer
            describe(methods["post"], policy, kind, is_raw=name.endswith("_raw"))
    return document


def _without_null(schema: Document) -> Document:
    """Return the type of a parameter that may be left out, which is all that null meant."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return sized({**kinds[0], **rest})


def _describe_answer(operation: Document, policy: ServedPolicy, kind: str, *, is_raw: bool) -> None:
    body = "RawObservation" if is_raw else "Observation"
    operation["requestBody"] = {"required": True, "content": _json_of(body)}
    answer = _json_of("Distribution" if kind == "distribution" else "Prediction")
    example = policy.examples.get(kind)
    if example is not None:
        answer["application/json"]["example"] = example
    operation["responses"]["200"] = {"description": "The policy's answer", "content": answer}
    _describe_errors(operation, 413, 415, 500, 501, 503)


def _describe_batch(operation: Document, policy: ServedPolicy, kind: str, *, is_raw: bool) -> None:
    prefix = "Raw" if is_raw else ""
    body = _json_of(f"{prefix}Observation")
    rows = {"type": "array", "items": body["application/json"]["schema"]}
    columns = {"$ref": f"#/components/schemas/{prefix}ObservationColumns"}
    operation["requestBody"] = {"required": True, "content": {**body, NPY: _BINARY}}
    # JSON Schema can't say that several lists are of one length, so that it would allow others.
    if len(policy.space.names(is_raw=is_raw)) == 1:
        rows = {"oneOf": [rows, columns]}
    else:
        operation["requestBody"]["description"] = _COLUMNS
    body["application/json"] = {"schema": rows}
    operation["requestBody"]["content"] |= body
    answer = _json_of("DistributionBatch" if kind == "distribution" else "PredictionBatch")
    example = policy.examples.get(kind)
    if example is not None:
        answer["application/json"]["example"] = _batch_of_one(example)
    operation["responses"]["200"] = {
        "description": "The policy's answers",
        "content": {**answer, NPY: _BINARY},
    }
    _describe_errors(operation, 408, 413, 415, 500, 501, 503)


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


def _describe_errors(operation: Document, *statuses: int) -> None:
    operation["responses"]["422"] = {
        "description": "An observation that is not what the schema describes, or a slip in the "
        "name of a query parameter; names each",
        "content": _json_of("HTTPValidationError"),
    }
    for status in statuses:
        _describe_error(operation, status)


def _describe_error(operation: Document, status: int) -> None:
    text, example = _ERRORS[status]
    content = _json_of("Problem")
    content["application/json"]["example"] = {"detail": example}
    operation["responses"][str(status)] = {"description": text.capitalize(), "content": content}


def _json_of(name: str) -> Document:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
