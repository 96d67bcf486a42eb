"""The headers of requests that this server reads, and those that it refuses to guess about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from policy_server.errors import ObservationError
from policy_server.observations import problem
from policy_server.web.route_table import AnswerRoute, Route

__all__ = [
    "LONGEST_EPISODE_ID",
    "check_headers",
    "episode_of_session",
    "given_id",
    "read_headers",
]

LONGEST_EPISODE_ID = 256
"""In bytes: the id of an episode is kept while the episode runs."""

_HEADERS = frozenset(
    {
        b"access-control-request-method",
        b"access-token",
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"origin",
        b"x-episode-id",
        b"x-observation-stamp",
        b"x-policy-version",
        b"x-request-id",
        b"x-request-timeout-ms",
        b"x-state",
    }
)
# What routes read of a session's step beside them. Proxies add ids of their own to a client's.
_ONCE = (_HEADERS | {b"x-step", b"x-previous-reward", b"x-previous-action"}) - {b"x-request-id"}
# Headers of a request by itself: a session has its version, episode and memory from its beginning.
_NOT_IN_SESSIONS = frozenset({b"x-episode-id", b"x-policy-version", b"x-state"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, str]:
    """Return the headers that are looked at, by name; the first of several counts.

    Args:
        headers: as ASGI has them: names in lower case.
    """
    return {
        name: value.decode("latin-1") for name, value in reversed([*headers]) if name in _HEADERS
    }


def given_id(headers: Mapping[bytes, str]) -> str:
    """Return the id that a client gave its request; empty where it gave none that is sensible.

    Args:
        headers: as `read_headers` gives them.
    """
    given = headers.get(b"x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else ""


def check_headers(route: Route, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse headers that are given twice, are empty, too long, or not for a route.

    Args:
        route: the route that is asked.
        headers: as ASGI has them: names in lower case.

    Raises:
        ObservationError: naming each such header.
    """
    read = [pair for pair in headers if pair[0] in _ONCE]
    problems = []
    if len({name for name, _ in read}) < len(read):
        problems = [
            _problem("header_repeated", name, f"Input should be given once, not {count} times")
            for name, count in Counter(name for name, _ in read).items()
            if count > 1
        ]
    given = {name for name, _ in read}
    if route.is_of_session:
        problems += [
            _problem("not_allowed", name, "A session has it from its beginning; leave it out")
            for name in sorted(given & _NOT_IN_SESSIONS)
        ]
    elif route.begins_session and b"x-state" in given:
        message = "A session keeps its memory in the server; leave it out"
        problems.append(_problem("not_allowed", b"x-state", message))
    elif isinstance(route, AnswerRoute) and (b"x-state", b"") in read:
        problems.append(_problem("state_token", b"x-state", "Input should be a token, or new"))
    problems += [
        _problem("string_too_long", name, f"Input should have at most {LONGEST_EPISODE_ID} bytes")
        for name, value in read
        if name == b"x-episode-id" and len(value) > LONGEST_EPISODE_ID
    ]
    if problems:
        raise ObservationError(problems)


def episode_of_session(header: str, body: str) -> str:
    """Return the id of the episode that a session begins with.

    Args:
        header: the request's header `x-episode-id`; empty for none.
        body: the `episode_id` of its body; empty for none.

    Raises:
        ObservationError: if the two are different ids.
    """
    if header and body and header != body:
        message = "Input should be the episode_id of the body; leave one of them out"
        raise ObservationError([_problem("not_allowed", b"x-episode-id", message)])
    return body or header


def _problem(kind: str, name: bytes, message: str) -> dict[str, object]:
    return problem(kind, ["header", name.decode()], message)
