"""The answers of a server: received whole, and refusals and failures in words."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import requests
from urllib3.exceptions import LocationValueError, ProtocolError, ReadTimeoutError

from policy_server.errors import ServerAnswerError

__all__ = ["MOST_MEGABYTES", "Answer", "AnswerObject", "receive"]

_IS_IT = "is it a Policy Server that listens there?"
_PIECE_BYTES = 1024 * 1024
MOST_MEGABYTES = 64
"""The most an answer may have; the largest, an OpenAPI document of many policies, has a few."""

_BROKEN = (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError)


class AnswerObject(dict[str, Any]):
    """A JSON object of an answer; a key that it has not is the server's mistake.

    Attributes:
        where: the server, for messages.
    """

    def __init__(self, where: str, items: Mapping[str, Any]) -> None:
        """Own the items.

        Args:
            where: the server, for messages.
            items: of the object.
        """
        super().__init__(items)
        self.where = where

    def __missing__(self, key: str) -> Any:  # noqa: ANN401 -- raises
        """Refuse the answer.

        Raises:
            ServerAnswerError: naming the key.
        """
        raise ServerAnswerError(f"{self.where}: the answer has no {key!r}; {_IS_IT}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a request.

    Attributes:
        where: the server, for messages.
        status: of HTTP.
        reason: the status in words.
        body: unpacked.
    """

    where: str
    status: int
    reason: str
    body: bytes

    def as_object(self) -> AnswerObject:
        """Return the JSON object that it holds.

        Raises:
            ServerAnswerError: if it holds none.
        """
        try:
            value = json.loads(self.body, object_hook=partial(AnswerObject, self.where))
        except (ValueError, RecursionError) as error:
            raise ServerAnswerError(f"{self.where}: the answer is no JSON; {_IS_IT}") from error
        if not isinstance(value, AnswerObject):
            raise ServerAnswerError(f"{self.where}: the answer is no JSON object; {_IS_IT}")
        return value

    def detail(self) -> str | None:
        """Return the reason of a refusal; None where it gives none in one text."""
        found = self._detail()
        return found if isinstance(found, str) and found else None

    def problems(self) -> list[str]:
        """Return the mistakes in an observation, a line each; empty where it names none."""
        found = self._detail()
        if isinstance(found, list):
            with contextlib.suppress(LookupError, TypeError):
                return [_problem(item) for item in found]
        return []

    def _detail(self) -> Any:  # noqa: ANN401 -- any JSON
        with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
            return json.loads(self.body)["detail"]
        return None


def receive(
    session: requests.Session,
    method: str,
    url: str,
    *,
    where: str,
    data: bytes | Iterable[bytes],
    params: Mapping[str, str] | None,
    headers: Mapping[str, str],
    timeout_s: float,
) -> Answer:
    """Send a request, and receive its answer.

    Args:
        session: has a `TimedAdapter`, or another whose answers are timed.
        method: such as POST.
        url: of the route.
        where: the server, for messages.
        data: the body, whole or in parts.
        params: of the query.
        headers: besides the session's.
        timeout_s: the longest wait for the whole answer, in seconds.

    Raises:
        ServerAnswerError: if none comes, or none that can be received.
    """
    with (
        _in_words(where, timeout_s),
        session.request(
            method,
            url,
            data=data,
            params=params,
            headers=headers,
            timeout=timeout_s,
            allow_redirects=False,
            stream=True,
        ) as response,
    ):
        return Answer(
            where=where,
            status=response.status_code,
            reason=response.reason,
            body=_body(response, where),
        )


def _body(response: requests.Response, where: str) -> bytes:
    body = bytearray()
    for piece in response.iter_content(_PIECE_BYTES):
        body += piece
        if len(body) > MOST_MEGABYTES * _PIECE_BYTES:
            raise ServerAnswerError(
                f"{where}: the answer is larger than {MOST_MEGABYTES} MB; {_IS_IT}"
            )
    return bytes(body)


@contextlib.contextmanager
def _in_words(where: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise ServerAnswerError(f"{where}: no secure connection: {error}") from error
    except (requests.RequestException, LocationValueError) as error:
        cause = error.args[0] if error.args else None
        if isinstance(error, requests.Timeout) or isinstance(cause, ReadTimeoutError):
            raise ServerAnswerError(
                f"{where}: no answer within {timeout_s:g} s; look into the server's log"
            ) from error
        if isinstance(error, _BROKEN) or isinstance(cause, ProtocolError):
            raise ServerAnswerError(
                f"{where}: the answer broke off, or is no HTTP; {_IS_IT}"
            ) from error
        raise ServerAnswerError(
            f"{where}: no server answers there; start one with `uvicorn app:app`, or name another "
            "with --url"
        ) from error


def _problem(item: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in item["loc"][1:]) or "the observation"
    return f"  {place}: {item['msg']}"
