"""The bytes by which Redis keeps the record of a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from policy_server.errors import SessionConflictError
from policy_server.policy import Float32Array
from policy_server.serving.session_store import AnsweredStep, SessionRecord
from policy_server.serving.team_record import AgentRecord, TeamRecord, VersionName

__all__ = ["decode_policy", "decode_record", "encode_record"]

# Of the list in `encode_record`: it changes with what the list holds.
_FORM = 3
# Each without the last value of the next one: the schema, and the client.
_FORMS_BEFORE = (2, 1)
_NUMBERS = np.dtype("<f4")


def encode_record(record: SessionRecord) -> bytes:
    """Return the bytes of a record: the MessagePack of a list, which begins with its form.

    Args:
        record: the record.
    """
    last = record.last
    packed: bytes = msgpack.packb(
        [
            _FORM,
            record.policy,
            record.version,
            record.digest,
            _state_bytes(record.state),
            record.steps,
            record.seed,
            record.episode_id,
            record.has_action,
            None if last is None else [last.digest, last.text],
            None if record.team is None else _team_values(record.team),
            record.client,
            record.schema,
        ]
    )
    return packed


def _team_values(team: TeamRecord) -> list[Any]:
    agents = {
        name: [agent.policy, _state_bytes(agent.state), agent.steps, agent.has_action]
        for name, agent in team.agents.items()
    }
    return [{policy: list(version) for policy, version in team.versions.items()}, agents]


def _state_bytes(state: Float32Array) -> bytes:
    return state.astype(_NUMBERS, copy=False).tobytes()


def decode_record(session_id: str, packed: bytes) -> SessionRecord:
    """Return the record of a session.

    Args:
        session_id: the session's name.
        packed: the bytes of the record.

    Raises:
        SessionConflictError: if they are no record, or one of another form.
    """
    try:
        form, *values = msgpack.unpackb(packed)
        if form in (_FORM, *_FORMS_BEFORE):
            return _record(session_id, *values)
        reason = f"form {form!r}, expected {_FORM}"
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
        reason = "it is damaged"
    raise _unreadable(reason)


def decode_policy(packed: bytes) -> str:
    """Return the name of the policy of a session.

    Args:
        packed: the bytes of the name.

    Raises:
        SessionConflictError: if they are no text.
    """
    try:
        return packed.decode()
    except UnicodeDecodeError as error:
        raise _unreadable("it is damaged") from error


def _unreadable(reason: str) -> SessionConflictError:
    return SessionConflictError(
        f"the record of this session can't be read ({reason}), since another release of Policy "
        "Server wrote it, or another program; begin another session with POST /sessions"
    )


def _record(
    session_id: str,
    policy: str,
    version: str,
    digest: str,
    state: bytes,
    steps: int,
    seed: int | None,
    episode_id: str,
    has_action: bool,  # noqa: FBT001 -- likewise
    last: list[bytes] | None,
    team: list[Any] | None,
    client: str = "",
    schema: str = "",
) -> SessionRecord:
    return SessionRecord(
        session_id=session_id,
        policy=policy,
        version=version,
        digest=digest,
        state=_state(state),
        steps=steps,
        seed=seed,
        episode_id=episode_id,
        has_action=has_action,
        last=None if last is None else AnsweredStep(*last),
        team=None if team is None else _team(*team),
        client=client,
        schema=schema,
    )


def _team(versions: Mapping[str, list[str]], agents: Mapping[str, list[Any]]) -> TeamRecord:
    return TeamRecord(
        {policy: VersionName(*version) for policy, version in versions.items()},
        {
            name: AgentRecord(policy, _state(state), steps, has_action)
            for name, (policy, state, steps, has_action) in agents.items()
        },
    )


def _state(packed: bytes) -> Float32Array:
    return np.frombuffer(packed, _NUMBERS).astype(np.float32, copy=False)
