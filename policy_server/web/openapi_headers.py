"""The headers of requests in the OpenAPI document, as exactly as JSON Schema can say them.

A header is a text, so that expressions tell its form, in the part of their language that Python,
JavaScript (ECMA-262, which JSON Schema asks for) and Rust share.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from policy_server.policy import PolicySignature
from policy_server.serving import PolicySlot
from policy_server.serving.state_tokens import NEW_EPISODE, STATE_HEADER
from policy_server.web.openapi_schemas import REWARD
from policy_server.web.request_headers import LONGEST_EPISODE_ID

__all__ = [
    "SESSION_ID",
    "STATE_PATTERN",
    "describe_memory",
    "describe_previous_action",
    "describe_version",
    "previous_action_pattern",
]

Document = dict[str, Any]

SESSION_ID: Document = {"pattern": "^[0-9a-f]{32}$"}
"""The form of a session's name."""
# Base64url, without padding, of a signature of 32 bytes and at least one more.
STATE_PATTERN = f"^(?:{NEW_EPISODE}|[A-Za-z0-9_-]{{44,}})$"
"""The form of a state token. That this server has signed it can't be said."""

PREVIOUS_ACTION = "x-previous-action"
# Below 1e37, so that a number of 32 bits holds it.
_NUMBER = r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE](?:-[0-9]+|\+?1?[0-9]))?"
_COMMA = " *, *"
_OF_STEP: list[Document] = [
    {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
    for name, text, schema in (
        (
            "x-previous-reward",
            "The reward of the step before, where the policy takes it; not read without "
            f"`{STATE_HEADER}`",
            REWARD,
        ),
        (
            PREVIOUS_ACTION,
            "The JSON of the action that the environment executed in the step before, where the "
            "policy takes it and it is not the answered one; not read without "
            f"`{STATE_HEADER}`",
            {"type": "string"},
        ),
    )
]
_STATE: Document = {
    "name": STATE_HEADER,
    "in": "header",
    "required": False,
    "description": "`new` for the first step of an episode, then the `x-state` of the answer "
    "before; left out, the answer is that of a first step; what this server has not signed is 422",
    "schema": {"type": "string", "pattern": STATE_PATTERN},
}
_VERSION: Document = {
    "name": "x-policy-version",
    "in": "header",
    "required": False,
    "description": "The version that shall answer, by its name (of a team: `hunter=v1, prey=v2`); "
    "left out or empty, the shares of the traffic choose",
    "schema": {"type": "string"},
}
_EPISODE: Document = {
    "name": "x-episode-id",
    "in": "header",
    "required": False,
    "description": "The client's own name of the episode, in which one version answers",
    "schema": {"type": "string", "maxLength": LONGEST_EPISODE_ID},
}


def describe_memory(operation: Document, slot: PolicySlot) -> None:
    """Describe the headers by which a request carries the memory of its episode.

    Args:
        operation: of a route that answers one observation, which is changed.
        slot: the policy, which has a memory.
    """
    is_taken = slot.live is not None and slot.live.previous_step.is_taken
    _add(operation, _STATE, *(_OF_STEP if is_taken else ()))
    describe_previous_action(operation, slot)


def describe_previous_action(operation: Document, slot: PolicySlot) -> None:
    """Give the header of the previous action the form of the policy's actions.

    Args:
        operation: which is changed, if it has the header.
        slot: the policy.
    """
    takes_action = slot.live is not None and slot.live.previous_step.takes_action
    pattern = previous_action_pattern(slot.signature if takes_action else None)
    operation["parameters"] = [
        {**item, "schema": {**item["schema"], "pattern": pattern}}
        if item["name"] == PREVIOUS_ACTION
        else item
        for item in operation.get("parameters", ())
    ]


def describe_version(operation: Document, *, begins_session: bool) -> None:
    """Describe the headers by which a request chooses the version that answers it.

    Args:
        operation: which is changed.
        begins_session: whether it begins a session, whose body has the episode's id.
    """
    _add(operation, _VERSION, *(() if begins_session else (_EPISODE,)))


def previous_action_pattern(signature: PolicySignature | None) -> str:
    """Return the expression of the texts that `x-previous-action` takes.

    Larger numbers, deeper lists and other ways to write an integer are taken too.

    Args:
        signature: of a policy that takes the previous action; None for one that takes any.
    """
    if signature is None:
        inner = f"(?:{_NUMBER}|{_list_of_any(_NUMBER)})"
        return f"^(?:null|{_NUMBER}|{_list_of_any(inner)})$"
    outputs = signature.action_outputs
    columns = [_NUMBER] * sum(item.columns for item in outputs)
    for part in signature.components or ():
        if part.kind == "categorical":
            columns[part.first_column] = _integer_below(part.size)
    forms = ["null", _list_of(columns)]
    if len(columns) == 1:
        forms.append(columns[0])
    elif any(item.is_vector for item in outputs) and len(outputs) > 1:
        rest = iter(columns)
        own = [[next(rest) for _ in range(item.columns)] for item in outputs]
        forms.append(
            _list_of(
                _list_of(part) if item.is_vector else part[0]
                for item, part in zip(outputs, own, strict=True)
            )
        )
    return f"^(?:{'|'.join(forms)})$"


def _add(operation: Document, *headers: Document) -> None:
    operation["parameters"] = [*operation.get("parameters", ()), *headers]


def _list_of_any(item: str) -> str:
    return rf"\[ *(?:{item}(?:{_COMMA}{item})*)? *\]"


def _list_of(items: Iterable[str]) -> str:
    """Return the expression of a list of exactly these items."""
    runs = ((item, len([*same])) for item, same in groupby(items))
    parts = [
        item if count == 1 else f"{item}(?:{_COMMA}{item}){{{count - 1}}}" for item, count in runs
    ]
    return rf"\[ *{_COMMA.join(parts)} *\]"


def _integer_below(size: int) -> str:
    """Return the expression of the integers from 0 to one less than a size; `1.0` is one too."""
    top = str(size - 1)
    choices = [f"[1-9][0-9]{{{digits}}}" for digits in range(1, len(top) - 1)]
    if len(top) > 1:
        choices.append("[0-9]")
    for at, digit in enumerate(top):
        least = 1 if at == 0 and len(top) > 1 else 0
        if int(digit) > least:
            rest = len(top) - at - 1
            choices.append(f"{top[:at]}[{least}-{int(digit) - 1}][0-9]{{{rest}}}")
    return rf"(?:{'|'.join([*choices, top])})(?:\.0+)?"
