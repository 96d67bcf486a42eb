"""Values that came in another encoding than JSON, such as MessagePack, as JSON."""

from __future__ import annotations

import json

from policy_server.errors import ObservationError
from policy_server.observations.models import problem

__all__ = ["as_json"]

# The deepest lists in lists that pydantic reads in JSON.
_DEEPEST = 200


def as_json(values: object) -> bytes:
    """Return values as JSON, for messages that are worded by it.

    Args:
        values: as MessagePack gives them.

    Raises:
        ObservationError: if JSON has no such values, or pydantic reads none so deeply nested.
    """
    message = "Input should hold numbers, booleans, text, lists and maps only, less deeply nested"
    refused = ObservationError([problem("value_invalid", ["body"], message)])
    if _is_deeper(values, _DEEPEST):
        raise refused
    try:
        return json.dumps(values).encode()
    except TypeError as error:
        raise refused from error


def _is_deeper(values: object, levels: int) -> bool:
    containers = [values]
    for _ in range(levels + 1):
        # Not by recursion, whose limit is another one in each version of Python.
        containers = [
            item
            for container in containers
            if isinstance(container, (list, dict))
            for item in (container.values() if isinstance(container, dict) else container)
        ]
    return bool(containers)
