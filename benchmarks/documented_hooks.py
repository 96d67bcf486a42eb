"""Hooks of schemathesis: cases that say nothing of the server, by the headers they have."""

from __future__ import annotations

import json
from typing import Any

import schemathesis

_UNKNOWN = "x-schemathesis-unknown-property"
_TOKEN, _ACTION = "x-state", "x-previous-action"


@schemathesis.hook
def filter_case(_context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Return whether a case's headers are such that the document decides about them.

    HTTP allows any header, and JSON Schema can't say that a header is a signed token or JSON.
    """
    headers = {name.lower(): str(value) for name, value in dict(case.headers or {}).items()}
    return (
        _UNKNOWN not in headers
        and headers.get(_TOKEN, "new") == "new"
        and _is_json(headers.get(_ACTION, "0"))
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
