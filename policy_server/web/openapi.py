"""The OpenAPI document: FastAPI's own, with the types that belong to exactly this policy."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from policy_server import __version__
from policy_server.web.gate import OPEN_PATHS
from policy_server.web.routes import ROUTE_TEXTS
from policy_server.web.served_policy import ServedPolicy

__all__ = ["build_openapi"]

Document = dict[str, Any]

_DESCRIPTION = """Serves a trained reinforcement-learning policy: observations in, actions out.

Every route but the health checks and the documentation takes the access key in the header
`access-token`, or as `Authorization: Bearer`. Errors have the shape `{"detail": ...}`; every answer
carries an `x-request-id`."""
_ERRORS = {
    401: (
        "no access key, or a wrong one",
        "no access key; send it in the header 'access-token' or as 'Authorization: Bearer'",
    ),
    413: (
        "a body that is too large",
        "the body is larger than 1048576 bytes (POLICY_SERVER_MAX_BODY_BYTES)",
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
    components["schemas"] = {**components.get("schemas", {}), **_schemas(policy)}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _without_null(parameter["schema"])
            if path not in OPEN_PATHS:
                operation["security"] = _SECURITY
                _describe_error(operation, 401)
            if path == "/readyz":
                _describe_error(operation, 503)
        kind = path.strip("/").removesuffix("_raw")
        if kind in ROUTE_TEXTS:
            _describe_answer(methods["post"], policy, kind, is_raw=path.endswith("_raw"))
    return document


def _without_null(schema: Document) -> Document:
    """Return the type of a parameter that may be left out, which is all that null meant."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return _sized({**kinds[0], **rest})


def _sized(schema: Document) -> Document:
    """Return the schema with the size of its numbers, as typed languages need it.

    Without one, a generated client has 32-bit integers and decimal numbers of any length.
    """
    sizes = {"integer": "int64", "number": "double"}
    kind = schema.get("type")
    sized = {"format": sizes[kind], **schema} if kind in sizes else dict(schema)
    if "properties" in schema:
        sized["properties"] = {name: _sized(part) for name, part in schema["properties"].items()}
    if "items" in schema:
        sized["items"] = _sized(schema["items"])
    return sized


def _describe_answer(operation: Document, policy: ServedPolicy, kind: str, *, is_raw: bool) -> None:
    body = "RawObservation" if is_raw else "Observation"
    operation["requestBody"] = {"required": True, "content": _json_of(body)}
    answer = _json_of("Distribution" if kind == "distribution" else "Prediction")
    example = policy.examples.get(kind)
    if example is not None:
        answer["application/json"]["example"] = example
    operation["responses"]["200"] = {"description": "The policy's answer", "content": answer}
    operation["responses"]["422"] = {
        "description": "An observation that is not what the schema describes; names each field",
        "content": _json_of("HTTPValidationError"),
    }
    for status in (413, 500, 501, 503):
        _describe_error(operation, status)


def _describe_error(operation: Document, status: int) -> None:
    text, example = _ERRORS[status]
    content = _json_of("Problem")
    content["application/json"]["example"] = {"detail": example}
    operation["responses"][str(status)] = {"description": text.capitalize(), "content": content}


def _json_of(name: str) -> Document:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _schemas(policy: ServedPolicy) -> Document:
    schemas: Document = {
        "RawObservation": _sized(policy.space.raw_json_schema(policy.width)),
        "Prediction": _prediction(policy),
        "Distribution": _object(
            {"components": {"type": "array", "items": {"$ref": "#/components/schemas/Component"}}}
        ),
        "Component": _component(),
        "Problem": _object(
            {"detail": {"type": "string", "description": "What is wrong, in one sentence"}}
        ),
        "HTTPValidationError": _object(
            {"detail": {"type": "array", "items": {"$ref": "#/components/schemas/ValidationError"}}}
        ),
        "ValidationError": _object(
            {
                "loc": {
                    "type": "array",
                    "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                },
                "msg": {"type": "string"},
                "type": {"type": "string"},
            }
        ),
    }
    observation = policy.space.json_schema()
    return schemas if observation is None else {"Observation": _sized(observation), **schemas}


def _object(properties: Document, *, required: list[str] | None = None) -> Document:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }


def _prediction(policy: ServedPolicy) -> Document:
    return _object(
        {
            "actions": {
                "type": "array",
                "items": _action_items(policy),
                "description": "The whole action: one value an action component, a nested list for "
                "a vector in a tuple",
            },
            "probability": {
                "type": ["number", "null"],
                "format": "float",
                "description": "The probability of the whole action: a density where actions are "
                "continuous, null where the model gives none",
            },
        }
    )


def _action_items(policy: ServedPolicy) -> Document:
    signature = policy.signature
    number = {"type": "number", "format": "float"}
    if signature is None:
        return {"type": "integer"} if policy.schema.discrete else number
    kinds: list[Document] = []
    for action in signature.action_outputs:
        scalar: Document = {"type": "integer"} if action.is_integer else number
        is_nested = len(signature.action_outputs) > 1 and action.is_vector
        kind = {"type": "array", "items": scalar} if is_nested else scalar
        if kind not in kinds:
            kinds.append(kind)
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _component() -> Document:
    numbers = {"type": "array", "items": {"type": "number", "format": "float"}}
    return _object(
        {
            "kind": {
                "type": "string",
                "enum": ["categorical", "normal", "squashed_normal", "deterministic"],
            },
            "name": {"type": "string", "description": "The component's name in the schema"},
            "probabilities": {
                **numbers,
                "description": "Categorical: one probability an action; the index is the action",
            },
            "labels": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Names of the actions, in order",
            },
            "mean": {
                **numbers,
                "description": "Normal: the mean of each dimension; before the tanh where it is "
                "squashed",
            },
            "std": {
                **numbers,
                "description": "Normal: the standard deviation of each dimension, likewise",
            },
            "value": {**numbers, "description": "Deterministic: the action itself"},
        },
        required=["kind"],
    )
