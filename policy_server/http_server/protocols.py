"""The protocols that uvicorn serves with: set once, where it would have taken its own.

uvicorn looks a protocol up before it imports the application, and reads it from its configuration
for each connection. A lifespan can therefore put another there before the first client comes.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn

from policy_server.http_server.connection_limits import ConnectionWatch
from policy_server.http_server.hot_requests import HotRoutes
from policy_server.http_server.tls_handshakes import limit_handshakes

__all__ = ["PROTOCOLS", "ServedProtocol", "use_protocols"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedProtocol:
    """One protocol of uvicorn's, and the subclass that is served instead.

    Attributes:
        attribute: where uvicorn's configuration has the class.
        option: the name of uvicorn's option that chooses it.
        choices: of that option, those that mean uvicorn's class.
        replaced: module and name of uvicorn's class.
        served: module and name of the subclass, or of the function that chooses one.
        inner_names: the members that the subclass uses; CONTRIBUTING.md has the table.
    """

    attribute: str
    option: str
    choices: tuple[str, ...]
    replaced: tuple[str, str]
    served: tuple[str, str]
    inner_names: tuple[str, ...]


_ROOM = __name__.rpartition(".")[0]
PROTOCOLS = (
    ServedProtocol(
        attribute="http_protocol_class",
        option="http",
        choices=("auto", "httptools"),
        replaced=("uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol"),
        served=(f"{_ROOM}.hot_protocol", "protocol_for"),
        inner_names=(
            "_should_upgrade",
            "_unset_keepalive_if_required",
            "app",
            "client",
            "connection_lost",
            "connection_made",
            "connections",
            "cycle",
            "data_received",
            "flow",
            "handle_websocket_upgrade",
            "headers",
            "limit_concurrency",
            "loop",
            "on_headers_complete",
            "on_message_begin",
            "on_message_complete",
            "on_response_complete",
            "parser",
            "pipeline",
            "resume_writing",
            "root_path",
            "send_400_response",
            "server_state",
            "shutdown",
            "tasks",
            "timeout_keep_alive",
            "transport",
            "url",
        ),
    ),
    ServedProtocol(
        attribute="ws_protocol_class",
        option="ws",
        choices=("auto", "websockets-sansio"),
        replaced=(
            "uvicorn.protocols.websockets.websockets_sansio_impl",
            "WebSocketsSansIOProtocol",
        ),
        served=(f"{_ROOM}.web_socket_protocol", "WebSocketProtocol"),
        inner_names=(
            "close_sent",
            "close_timer",
            "config",
            "conn",
            "connection_lost",
            "connection_made",
            "curr_msg_data_type",
            "data_received",
            "disconnected",
            "frames",
            "handle_connect",
            "handle_cont",
            "handle_parser_exception",
            "handshake_complete",
            "loop",
            "queue",
            "read_paused",
            "resume_writing",
            "send",
            "send_receive_event_to_app",
            "shutdown",
            "stop_keepalive",
            "transport",
            "writable",
        ),
    ),
)


def use_protocols(
    config: uvicorn.Config,
    watch: ConnectionWatch,
    *,
    app: object = None,
    hot_routes: HotRoutes | None = None,
) -> None:
    """Make uvicorn serve new connections with the protocols of this room.

    A protocol that somebody chose (`--http h11`, `--ws none`, a class of their own) stays. Where a
    uvicorn of another version lacks a member that a subclass uses, uvicorn's class stays too, and
    one line of the log says so.

    Args:
        config: of a uvicorn that has loaded its application, on whose event loop this runs.
        watch: looks at the connections.
        app: the application whose routes may be hot.
        hot_routes: the routes whose requests the protocol may answer itself; None for none.
    """
    for protocol in PROTOCOLS:
        found = getattr(config, protocol.attribute)
        if getattr(config, protocol.option) not in protocol.choices or isinstance(found, partial):
            # Somebody's choice, or another application's of this process.
            continue
        if (reason := _unfit(protocol, found, config)) is not None:
            logger.warning(
                "uvicorns_own_protocol", extra={"option": protocol.option, "reason": reason}
            )
            continue
        served = _found_at(protocol.served)
        if protocol.option == "http":
            served = served(config, watch, app, hot_routes)
            if config.ssl is not None:
                limit_handshakes(config, watch)
        setattr(config, protocol.attribute, served)


def _unfit(protocol: ServedProtocol, found: type | None, config: uvicorn.Config) -> str | None:
    """Return why the subclass can't be served; None where it can."""
    if found is None or (found.__module__, found.__qualname__) != protocol.replaced:
        return f"uvicorn takes {getattr(found, '__qualname__', found)}"
    try:
        made = _found_at(protocol.replaced)(config, uvicorn.Server(config).server_state, {})
        # Some of its insides are there from the first request on.
        made.data_received(b"GET / ")
    except (AttributeError, TypeError) as error:
        return f"{protocol.replaced[1]}: {error}"
    missing = [name for name in protocol.inner_names if not hasattr(made, name)]
    return f"{protocol.replaced[1]} has no {', '.join(missing)}" if missing else None


def _found_at(address: tuple[str, str]) -> Any:  # noqa: ANN401 -- a class of uvicorn's, or of this room
    module, name = address
    return getattr(importlib.import_module(module), name)
