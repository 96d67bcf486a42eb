"""Failures of a Redis, in words that tell nothing of its address, users and password."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ssl import SSLCertVerificationError

from redis.exceptions import AuthenticationError, RedisError, ResponseError

from policy_server.errors import SessionStoreError
from policy_server.settings import ENV_PREFIX

__all__ = ["describe_failure", "is_elsewhere", "store_failure", "system_failure"]

_CODE = re.compile(r"\b[A-Z]{3,}\b")
# After a change of the primary.
_ELSEWHERE = frozenset({"LOADING", "MASTERDOWN", "READONLY"})
_WORDS = {
    "LOADING": "is still loading its data",
    "MASTERDOWN": "is a replica without its primary",
    "MISCONF": "can't write its data to its disk",
    "NOAUTH": "asks for a password",
    "NOPERM": "does not allow its user what sessions take",
    "NOREPLICAS": "has too few replicas",
    "OOM": "is full (maxmemory)",
    "READONLY": "is a replica, which takes no writes",
    "WRONGPASS": "refuses the user or password",
}


def store_failure(reason: str) -> SessionStoreError:
    """Return the error of requests that need a Redis which fails.

    Args:
        reason: as `describe_failure` gives it.
    """
    return SessionStoreError(
        f"sessions can't be reached: their Redis ({ENV_PREFIX}SESSIONS_URL) {reason}; try again, a "
        "step with its number in x-step"
    )


def describe_failure(error: Exception, *, timeout_s: float) -> str:
    """Return the reason why a Redis fails, in words for clients.

    Args:
        error: of its client, or of the system.
        timeout_s: for how long an answer was waited for, in seconds.
    """
    if isinstance(error, TimeoutError):
        return f"does not answer within {timeout_s:g} s"
    causes = [item for item in _chain(error) if isinstance(item, RedisError)]
    known = next((code for code in _codes(causes) if code in _WORDS), None)
    if known is not None:
        return _WORDS[known]
    if any(isinstance(item, AuthenticationError) for item in causes):
        return _WORDS["WRONGPASS"]
    if any(isinstance(item, ResponseError) for item in causes):
        return "refuses what it is asked for"
    if any(isinstance(item, SSLCertVerificationError) for item in _chain(error)):
        return "shows a certificate that can't be verified"
    return "does not answer"


def is_elsewhere(error: RedisError) -> bool:
    """Return whether a new connection may reach another Redis, which does not refuse a call.

    Args:
        error: the refusal.
    """
    return not _ELSEWHERE.isdisjoint(_codes([error]))


def _codes(errors: Iterable[RedisError]) -> Iterator[str]:
    """Yield the codes of errors: an older Redis gives that of a script's within its text."""
    for error in errors:
        if error.status_code is not None:
            yield error.status_code
        yield from _CODE.findall(str(error))


def system_failure(error: Exception) -> str:
    """Return the reason that the system gives for a failure, for the log; empty where it has none.

    Args:
        error: see `describe_failure`.
    """
    errors = [item for item in _chain(error) if isinstance(item, OSError)]
    return next((item.strerror for item in errors if item.strerror), "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from: the client wraps errors in others."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
