"""Requests that offer HTTP/2 are answered by HTTP/1.1, with their body.

Java's own HttpClient and `curl --http2` send `Upgrade: h2c` with their first request. A server may
ignore that (RFC 9110, section 7.8); uvicorn's fast parser stops reading there and loses the body
(Kludex/uvicorn#2722).
"""

from __future__ import annotations

import re

__all__ = ["ignore_http2_offers", "without_http2_offer"]

_OFFER = b"h2c"
_REQUEST_LINE = re.compile(rb"[A-Z]+ \S+ HTTP/1\.1\r\n")
_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)
_END_OF_HEADERS = b"\r\n\r\n"


def without_http2_offer(data: bytes) -> bytes:
    """Return what a client sent, without the header that offers HTTP/2.

    Args:
        data: what came from the network; changed only where a request starts with it.
    """
    if _OFFER not in data or _REQUEST_LINE.match(data) is None:
        return data
    headers, end, body = data.partition(_END_OF_HEADERS)
    return _UPGRADE.sub(b"", headers + b"\r\n", count=1)[: -len(b"\r\n")] + end + body


def ignore_http2_offers() -> None:
    """Teach uvicorn's fast parser to pass over offers of HTTP/2; once is enough."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        # Without httptools uvicorn takes h11, which reads such requests whole.
        return
    receive = HttpToolsProtocol.data_received
    if getattr(receive, "ignores_http2_offers", False):
        return

    def data_received(self: HttpToolsProtocol, data: bytes) -> None:
        receive(self, without_http2_offer(data))

    data_received.ignores_http2_offers = True  # type: ignore[attr-defined]  # a mark on a function
    HttpToolsProtocol.data_received = data_received  # type: ignore[method-assign]  # see above
