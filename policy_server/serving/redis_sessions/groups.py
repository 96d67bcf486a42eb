"""The groups in which the sessions in Redis are counted; see `scripts`."""

from __future__ import annotations

from policy_server.serving.session_store import SessionRecord

__all__ = ["client_group", "group_of", "groups_of", "power_of"]


def group_of(policy: str, version: str, digest: str) -> str:
    """Return the group of the sessions that a version of a policy answers.

    Args:
        policy: the policy's name, which has no colon.
        version: the version's name.
        digest: the start of the digest of its files.
    """
    return f"{policy}:{version}:{digest}"


def groups_of(record: SessionRecord) -> str:
    """Return the groups in which a session is counted.

    Args:
        record: the record of the session.
    """
    versions = sorted(group_of(*answering) for answering in record.answering)
    client, power = client_group(record), power_of(record)
    groups = [f":{record.policy}", *versions, client, f"!{power}" if power else ""]
    return "\n".join(filter(None, groups))


def power_of(record: SessionRecord) -> str:
    """Return the power of two that holds the bytes of a long answer; empty without one."""
    return str((record.long_bytes - 1).bit_length()) if record.long_bytes else ""


def client_group(record: SessionRecord) -> str:
    """Return the group of the sessions that the client of one began; empty where it is not known.

    Args:
        record: the record of the session.
    """
    return f"@{record.client}" if record.client else ""
