"""The OpenAPI document as the generators understand it.

Each change has its reason in the code that openapi-generator 7.26.0 writes. The document that the
server shows stays exact.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from policy_server.policy import LARGEST_SEED
from policy_server.schema import EXACT_INTEGER_MAX, FLOAT32_MAX

__all__ = ["CLIENTS_TAG", "Document", "has_memory", "prepare_document"]

Document = dict[str, Any]

CLIENTS_TAG = "Clients"
_KEY_SCHEME = "accessToken"
_NULL = {"type": "null"}
_JSON = "application/json"
# FastAPI writes the bound of a seed as a float, which rounds 2^63 - 1 up.
_WIDEST = (FLOAT32_MAX, EXACT_INTEGER_MAX, LARGEST_SEED)
# For arrays alone, and for experiments with versions: in some languages each header is an argument
# by its place, so that a new one would break programs.
_LEFT_OUT = frozenset({"log_probability", "x-policy-version", "x-episode-id"})
_STATE = "x-state"
_STEP = "x-step"
_BY_AGENT = "ByAgent"
# What is keyed by names that somebody chose, and what is no schema.
_NAMES = frozenset({"properties", "patternProperties", "schemas", "paths", "responses", "content"})
_VALUES = frozenset({"example", "examples", "default", "const", "enum"})
_NUMBERS = ("integer", "number", "boolean")


def prepare_document(document: Document, *, url: str) -> Document:
    """Return the OpenAPI document that an SDK is generated from.

    Args:
        document: the OpenAPI document as it is served.
        url: the server's address: with the proxy's prefix, or without one if the document
            names it.

    Returns:
        A copy. It is the same for two starts of the same policy.
    """
    prepared = copy.deepcopy(document)
    prepared["servers"] = [{"url": _base_url(document, url)}]
    # No program needs a client library that downloads client libraries.
    prepared["paths"] = {
        path: methods
        for path, methods in prepared["paths"].items()
        if not any(CLIENTS_TAG in operation.get("tags", ()) for operation in methods.values())
    }
    _use_one_key(prepared)
    _drop_answers(prepared)
    _use_one_form(prepared)
    _number_steps(prepared)
    _use_maps(prepared)
    for node in list(_nodes(prepared)):
        _simplify(node)
    return prepared


def has_memory(document: Document) -> bool:
    """Return whether the policy of the short addresses carries a state from step to step.

    Args:
        document: the OpenAPI document, as served or prepared.
    """
    parameters = document["paths"]["/predict_raw"]["post"].get("parameters", ())
    return any(parameter["name"] == _STATE for parameter in parameters)


def _base_url(document: Document, url: str) -> str:
    servers = document.get("servers") or [{"url": ""}]
    prefix = str(servers[0]["url"])
    if urlsplit(prefix).scheme:
        return prefix
    base = url.rstrip("/")
    return base if base.endswith(prefix.rstrip("/")) else base + prefix.rstrip("/")


def _use_one_key(document: Document) -> None:
    """Leave one way to send the key: Scala's methods would take an argument for each."""
    schemes = document.get("components", {}).get("securitySchemes", {})
    if _KEY_SCHEME not in schemes:
        return
    document["components"]["securitySchemes"] = {_KEY_SCHEME: schemes[_KEY_SCHEME]}
    for methods in document["paths"].values():
        for operation in methods.values():
            if "security" in operation:
                operation["security"] = [{_KEY_SCHEME: []}]


def _drop_answers(document: Document) -> None:
    """Remove the real answers that are examples: without a seed they differ from start to start.

    With them the SDK would be generated again at each start.
    """
    for methods in document["paths"].values():
        for operation in methods.values():
            for response in operation.get("responses", {}).values():
                for content in response.get("content", {}).values():
                    content.pop("example", None)


def _use_one_form(document: Document) -> None:
    """Leave only JSON where a body may be an array too, and only rows where it may be columns.

    Of several content types and of types without a name, the generators write one method with
    untyped arguments, or none. Parameters that few programs need go with these.
    """
    for methods in document["paths"].values():
        for operation in methods.values():
            if "parameters" in operation:
                operation["parameters"] = [
                    item for item in operation["parameters"] if item["name"] not in _LEFT_OUT
                ]
            bodies = [operation.get("requestBody", {}), *operation.get("responses", {}).values()]
            for body in bodies:
                if _JSON not in body.get("content", {}):
                    continue
                form = body["content"] = {_JSON: body["content"][_JSON]}
                choices = form[_JSON]["schema"].get("oneOf")
                if choices:
                    form[_JSON]["schema"] = choices[0]


def _number_steps(document: Document) -> None:
    """Ask for the number of each step of a session: without it a step sent again is another one."""
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == _STEP:
                    parameter["required"] = True


def _use_maps(document: Document) -> None:
    """Make what is given by agent a map: the generators know no types by patterns of names."""
    schemas = document.get("components", {}).get("schemas", {})
    for name, schema in schemas.items():
        if not name.endswith(_BY_AGENT):
            continue
        kinds = [
            *schema.get("properties", {}).values(),
            *schema.get("patternProperties", {}).values(),
        ]
        is_one = all(kind == kinds[0] for kind in kinds)
        schemas[name] = {
            "type": "object",
            "title": name,
            "additionalProperties": kinds[0] if is_one else {},
        }


def _nodes(node: object) -> Iterator[Document]:
    """Yield the objects of a document whose keys are words of OpenAPI or JSON Schema."""
    if isinstance(node, list):
        for child in node:
            yield from _nodes(child)
    if not isinstance(node, dict):
        return
    yield node
    for key, child in list(node.items()):
        if key in _NAMES and isinstance(child, dict):
            # An observation may be called as a word is.
            for named in list(child.values()):
                yield from _nodes(named)
        elif key not in _VALUES:
            yield from _nodes(child)


def _simplify(node: Document) -> None:
    choices = node.get("anyOf")
    if isinstance(choices, list):
        # Of a number or a list, Java's code doesn't compile and Scala's is an empty class.
        del node["anyOf"]
        kinds = [choice for choice in choices if choice != _NULL]
        if len(kinds) == 1:
            node |= {key: value for key, value in kinds[0].items() if key not in node}
    _use_one_type(node)
    _drop_conditions(node)
    if node.get("type") == "object":
        # The generators know no conditions; the server refuses what they exclude.
        node.pop("if", None)
        node.pop("then", None)
    # Few languages know a type for each item; `items` has one that fits all of them.
    node.pop("prefixItems", None)
    # The generators know no conditions on some of the items, such as a 1 in an action mask.
    node.pop("contains", None)
    node.pop("not", None)
    # Python's code has a property of that name for some of them. Its absence means the same.
    if node.get("additionalProperties") is False:
        del node["additionalProperties"]
    if isinstance(node.get("properties"), dict):
        _allow_null(node)


def _use_one_type(node: Document) -> None:
    """Leave the first type of a flag, which may be a number or a truth value.

    Of two types that are not null, the generators write values without a type.
    """
    types = node.get("type")
    if not isinstance(types, list) or "boolean" not in types or "null" in types:
        return
    node["type"] = types[0]
    node.pop("multipleOf", None)
    if types[0] == "boolean":
        del node["minimum"], node["maximum"]


def _drop_conditions(node: Document) -> None:
    """Remove conditions on numbers and texts that some generator writes wrongly."""
    for bound in ("minimum", "maximum"):
        # Bounds that a type has in any case: with more than 64 bits, C#'s code doesn't compile.
        if abs(node.get(bound, 0)) in _WIDEST:
            del node[bound]
    if "\\" in str(node.get("pattern", "")):
        # R's code repeats the expression in quotes, where a backslash is no character of a text.
        del node["pattern"]


def _allow_null(node: Document) -> None:
    """Let properties be missing or null that may be null."""
    properties = node["properties"]
    if "required" in node:
        # Scala has an Option only for a property that may be missing.
        node["required"] = [name for name in node["required"] if not _is_nullable(properties[name])]
    for schema in properties.values():
        _keep_null(schema)


def _keep_null(schema: Document) -> None:
    """Write a number that may be null as a type with null: without it C# refuses the null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != _NULL]
    if len(kinds) == 1 and _NULL in schema["anyOf"] and kinds[0].get("type") in _NUMBERS:
        del schema["anyOf"]
        schema |= {**kinds[0], "type": [kinds[0]["type"], "null"]}


def _is_nullable(schema: Document) -> bool:
    kind = schema.get("type")
    return (isinstance(kind, list) and "null" in kind) or _NULL in schema.get("anyOf", ())
