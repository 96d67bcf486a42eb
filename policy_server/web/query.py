"""Query parameters: a slip in the name of one that a route knows is refused, not ignored.

Gateways add parameters of their own to an address, so that unknown ones are ignored. But `?sed=7`
would be answered by a draw that no seed makes reproducible, without a word; and so would the draws
of a session that begins with `?seed=7`, whose seed stands in its body. Numbers in queries and
headers are digits: `1_0` is Python's 10 only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from typing import Any, get_args

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import PydanticCustomError
from starlette.datastructures import QueryParams

from policy_server.errors import ObservationError
from policy_server.observations import problem

__all__ = ["QueryCheckedRoute", "check_query", "in_digits"]

_NUMBER = re.compile(r"[A-Za-z0-9.+-]+")
_SEPARATORS = str.maketrans("", "", "_-. ")
# In shorter names one letter makes another word: `speed` and `need` are no `seed`.
_FEWEST_LETTERS = 6


class QueryCheckedRoute(APIRoute):
    """A route that checks a request's query against the parameters that it declares itself.

    Source: FastAPI's documentation, "Custom Request and APIRoute class". A dependency would cost
    requests without a query 30 microseconds too.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request; see `check_query` for its errors."""
        answer = super().get_route_handler()
        known = [parameter.alias for parameter in self.dependant.query_params]
        in_body = {
            name
            for parameter in self.dependant.body_params
            for model in get_args(parameter.field_info.annotation)
            for name in getattr(model, "model_fields", ())
        }

        async def checked_answer(request: Request) -> Response:
            if request.scope["query_string"]:
                check_query(request.query_params, known, in_body=in_body)
            return await answer(request)

        return checked_answer


def check_query(
    query: QueryParams, known: Collection[str], *, in_body: Collection[str] = ()
) -> None:
    """Refuse names that are a slip away from a known parameter, and known ones given twice.

    Args:
        query: the query of a request or of a web socket's handshake.
        known: the parameters that its route takes.
        in_body: the names of what its route takes in the body.

    Raises:
        ObservationError: naming each such parameter.
    """
    problems = []
    for name, count in Counter(name for name, _ in query.multi_items()).items():
        if name in in_body:
            message = "Input stands in the body of this route"
            problems.append(problem("parameter_unknown", ["query", name], message))
        elif name in known:
            if count > 1:
                message = f"Input should be given once, not {count} times"
                problems.append(problem("parameter_repeated", ["query", name], message))
        elif (meant := _meant_by(name, known)) is not None:
            message = f"Input is no parameter of this route; did you mean '{meant}'?"
            problems.append(problem("parameter_unknown", ["query", name], message))
    if problems:
        raise ObservationError(problems)


def in_digits(text: object) -> object:
    """Return the text of a number as it is, for pydantic to read.

    Args:
        text: of a query or a header; what is no text is left to pydantic.

    Raises:
        PydanticCustomError: if it has underscores or spaces, which Python's numbers may have.
    """
    if isinstance(text, str) and not _NUMBER.fullmatch(text):
        raise PydanticCustomError("number_parsing", "Input should be a number in digits")
    return text


def _meant_by(name: str, known: Collection[str]) -> str | None:
    return next((item for item in known if _is_slip(name, item)), None)


def _is_slip(name: str, known: str) -> bool:
    """Return whether a name is a known one but for its case, its separators or one slip.

    A slip leaves a letter out, swaps two neighbours, doubles a letter, adds one at the end, or
    replaces any but the first; in a known name of six letters or more it is any one edit.
    """
    given, wanted = (text.lower().translate(_SEPARATORS) for text in (name, known))
    if given == wanted:
        return True
    if len(given) == len(wanted) - 1:
        return _added_at(wanted, given) is not None
    if len(given) == len(wanted):
        return _has_one_other(given, wanted)
    index = _added_at(given, wanted)
    is_long = len(wanted) >= _FEWEST_LETTERS
    return index is not None and (is_long or index == len(wanted) or _is_double(given, index))


def _added_at(longer: str, shorter: str) -> int | None:
    """Return the last index at which one more letter stands; None if that is not all."""
    if len(longer) != len(shorter) + 1:
        return None
    indices = (
        at for at in reversed(range(len(longer))) if longer[:at] + longer[at + 1 :] == shorter
    )
    return next(indices, None)


def _is_double(text: str, index: int) -> bool:
    return index > 0 and text[index - 1] == text[index]


def _has_one_other(given: str, wanted: str) -> bool:
    """Return whether one letter is another one, or two neighbours are swapped."""
    others = [at for at, letter in enumerate(given) if letter != wanted[at]]
    if len(others) == 1:
        return others[0] > 0 or len(wanted) >= _FEWEST_LETTERS
    is_pair = len(others) == 2 and others[1] == others[0] + 1
    return (
        is_pair and given[others[0]] == wanted[others[1]] and given[others[1]] == wanted[others[0]]
    )
