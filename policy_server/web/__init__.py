"""The HTTP interface. The only place that imports FastAPI."""

from __future__ import annotations

from policy_server.web.app import Application, create_app
from policy_server.web.joined_writes import join_writes
from policy_server.web.released_connections import release_connections
from policy_server.web.served_policy import BackendOpener, ServedPolicy
from policy_server.web.upgrades import ignore_http2_offers
from policy_server.web.web_sockets import tune_web_sockets

__all__ = [
    "Application",
    "BackendOpener",
    "ServedPolicy",
    "create_app",
    "ignore_http2_offers",
    "join_writes",
    "release_connections",
    "tune_web_sockets",
]
