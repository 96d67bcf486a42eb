"""HTTP as tests ask it: each client shares the authorities' certificates.

httpx reads them for every client that is not told which to trust, and for `httpx.get`, which makes
a client of its own. That takes 50 ms of the processor, at http:// addresses too: a test that asks
ten times a second whether a server is ready yet takes half a core from the server that starts.
"""

from __future__ import annotations

import ssl
from functools import cache
from typing import Any

import httpx

__all__ = ["async_client", "client", "get", "post"]


@cache
def _trust() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def get(url: str, **options: Any) -> httpx.Response:  # noqa: ANN401 -- httpx's own
    """Send a GET request."""
    return httpx.get(url, verify=_trust(), **options)


def post(url: str, **options: Any) -> httpx.Response:  # noqa: ANN401 -- httpx's own
    """Send a POST request."""
    return httpx.post(url, verify=_trust(), **options)


def client(**options: Any) -> httpx.Client:  # noqa: ANN401 -- httpx's own
    """Return a client that keeps its connections, as `httpx.Client` does."""
    return httpx.Client(verify=_trust(), **options)


def async_client(**options: Any) -> httpx.AsyncClient:  # noqa: ANN401 -- httpx's own
    """Return a client for an event loop, as `httpx.AsyncClient` does."""
    return httpx.AsyncClient(verify=_trust(), **options)
