"""The two boundaries around a policy: computed at once, or by a backend that is waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from policy_server.policy.calls import PolicyInputs, PolicyOutputs
from policy_server.policy.signature import PolicySignature

__all__ = ["ImmediateBackend", "LosableBackend", "Policy", "PolicyBackend", "SendingBackend"]


class Policy(Protocol):
    """Something that computes action distributions from observations, at once and in this thread.

    Every format's loader returns one. Calls come one at a time, but for one that hangs: others go
    on beside it, from another thread.
    """

    @property
    def signature(self) -> PolicySignature:
        """Return the policy's signature."""

    def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations.

        Args:
            inputs: the observations, and the options of each.

        Returns:
            The answers, row by row in the order of the observations.

        Raises:
            PolicyServerError: if the policy can't answer a row, or can't give the kind asked for.
        """

    def seconds_for(self, rows: int) -> float:
        """Return about how many seconds a call takes; a caller may wait for a short one.

        Args:
            rows: how many observations the call has.
        """


class PolicyBackend(Protocol):
    """Where a policy computes, asynchronously: Ray Serve's replicas, or this process."""

    @property
    def signature(self) -> PolicySignature:
        """Return the signature of the policy that is served."""

    @property
    def capacity(self) -> int:
        """Return how many calls are computed at the same time: one a replica."""

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations with one call of the policy.

        Args:
            inputs: the observations, and the options of each.

        Returns:
            The answers, row by row in the order of the observations.

        Raises:
            PolicyServerError: with the status to answer: the policy failed, is overloaded or not
                ready.
        """

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now."""


@runtime_checkable
class ImmediateBackend(PolicyBackend, Protocol):
    """A backend that can answer a short call at once, without a task of the event loop's."""

    def is_immediate(self, rows: int) -> bool:
        """Return whether a call is short enough for the event loop to wait for it.

        Args:
            rows: how many observations the call has.
        """

    def infer_at_once(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations, where `is_immediate` said so; see `infer`."""


@runtime_checkable
class LosableBackend(PolicyBackend, Protocol):
    """A backend that may never answer again in this process, but would in a new one."""

    def is_lost(self) -> bool:
        """Return whether it has come to that."""


@runtime_checkable
class SendingBackend(PolicyBackend, Protocol):
    """A backend that can send a call, and tell of its answer without a task of the event loop's."""

    def send(
        self,
        inputs: PolicyInputs,
        answered: Callable[[PolicyOutputs | Exception | None], None],
        *,
        within_s: float,
    ) -> bool:
        """Send a call, if that is possible at once.

        Args:
            inputs: the observations, and the options of each.
            answered: is called once, in a later turn of the event loop, with what `infer` returns
                or raises; with None if the call was lost and has to be made by `infer`. It raises
                nothing.
            within_s: the call is given up after so many seconds, with an `OverloadedError`: nobody
                else ends one that never comes back.

        Returns:
            Whether the call was sent; if not, `answered` is never called.
        """
