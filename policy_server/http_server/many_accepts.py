"""Several connections in one turn of the event loop, where several wait to be taken.

uvloop takes one connection of each listener in a turn, and reads all others meanwhile: of many new
clients the last would wait for as many turns, and for seconds under load, in the kernel, where they
can't be refused. So it is given several listeners of the same socket. asyncio's own event loop
takes all that wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

__all__ = ["accept_many_a_turn"]

# As many connections are taken in a turn at the most. One that comes alone wakes all listeners,
# which costs a fruitless system call for each of the others.
_LISTENERS = 8
_UVLOOP = "uvloop"
# The module of uvicorn that asks the event loop to listen.
_ASKING = "uvicorn.server"


def accept_many_a_turn() -> None:
    """Let this event loop take several connections a turn for uvicorn.

    Called from the lifespan, behind which uvicorn asks the event loop to listen. The event loop's
    methods are replaced, since neither it nor uvicorn has an option for it; they do as before for
    everybody else.
    """
    loop = asyncio.get_running_loop()
    if type(loop).__module__.partition(".")[0] == _UVLOOP:
        for name in ("create_server", "create_unix_server"):
            listen = getattr(loop, name)
            # A loop may serve again and again.
            if getattr(listen, "func", None) is not _listen:
                setattr(loop, name, partial(_listen, listen))


async def _listen(
    listen: Callable[..., Awaitable[asyncio.Server]],
    make_protocol: Callable[[], Any],
    *args: Any,  # noqa: ANN401 -- the event loop's own
    **options: Any,  # noqa: ANN401 -- the event loop's own
) -> asyncio.Server | _ManyListeners:
    """Listen as the event loop does, several times for uvicorn."""
    first = await listen(make_protocol, *args, **options)
    if make_protocol.__module__ != _ASKING:
        return first
    servers = [first]
    kept = {name: options[name] for name in ("ssl", "backlog") if name in options}
    for listener in first.sockets:
        for _ in range(_LISTENERS - 1):
            servers.append(await listen(make_protocol, sock=listener.dup(), **kept))
    return _ManyListeners(servers)


class _ManyListeners:
    """The listeners of the same sockets, which end together; as uvicorn uses an `asyncio.Server`.

    Attributes:
        sockets: each once.
    """

    def __init__(self, servers: Sequence[asyncio.Server]) -> None:
        self._servers = servers
        self.sockets = servers[0].sockets

    def close(self) -> None:
        for server in self._servers:
            server.close()

    async def wait_closed(self) -> None:
        for server in self._servers:
            await server.wait_closed()
