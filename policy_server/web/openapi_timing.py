"""The times of a request in the OpenAPI document: a deadline, and a stamp of its observation."""

from __future__ import annotations

from typing import Any

from policy_server.web.request_timing import (
    HELD_HEADER,
    LONGEST_TIMEOUT_MS,
    STAMP,
    STAMP_HEADER,
    TIMEOUT_HEADER,
)

__all__ = ["describe_timing"]

Document = dict[str, Any]

_TIMEOUT: Document = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "How long the answer is of use, in milliseconds from when the server takes the "
    "request up: one that would come later is not computed, and is a 504",
    "schema": {"type": "integer", "minimum": 1, "maximum": LONGEST_TIMEOUT_MS},
}
_STAMP_EXAMPLE = "1764216000.125"
_STAMP: Document = {
    "name": STAMP_HEADER,
    "in": "header",
    "required": False,
    "description": "A time by the client's own clock, or the number of a tick: the answer repeats "
    f"it beside `{HELD_HEADER}`, so that the client can tell how old its observation is by then",
    "schema": {"type": "string", "pattern": f"^{STAMP.pattern}$"},
    "example": _STAMP_EXAMPLE,
}
_ANSWERED: Document = {
    STAMP_HEADER: {
        "description": f"The `{STAMP_HEADER}` of the request, where it had one",
        "schema": {"type": "string"},
        "example": _STAMP_EXAMPLE,
    },
    HELD_HEADER: {
        "description": "The milliseconds from when the server took the request up until it wrote "
        f"the answer; where the request had an `{STAMP_HEADER}`",
        "schema": {"type": "number", "minimum": 0},
        "example": 0.143,
    },
}


def describe_timing(operation: Document) -> None:
    """Describe the headers of a request's times, and those of its answer.

    They come last: in some languages of the SDKs a header is an argument by its place.

    Args:
        operation: of a route that answers observations, which is changed.
    """
    operation["parameters"] = [*operation.get("parameters", ()), _TIMEOUT, _STAMP]
    answer = operation["responses"]["200"]
    answer["headers"] = answer.get("headers", {}) | _ANSWERED
