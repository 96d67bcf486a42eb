"""Sessions in Redis, which the web processes of several hosts share."""

from __future__ import annotations

from policy_server.serving.redis_sessions.redis_store import RedisSessions

__all__ = ["RedisSessions"]
