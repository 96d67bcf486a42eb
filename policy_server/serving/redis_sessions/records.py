"""The bytes by which Redis keeps the record of a session."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeAlias

import msgpack
import numpy as np
from pydantic import Field, TypeAdapter

from policy_server.errors import UnreadableSessionError
from policy_server.policy import Float32Array
from policy_server.serving.session_store import AnsweredStep, SessionRecord
from policy_server.serving.team_record import TEAM, AgentRecord, TeamRecord, VersionName

__all__ = ["damaged_session", "decode_policy", "decode_record", "encode_record"]

# Of the list in `encode_record`: it changes with what the list holds.
_FORM = 3
# Each without the last value of the next one: the schema, and the client.
_FORMS_BEFORE = (2, 1)
_NUMBERS = np.dtype("<f4")

_Count: TypeAlias = Annotated[int, Field(ge=0)]
_Team: TypeAlias = tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, bytes, _Count, bool]]]


class _Values(NamedTuple):
    """The values of the list in `encode_record` behind its form, with their types."""

    policy: str
    version: str
    digest: str
    state: bytes
    steps: _Count
    seed: int | None
    episode_id: str
    has_action: bool
    last: tuple[bytes, bytes | None] | None
    team: _Team | None
    client: str = ""
    schema: str = ""


_VALUES = TypeAdapter(_Values)


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


def decode_record(policy: str, session_id: str, packed: bytes) -> SessionRecord:
    """Return the record of a session.

    Args:
        policy: the name of its policy; `TEAM` for a team.
        session_id: the session's name.
        packed: the bytes of the record.

    Raises:
        UnreadableSessionError: if they are no record, or one of another form.
    """
    try:
        form, *values = msgpack.unpackb(packed, use_list=False)
        if form in (_FORM, *_FORMS_BEFORE):
            record = _record(session_id, _VALUES.validate_python((*values,), strict=True))
            if record.policy == policy and (record.team is not None) == (policy == TEAM):
                return record
            raise damaged_session()
        raise _unreadable(f"form {form!r}, expected {_FORM}")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise damaged_session() from error


def decode_policy(packed: bytes) -> str:
    """Return the name of the policy of a session.

    Args:
        packed: the bytes of the name.

    Raises:
        UnreadableSessionError: if they are no text.
    """
    try:
        return packed.decode()
    except UnicodeDecodeError as error:
        raise damaged_session() from error


def damaged_session() -> UnreadableSessionError:
    """Return the error of a session of which something is kept that no release has written."""
    return _unreadable("it is damaged")


def _unreadable(reason: str) -> UnreadableSessionError:
    return UnreadableSessionError(
        f"the record of this session can't be read ({reason}), since another release of Policy "
        "Server wrote it, or another program; begin another session with POST /sessions"
    )


def _record(session_id: str, values: _Values) -> SessionRecord:
    return SessionRecord(
        session_id=session_id,
        policy=values.policy,
        version=values.version,
        digest=values.digest,
        state=_state(values.state),
        steps=values.steps,
        seed=values.seed,
        episode_id=values.episode_id,
        has_action=values.has_action,
        last=None if values.last is None else AnsweredStep(*values.last),
        team=None if values.team is None else _team(*values.team),
        client=values.client,
        schema=values.schema,
    )


def _team(
    versions: dict[str, tuple[str, ...]], agents: dict[str, tuple[str, bytes, int, bool]]
) -> TeamRecord:
    return TeamRecord(
        {policy: VersionName(*version) for policy, version in versions.items()},
        {
            name: AgentRecord(policy, _state(state), steps, has_action)
            for name, (policy, state, steps, has_action) in agents.items()
        },
    )


def _state(packed: bytes) -> Float32Array:
    return np.frombuffer(packed, _NUMBERS).astype(np.float32, copy=False)
