"""The errors of routes in the OpenAPI document."""

from __future__ import annotations

from typing import Any

__all__ = ["describe_error", "describe_errors", "describe_mistakes", "json_of"]

Document = dict[str, Any]

_ERRORS = {
    401: (
        "no access key, or a wrong one",
        "no access key; send it in the header 'access-token' or as 'Authorization: Bearer'",
    ),
    408: (
        "a body that takes too long to arrive",
        "the request's body did not arrive within 30 s, and one second for each 4096 bytes",
    ),
    404: (
        "a session that is unknown, or has ended",
        "session '8f3a' is unknown, has ended or was idle for too long "
        "(POLICY_SERVER_SESSION_IDLE_S); begin another one with POST /sessions",
    ),
    409: (
        "a step that does not follow the last one, or whose version is not loaded any more",
        "x-step 7: expected 3, the next step of this session or 2 again",
    ),
    413: (
        "a body that is too large",
        "the body is larger than 1048576 bytes (POLICY_SERVER_MAX_BODY_BYTES)",
    ),
    415: (
        "a body that is packed or encoded in a way that is not taken",
        "content-encoding 'br' is not taken; send the body packed with gzip, or as it is",
    ),
    429: (
        "a client that has asked more than its access key or its address may",
        "key 'plant': expected at most 100 observations a second, got more; try again in 2 s",
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
    504: (
        "a deadline that the request has set (x-request-timeout-ms), and that has passed",
        "the deadline that this request set has passed; allow it more milliseconds "
        "(x-request-timeout-ms, or timeout_ms in a frame)",
    ),
}

# Those of every route that answers observations.
_OF_ANSWERS = (408, 413, 415, 500, 501, 503, 504)

# Where a status has another reason than on most routes.
_ERRORS_OF = {
    ("version", 409): (
        "a version that is asked for (x-policy-version), and is not loaded",
        "x-policy-version: 'v3' is not loaded; expected one of v1, v2",
    ),
    ("sessions", 501): (
        "web processes that share no sessions, or a seed that the policy can't take",
        "several web processes answer here, and share no sessions; give them a Redis "
        "(POLICY_SERVER_SESSIONS_URL), or let the answers carry the memory (header x-state: new)",
    ),
    ("sessions", 503): (
        "a store of sessions that can't be reached, or is full, or a policy that is not ready",
        "sessions can't be reached: their Redis (POLICY_SERVER_SESSIONS_URL) gave no answer in "
        "time; try again, a step with its number in x-step",
    ),
}


def describe_errors(operation: Document) -> None:
    """Describe the errors of a route that answers observations.

    Args:
        operation: the route's in the document, which is changed.
    """
    describe_mistakes(operation, "an observation that is not what the schema describes")
    for status in _OF_ANSWERS:
        describe_error(operation, status)


def describe_mistakes(operation: Document, text: str) -> None:
    """Describe a 422, which names each mistake.

    Args:
        operation: the route's in the document, which is changed.
        text: the mistakes in what the route itself takes.
    """
    operation["responses"]["422"] = {
        "description": f"{text.capitalize()}, a slip in the name of a query parameter, or a header "
        "that is given twice; names each",
        "content": json_of("HTTPValidationError"),
    }


def describe_error(operation: Document, status: int, *, of: str = "") -> None:
    """Describe an error that is one sentence, with an example.

    Args:
        operation: the route's in the document, which is changed.
        status: the error's status.
        of: `version` or `sessions`, where it is about these; empty for its usual reason.
    """
    text, example = _ERRORS_OF[of, status] if of else _ERRORS[status]
    content = json_of("Problem")
    content["application/json"]["example"] = {"detail": example}
    operation["responses"][str(status)] = {"description": text.capitalize(), "content": content}


def json_of(name: str) -> Document:
    """Return the contents of a body in JSON.

    Args:
        name: the name of its type in the document.
    """
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
