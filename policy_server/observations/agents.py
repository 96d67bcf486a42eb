"""The body of a team's step: an observation for each agent, by its id."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from policy_server.errors import ObservationError
from policy_server.observations.models import problem, validate

__all__ = ["check_agents", "parse_agents"]

_BY_AGENT = TypeAdapter(dict[str, Any])


def parse_agents(body: bytes) -> dict[str, Any]:
    """Return the values in the JSON of a team's observations, which are not checked yet.

    Args:
        body: UTF-8 JSON, an object with an observation for each agent.

    Raises:
        ObservationError: if it is no JSON, or no object.
        UnsupportedEncodingError: if it is no text in UTF-8.
    """
    return validate(_BY_AGENT.validate_json, body)


def check_agents(values: object) -> dict[str, Any]:
    """Return a team's observations that came in another encoding, such as MessagePack.

    Args:
        values: dictionaries, lists and scalars.

    Raises:
        ObservationError: if they are no dictionary of agents.
    """
    if isinstance(values, dict) and all(isinstance(agent, str) for agent in values):
        return values
    message = "Input should be a valid dictionary"
    raise ObservationError([problem("dict_type", ["body"], message)])
