"""TLS handshakes within the limits of connections: how many, for how long, and how many an address.

With a certificate, uvicorn's event loop itself does the handshake, and tells of a connection once
that is done: it gives a silent client a minute, and nothing counts it. Here the event loop listens
without TLS, and each connection that it accepts begins with a `TlsHandshake`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.utils import get_remote_addr

from policy_server.http_server.connection_limits import MOST_REFUSED, UNREAD_S, ConnectionWatch
from policy_server.http_server.limited_protocol import LimitedHttpProtocol

__all__ = ["TlsHandshake", "limit_handshakes"]

# How long a handshake may still take when the server ends: some round trips.
_REST_S = 2.0
_BROKEN, _TIMEOUT, _TOO_MANY, _UNAVAILABLE = 400, 408, 429, 503


def limit_handshakes(config: uvicorn.Config, watch: ConnectionWatch) -> None:
    """Begin the connections of a uvicorn that has a certificate with a `TlsHandshake`.

    Called from the lifespan, behind which uvicorn asks the event loop to listen. The event loop's
    methods are replaced, since uvicorn has no option for the handshake; they do as before for
    everybody who listens by another certificate, or by none.

    Args:
        config: of a uvicorn that serves by `LimitedHttpProtocol`, on whose event loop this runs.
        watch: has the limits, and knows the handshakes under way.
    """
    loop = asyncio.get_running_loop()
    for name in ("create_server", "create_unix_server"):
        setattr(loop, name, partial(_listen, getattr(loop, name), config.ssl, watch))


async def _listen(
    listen: Callable[..., Awaitable[asyncio.Server]],
    certificate: ssl.SSLContext | None,
    watch: ConnectionWatch,
    make_protocol: Callable[[], Any],
    *args: Any,  # noqa: ANN401 -- the event loop's own
    ssl: ssl.SSLContext | None = None,
    **options: Any,  # noqa: ANN401 -- the event loop's own
) -> asyncio.Server:
    """Listen as the event loop does, with handshakes of this certificate by `TlsHandshake`."""
    if ssl is None or ssl is not certificate:
        return await listen(make_protocol, *args, ssl=ssl, **options)
    return await listen(lambda: TlsHandshake(make_protocol(), ssl, watch), *args, **options)


class TlsHandshake(asyncio.Protocol):
    """The handshake of one connection, which is then handed to the protocol that serves it.

    It is one of uvicorn's connections meanwhile, so that an end of the server waits for it.
    """

    def __init__(
        self, served: LimitedHttpProtocol, certificate: ssl.SSLContext, watch: ConnectionWatch
    ) -> None:
        """Own the connection until the handshake has ended.

        Args:
            served: is handed the connection when the handshake is done.
            certificate: the server's, with its other options of TLS.
            watch: has the limits, and knows the handshakes under way.
        """
        self._served = served
        self._certificate = certificate
        self._watch = watch
        self._address = ""
        self._early = _EarlyBytes()
        self._is_ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin, unless there are too many connections.

        Args:
            transport: the connection, without TLS.
        """
        self._transport = transport
        self._served.connections.add(self)  # type: ignore[arg-type]  # it can be shut down, as they can
        self._watch.handshakes[self] = None
        addresses = self._watch.addresses
        self._address = addresses.enter(get_remote_addr(transport))
        if addresses.is_beyond(self._address, spare=MOST_REFUSED):
            self._give_up(_TOO_MANY)
        elif len(self._served.connections) > self._watch.limits.max_connections + MOST_REFUSED:
            # An honest client is done within moments: the oldest one is the least likely to be.
            next(iter(self._watch.handshakes)).make_room()
        if not transport.is_closing():
            self._begin()

    def _begin(self) -> None:
        # A task would begin with the event loop's next turn only, and uvloop reads before that:
        # the first bytes of the client would not come to TLS.
        self._starting = asyncio.get_running_loop().start_tls(
            self._transport,
            self._early,
            self._certificate,
            server_side=True,
            ssl_handshake_timeout=self._watch.limits.header_timeout_s,
            ssl_shutdown_timeout=UNREAD_S,
        )
        self._starting.send(None).add_done_callback(self._end)

    def _end(self, _waited_for: asyncio.Future[None]) -> None:
        try:
            self._starting.send(None)
        except StopIteration as done:
            self._leave()
            # Nothing is left where the connection was lost meanwhile.
            if done.value is not None and not done.value.is_closing():
                self._hand_over(done.value)
        except ssl.SSLError:
            self._refuse(_BROKEN)
        except ConnectionAbortedError:
            self._refuse(_TIMEOUT)
        except OSError:
            # The client has gone.
            self._leave()

    def _hand_over(self, secured: asyncio.Transport) -> None:
        served = self._served
        secured.set_protocol(served)
        served.connection_made(secured)
        if self._early.data:
            served.do_or_abort(served.data_received, bytes(self._early.data))
        if self._is_ending:
            served.shutdown()

    def make_room(self) -> None:
        """End, since others wait for a place."""
        self._give_up(_UNAVAILABLE)

    def _give_up(self, status: int) -> None:
        self._refuse(status)
        self._transport.abort()

    def _refuse(self, status: int) -> None:
        self._watch.count_refused(status)
        self._leave()

    def shutdown(self) -> None:
        """Wait for the rest of the handshake, and of the request behind it, for some time only."""
        self._is_ending = True
        asyncio.get_running_loop().call_later(_REST_S, self._end_waiting)

    def _end_waiting(self) -> None:
        if self in self._watch.handshakes:
            self.make_room()

    def _leave(self) -> None:
        """Count the handshake no more."""
        self._served.connections.discard(self)
        self._watch.handshakes.pop(self, None)
        address, self._address = self._address, ""
        self._watch.addresses.leave(address)


class _EarlyBytes(asyncio.Protocol):
    """Keeps what comes right behind a handshake, before the connection is handed over."""

    def __init__(self) -> None:
        self.data = bytearray()

    def data_received(self, data: bytes) -> None:
        self.data += data
