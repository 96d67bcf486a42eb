"""uvicorn, and what is changed in it. The only place that imports it."""

from __future__ import annotations

from policy_server.http_server.running_server import Address, HttpServer, find_http_server
from policy_server.http_server.web_process import METRICS_PORT, WebProcess
from policy_server.http_server.workers import Worker

__all__ = [
    "METRICS_PORT",
    "Address",
    "HttpServer",
    "WebProcess",
    "Worker",
    "find_http_server",
]
