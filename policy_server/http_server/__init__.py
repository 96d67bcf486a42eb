"""uvicorn, and the only room that imports it: its start, its protocols, its workers.

`http_protocol` and `web_socket_protocol` are the protocols that serve clients, and `protocols`
makes uvicorn use them; `running_server` is the uvicorn of this process, `workers` the
processes beside this one, and `web_process` both.
"""

from __future__ import annotations

from policy_server.http_server.connection_limits import (
    ConnectionLimits,
    ConnectionWatch,
    RefusedRequest,
)
from policy_server.http_server.hot_requests import (
    Connection,
    HotRequest,
    HotRoute,
    HotRoutes,
    OwnParts,
    RequestHead,
)
from policy_server.http_server.metrics_port import exported_metrics
from policy_server.http_server.running_server import Address, HttpServer, find_http_server
from policy_server.http_server.start_signals import cancelled_by_signals, ended_by_signals
from policy_server.http_server.stream_frames import FRAMES, FrameConnection, FrameListener
from policy_server.http_server.web_process import METRICS_PORT, WebProcess
from policy_server.http_server.workers import Worker

__all__ = [
    "FRAMES",
    "METRICS_PORT",
    "Address",
    "Connection",
    "ConnectionLimits",
    "ConnectionWatch",
    "FrameConnection",
    "FrameListener",
    "HotRequest",
    "HotRoute",
    "HotRoutes",
    "HttpServer",
    "OwnParts",
    "RefusedRequest",
    "RequestHead",
    "WebProcess",
    "Worker",
    "cancelled_by_signals",
    "ended_by_signals",
    "exported_metrics",
    "find_http_server",
]
