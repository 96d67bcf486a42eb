"""The HTTP interface. The only place that imports FastAPI."""

from __future__ import annotations

from policy_server.web.app import Application, create_app
from policy_server.web.served_policy import BackendOpener, ServedPolicy

__all__ = ["Application", "BackendOpener", "ServedPolicy", "create_app"]
