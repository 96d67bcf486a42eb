"""The application that `uvicorn app:app` serves."""

from __future__ import annotations

from policy_server.asgi import app

__all__ = ["app"]
