"""The errors of requests that a store of sessions refuses, the same in every store."""

from __future__ import annotations

from policy_server.errors import (
    OverloadedError,
    SessionConflictError,
    TooManyRequestsError,
    UnknownSessionError,
)
from policy_server.schema import DEFAULT_POLICY
from policy_server.serving.team_record import TEAM
from policy_server.settings import ENV_PREFIX

__all__ = [
    "address_of",
    "crowded_session",
    "foreign_session",
    "missed_turn",
    "too_many_of_client",
    "too_many_sessions",
    "unknown_session",
]

_SHOWN = 64


def unknown_session(policy: str, session_id: str) -> UnknownSessionError:
    """Return the error of a session that is not there.

    Args:
        policy: the policy's name; `TEAM` for a team.
        session_id: as the client gave it.
    """
    shown = session_id if len(session_id) <= _SHOWN else f"{session_id[:_SHOWN]}..."
    return UnknownSessionError(
        f"session {shown!r} is unknown, has ended or was idle for too long "
        f"({ENV_PREFIX}SESSION_IDLE_S); begin another one with POST {address_of(policy)}"
    )


def foreign_session(policy: str, session_id: str, owner: str) -> SessionConflictError:
    """Return the error of a session that is asked for at the address of another policy.

    Args:
        policy: the name of the policy that is asked; `TEAM` for a team.
        session_id: the session's.
        owner: the name of the policy whose session it is; `TEAM` for a team.
    """
    whose, asked = ("the team" if name == TEAM else f"policy {name!r}" for name in (owner, policy))
    return SessionConflictError(
        f"session {session_id!r} was begun for {whose} with POST {address_of(owner)}, and is no "
        f"session of {asked}: begin one with POST {address_of(policy)}"
    )


def address_of(policy: str, session: str = "") -> str:
    """Return the address where sessions begin, or another one begins its next episode.

    Args:
        policy: the policy's name; `TEAM` for a team.
        session: what stands behind `/sessions`, such as `/ID/reset`.
    """
    if policy == TEAM:
        return f"/sessions{session}/agents"
    prefix = "" if policy == DEFAULT_POLICY else f"/policies/{policy}"
    return f"{prefix}/sessions{session}"


def too_many_sessions(number: int) -> OverloadedError:
    """Return the error of a session beyond as many as may be.

    Args:
        number: how many there are.
    """
    return OverloadedError(
        f"{number} sessions are open already ({ENV_PREFIX}MAX_SESSIONS); end some with DELETE, or "
        "try again later"
    )


def too_many_of_client(client: str, number: int) -> TooManyRequestsError:
    """Return the error of a session beyond as many as one client may have.

    Args:
        client: the name of the client, as `client_name` gives it.
        number: how many it has.
    """
    kind, _, name = client.partition(":")
    subject = f"key {name!r}" if kind == "key" else "this address"
    return TooManyRequestsError(
        f"{subject}: {number} sessions are open already ({ENV_PREFIX}MAX_KEY_SESSIONS); end some "
        "with DELETE, or try again later",
        reason=f"{kind}_sessions",
    )


def missed_turn(waited_s: float) -> OverloadedError:
    """Return the error of a request that has waited too long for those before it.

    Args:
        waited_s: for how long, in seconds.
    """
    return OverloadedError(
        f"the requests before this one on its session took longer than {waited_s:g} s "
        f"({ENV_PREFIX}REQUEST_TIMEOUT_S); try again"
    )


def crowded_session(number: int) -> OverloadedError:
    """Return the error of a request beyond as many as may wait for one session.

    Args:
        number: how many wait.
    """
    return OverloadedError(
        f"{number} requests wait for their turn on this session already; try again when some of "
        "them are answered"
    )
