"""The choice of where sessions live."""

from __future__ import annotations

from policy_server.installation import require
from policy_server.metrics import Metrics
from policy_server.serving.process_sessions import NoSessions, ProcessSessions
from policy_server.serving.session_store import SessionStore
from policy_server.settings import ENV_PREFIX, Settings

__all__ = ["session_store"]


def session_store(settings: Settings, metrics: Metrics, *, is_alone: bool) -> SessionStore:
    """Return the store of sessions that the settings name.

    Args:
        settings: where sessions live, how many there may be and for how long.
        metrics: counts them.
        is_alone: whether no other web process answers at the same address.

    Raises:
        SettingsError: if the address of the store can't be used.
        MissingPackageError: if the client of Redis is not installed.
    """
    if settings.sessions_url is not None:
        require("redis", use=f"{ENV_PREFIX}SESSIONS_URL")
        # Few servers need its client, which takes time and memory.
        from policy_server.serving.redis_sessions import RedisSessions

        return RedisSessions(settings.sessions_url, settings, metrics)
    return ProcessSessions(settings, metrics) if is_alone else NoSessions()
