"""The HTTP interface. The only package that imports FastAPI."""

from __future__ import annotations

from policy_server.lean_imports import built_when_used

with built_when_used():
    from policy_server.web.app import Application, create_app

__all__ = ["Application", "create_app"]
