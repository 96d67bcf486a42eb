"""The error tree: everything that Policy Server raises on purpose.

Every error carries the HTTP status it is answered with and a message that may be shown to anybody:
subject, expected, got, remedy, in lower case and without a full stop. The exceptions of libraries
become these once, at the calls that raise them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

__all__ = [
    "BodyTimeoutError",
    "BodyTooLargeError",
    "DeadlineError",
    "DeploymentChangedError",
    "DeploymentError",
    "DistributionError",
    "ExportError",
    "ForbiddenOriginError",
    "MissingPackageError",
    "ModelError",
    "NoStreamError",
    "NotReadyError",
    "ObservationError",
    "OtherFilesError",
    "OverloadedError",
    "PolicyFailedError",
    "PolicyHangsError",
    "PolicyServerError",
    "SchemaError",
    "SdkError",
    "SdkPendingError",
    "ServerAnswerError",
    "SessionConflictError",
    "SessionStoreError",
    "SettingsError",
    "SeveralPoliciesError",
    "UnauthorizedError",
    "UnknownSessionError",
    "UnreadableSessionError",
    "UnsupportedAnswerError",
    "UnsupportedEncodingError",
    "UpgradeRequiredError",
    "UsageError",
    "printable",
]


_LONGEST = 800
_LONGEST_END = 300
_CUT = " ... "


class PolicyServerError(Exception):
    """Base of all errors of this package.

    Attributes:
        status: the HTTP status that the error is answered with.
        message: one line, safe to show to a client or to print at start-up: line ends and what no
            terminal shows, such as those of a name in a file, are escaped.
        headers: HTTP headers that belong to the answer.
    """

    status: ClassVar[int] = 500
    headers: Mapping[str, str] = {}

    def __init__(self, message: str) -> None:
        shown = printable(message)
        super().__init__(shown)
        self.message = shown


def _shortened(message: str) -> str:
    start = message[: _LONGEST - _LONGEST_END - len(_CUT)]
    return f"{start}{_CUT}{message[-_LONGEST_END:]}"


def printable(message: str) -> str:
    """Return a text in one line: line ends and what no terminal shows are escaped.

    Args:
        message: a text that may quote a file, such as the name of an input.
    """
    return message if message.isprintable() else "".join(map(_escaped, message))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


class _QuotingError(PolicyServerError):
    """A message that quotes a text of a file or a setting; if that is long, its middle is cut."""

    def __init__(self, message: str) -> None:
        shown = printable(message)
        super().__init__(shown if len(shown) <= _LONGEST else _shortened(shown))


class SettingsError(_QuotingError):
    """An environment variable or an option has a value that can't be used."""


class UsageError(SettingsError):
    """The command line has an argument that is unknown, is missing, or can't be used."""


class SchemaError(_QuotingError):
    """schema.yaml is missing, is no YAML, breaks a rule, or disagrees with the policy."""


class ModelError(_QuotingError):
    """The model's file can't be read, or can't give the policy."""


class SeveralPoliciesError(ModelError):
    """The model's file holds several policies, and none of them was named.

    Attributes:
        names: those of the policies in it.
    """

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)

    def __reduce__(self) -> tuple[type[SeveralPoliciesError], tuple[str, tuple[str, ...]]]:
        """Pickle by both values, since `Exception` would hand the message alone to `__init__`."""
        return type(self), (self.message, self.names)


class ExportError(PolicyServerError):
    """A trained policy can't be written as a SavedModel, or the written one answers otherwise."""


class ServerAnswerError(PolicyServerError):
    """A running server refused a request of the command line, or could not be reached.

    Its message has more than one line where the server found several mistakes.
    """

    def __init__(self, message: str, *mistakes: str) -> None:
        """Join the message and the mistakes.

        Args:
            message: what was refused.
            mistakes: what the server found, a line each.
        """
        super().__init__(message)
        self.message = "\n".join([self.message, *map(printable, mistakes)])
        self.args = (self.message,)


class SdkError(PolicyServerError):
    """A client library can't be generated."""


class DeploymentError(PolicyServerError):
    """A change of a policy's versions does not fit those that are deployed."""

    status = 409


class OtherFilesError(DeploymentError):
    """A version's address or path holds other files than those that were deployed."""


class DeploymentChangedError(DeploymentError):
    """Another process has changed a policy's versions meanwhile; the change may be tried again."""

    @classmethod
    def of(cls, policy: str) -> DeploymentChangedError:
        """Return the error for a policy.

        Args:
            policy: its name.
        """
        return cls(
            f"the versions of {policy} were changed by another process meanwhile; look at them "
            "with `status`, and try again"
        )


class DistributionError(PolicyServerError):
    """The policy's outputs are no distribution: a row holds NaN, or masks every action."""


class PolicyFailedError(PolicyServerError):
    """The policy raised while it computed; the cause is in the log, not in the message."""

    @classmethod
    def of(cls, error: Exception) -> PolicyServerError:
        """Return the error that a failed call of the policy is answered with.

        Args:
            error: the exception of the call.

        Returns:
            An error of ours as it is; for any other, whose text may hold what no client should
            read, one that has it as its cause.
        """
        if isinstance(error, PolicyServerError):
            return error
        failed = cls("the policy failed; the server's log has the reason")
        failed.__cause__ = error
        return failed


class UnauthorizedError(PolicyServerError):
    """The request carries no access key, or a wrong one."""

    status = 401
    headers: Mapping[str, str] = {"www-authenticate": "Bearer"}


class ForbiddenOriginError(PolicyServerError):
    """A page of an origin that is not allowed opens a web socket."""

    status = 403


class UnknownSessionError(PolicyServerError):
    """There is no session of that name, or there is none any more."""

    status = 404


class SessionConflictError(PolicyServerError):
    """A step that does not follow the session's last one, or whose version has been unloaded."""

    status = 409


class UnreadableSessionError(SessionConflictError):
    """The record of a session is damaged, or of a form that this release does not know."""


class BodyTimeoutError(PolicyServerError):
    """The request's body takes too long to arrive."""

    status = 408


class BodyTooLargeError(PolicyServerError):
    """The request's body, or the batch in it, is larger than a setting allows."""

    status = 413


class UnsupportedEncodingError(PolicyServerError):
    """The request's body is packed or encoded in a way that is not taken."""

    status = 415
    headers: Mapping[str, str] = {"accept-encoding": "gzip, identity"}


class ObservationError(PolicyServerError):
    """An observation is not what schema.yaml describes.

    Attributes:
        problems: one entry a mistake, in FastAPI's form: `type`, `loc` (starting with "body") and
            `msg`.
    """

    status = 422

    def __init__(self, problems: Sequence[Mapping[str, Any]]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems))
        self.problems = list(problems)

    def __reduce__(self) -> tuple[type[ObservationError], tuple[list[Mapping[str, Any]]]]:
        """Pickle by the problems, since `Exception` would hand the message to `__init__`."""
        return type(self), (self.problems,)


class UpgradeRequiredError(PolicyServerError):
    """A route that takes web sockets was asked without one."""

    status = 426
    headers: Mapping[str, str] = {"upgrade": "websocket", "connection": "upgrade"}


class NoStreamError(PolicyServerError):
    """A web socket was opened at the address of a route that takes requests."""

    status = 405
    headers: Mapping[str, str] = {"allow": "POST"}


class TooManyRequestsError(PolicyServerError):
    """A client has asked more than its access key or its address may.

    Attributes:
        reason: the limit that it has reached, as the metrics name it.
    """

    status = 429

    def __init__(self, message: str, *, reason: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.reason = reason
        self.headers = {"retry-after": str(retry_after_s)}


class UnsupportedAnswerError(PolicyServerError):
    """The policy's family does not allow the answer that a route gives."""

    status = 501


class MissingPackageError(PolicyServerError):
    """An optional package that the request or command needs is not installed."""

    status = 501


class OverloadedError(PolicyServerError):
    """More requests wait than the queue holds, or one waited longer than its deadline."""

    status = 503
    headers: Mapping[str, str] = {"retry-after": "1"}


class PolicyHangsError(OverloadedError):
    """The policy took too long for a call: one of its observations, or the machine, is to blame."""


class NotReadyError(PolicyServerError):
    """The policy has not answered its warm-up yet, or the server is shutting down."""

    status = 503
    headers: Mapping[str, str] = {"retry-after": "1"}


class SessionStoreError(PolicyServerError):
    """The store of sessions can't be reached or can't keep them now, or a turn in it was lost."""

    status = 503
    headers: Mapping[str, str] = {"retry-after": "1"}


class DeadlineError(PolicyServerError):
    """The deadline that a request has set for its answer has passed."""

    status = 504

    def __init__(
        self,
        message: str = "the deadline that this request set has passed; allow it more milliseconds "
        "(x-request-timeout-ms, or timeout_ms in a frame)",
    ) -> None:
        super().__init__(message)


class SdkPendingError(PolicyServerError):
    """A client library is being generated; its zip is there later."""

    status = 503
    headers: Mapping[str, str] = {"retry-after": "5"}
