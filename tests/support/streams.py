"""A server in the event loop of a test, which streams and counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from policy_server.http_server.http_protocol import HttpProtocol
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.metrics import Metrics, MetricsExporter
from tests.support import asking
from tests.support.fakes import FakeBackend, integer_backend
from tests.support.pages import summed
from tests.support.servers import app_in_loop
from tests.support.web import KEY, build

__all__ = ["KEY_HEADER", "Served", "served"]

KEY_HEADER = {"access-token": KEY}


@dataclass(frozen=True)
class Served:
    """A server in this event loop.

    Attributes:
        url: its address, `http://...`.
        server: uvicorn; `should_exit` ends it.
        metrics: what it counts.
    """

    url: str
    server: uvicorn.Server
    metrics: Metrics

    def stream(self, path: str = "/predict/stream", **options: Any) -> connect:  # noqa: ANN401 -- websockets' own
        """Open a stream with the key."""
        known = {"additional_headers": KEY_HEADER, "compression": None, **options}
        return connect(f"{self.url.replace('http', 'ws')}{path}", **known)

    async def post(self, path: str, content: bytes) -> httpx.Response:
        """Ask the POST route."""
        async with asking.async_client(base_url=self.url, headers=KEY_HEADER) as client:
            return await client.post(path, content=content)

    async def refusal(self, path: str, **options: Any) -> Any:  # noqa: ANN401 -- websockets' own
        """Return the HTTP answer to a handshake that is refused."""
        with pytest.raises(InvalidStatus) as caught:
            await self.stream(path, **options)
        return caught.value.response

    def counted(self, name: str) -> float:
        """Return a figure of the metrics page, summed over its labels."""
        return summed(MetricsExporter(self.metrics, port=0).render().decode(), name)


@asynccontextmanager
async def served(
    backend: FakeBackend | None = None,
    *,
    web_sockets: type[WebSocketsSansIOProtocol] = WebSocketProtocol,
    **options: Any,  # noqa: ANN401 -- what `build` takes
) -> AsyncIterator[Served]:
    """Serve a policy with this project's protocols.

    Args:
        backend: the policy.
        web_sockets: another protocol for streams, whose frames come by ASGI.
        options: see `build`.
    """
    used = integer_backend() if backend is None else backend
    metrics = Metrics()
    app = build(used, metrics=metrics, **options)
    async with app_in_loop(app, http=HttpProtocol, ws=web_sockets) as (url, server):
        try:
            yield Served(url, server, metrics)
        finally:
            if used.gate is not None:
                used.gate.set()
