"""Bodies that FastAPI reads: JSON in UTF-8, whatever their headers say, as for observations."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Request, Response
from pydantic import BeforeValidator, Field, StrictInt, TypeAdapter

from policy_server.observations import validate
from policy_server.policy import LARGEST_SEED
from policy_server.web.media_types import JSON
from policy_server.web.query import QueryCheckedRoute

__all__ = ["BodySeed", "JsonRoute"]

_CONTENT_TYPE = b"content-type"
_ANYTHING = TypeAdapter(Any)


def _as_integer(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# A whole number however JSON writes it: `7.0` too, as JSON Schema has it.
BodySeed = Annotated[StrictInt, Field(ge=0, le=LARGEST_SEED), BeforeValidator(_as_integer)]


class JsonRoute(QueryCheckedRoute):
    """A route whose body is JSON, without a word of it in the header `content-type`.

    FastAPI takes a body of another type for bytes: `curl -d` calls it a form.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request.

        It raises ObservationError for a body that is no JSON, and UnsupportedEncodingError for one
        that is no text in UTF-8.
        """
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer

        async def answer_json(request: Request) -> Response:
            if body := await request.body():
                validate(_ANYTHING.validate_json, body)
            headers = [pair for pair in request.scope["headers"] if pair[0] != _CONTENT_TYPE]
            request.scope["headers"] = [*headers, (_CONTENT_TYPE, JSON.encode())]
            return await answer(request)

        return answer_json
