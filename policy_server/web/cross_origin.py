"""Pages of other origins: the headers by which a browser lets their scripts call this server.

Source: the Fetch standard, "CORS protocol". The key travels in a header, so that no credentials of
the browser's own (cookies, client certificates) are involved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from http import HTTPStatus

from starlette.types import Message, Scope, Send

__all__ = ["ANY_ORIGIN", "CrossOrigin"]

Headers = list[tuple[bytes, bytes]]

ANY_ORIGIN = "*"
# Beside the few that every script may read.
_EXPOSED = (
    b"x-request-id, x-policy-version, x-policy-memory, x-step, x-state, retry-after, allow, etag, "
    b"content-disposition, x-observation-stamp, x-held-ms"
)
# `*` stands for all but `authorization`; not every browser knows it.
_TAKEN = (
    b"access-token, authorization, content-type, content-encoding, if-none-match, x-request-id, "
    b"x-episode-id, x-step, x-state, x-previous-action, x-previous-reward, x-request-timeout-ms, "
    b"x-observation-stamp, *"
)
_METHODS = b"GET, HEAD, POST, DELETE"
_MAX_AGE_S = b"600"


class CrossOrigin:
    """The origins whose pages may call the server, and the headers for their browsers."""

    def __init__(self, origins: Collection[str]) -> None:
        """Own the list of origins.

        Args:
            origins: such as `https://app.example.com`; `*` for all.
        """
        self._allows_all = ANY_ORIGIN in origins
        self._origins = frozenset(origins)

    def allows(self, origin: str) -> bool:
        """Return whether pages of an origin may call the server.

        Args:
            origin: the request's header.
        """
        return self._allows_all or origin.lower() in self._origins

    def allows_stream(self, scope: Scope, headers: Mapping[bytes, str]) -> bool:
        """Return whether a web socket may be opened.

        Args:
            scope: the handshake's.
            headers: its headers.

        Returns:
            True for programs, for pages of the server's own address, and for those of the origins.
        """
        origin = headers.get(b"origin")
        if origin is None or self.allows(origin):
            return True
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        return origin.lower().partition("://")[2] == host.decode("latin-1").lower()

    def headers(self, origin: str | None) -> Headers:
        """Return the headers that every response carries.

        Args:
            origin: the request's header, if it has one.
        """
        if self._allows_all:
            return [
                (b"access-control-allow-origin", b"*"),
                (b"access-control-expose-headers", _EXPOSED),
            ]
        # A cache may not give the answer to one origin to another.
        vary = (b"vary", b"origin")
        if origin is None or not self.allows(origin):
            return [vary]
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", _EXPOSED),
            vary,
        ]

    def is_preflight(self, scope: Scope, headers: Mapping[bytes, str]) -> bool:
        """Return whether a browser asks if a page of an allowed origin may send a request.

        Args:
            scope: the request's.
            headers: its headers.
        """
        return (
            scope.get("method") == "OPTIONS"
            and b"access-control-request-method" in headers
            and self.allows(headers.get(b"origin", ""))
        )

    @staticmethod
    async def answer_preflight(send: Send) -> None:
        """Answer a preflight; no key is asked for, since browsers send none with it.

        Args:
            send: sends the answer, and has to add the headers of `headers`.
        """
        start: Message = {
            "type": "http.response.start",
            "status": HTTPStatus.NO_CONTENT,
            "headers": [
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-allow-headers", _TAKEN),
                (b"access-control-max-age", _MAX_AGE_S),
            ],
        }
        await send(start)
        await send({"type": "http.response.body", "body": b""})
