"""uvicorn, and what is changed in it. The only place that imports it."""

from __future__ import annotations

from policy_server.http_server.joined_writes import join_writes
from policy_server.http_server.released_connections import release_connections
from policy_server.http_server.running_server import Address, HttpServer, find_http_server
from policy_server.http_server.upgrades import ignore_http2_offers
from policy_server.http_server.web_process import METRICS_PORT, WebProcess
from policy_server.http_server.web_sockets import tune_web_sockets
from policy_server.http_server.workers import Worker

__all__ = [
    "METRICS_PORT",
    "Address",
    "HttpServer",
    "WebProcess",
    "Worker",
    "find_http_server",
    "ignore_http2_offers",
    "join_writes",
    "release_connections",
    "tune_web_sockets",
]
