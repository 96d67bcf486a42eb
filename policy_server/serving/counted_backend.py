"""The backend of a version, with counts of its answers, failures and integer actions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from policy_server.metrics import PolicyMetrics
from policy_server.policy import (
    ImmediateBackend,
    PolicyBackend,
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
    SendingBackend,
)

__all__ = ["CountedBackend", "VersionRecord", "counted"]

Answered = Callable[[PolicyOutputs | Exception | None], None]

_LATEST_CALLS = 256
_FEWEST_CALLS = 32


class VersionRecord:
    """How a version has answered so far.

    Attributes:
        asked: how many observations it was asked.
        failed: how many of them were in calls that failed.
    """

    def __init__(self) -> None:
        """Own the times of the latest calls, for as long as the version is loaded."""
        self.asked = 0
        self.failed = 0
        self._seconds: deque[float] = deque(maxlen=_LATEST_CALLS)

    @property
    def call_seconds(self) -> float | None:
        """Return the median time of the latest calls; None before there are enough of them."""
        if len(self._seconds) < _FEWEST_CALLS:
            return None
        return float(np.median(self._seconds))

    def note(self, rows: int, *, seconds: float | None) -> None:
        """Note a call.

        Args:
            rows: how many observations it had.
            seconds: how long it took; None where it failed.
        """
        self.asked += rows
        if seconds is None:
            self.failed += rows
        else:
            self._seconds.append(seconds)


class CountedBackend:
    """An `ImmediateBackend` that counts the answers of another backend, and its integer actions."""

    def __init__(
        self, backend: PolicyBackend, metrics: PolicyMetrics, label: str, record: VersionRecord
    ) -> None:
        """Own nothing: the backend, the metrics and the record outlive this object."""
        self._backend = backend
        self._immediate = backend if isinstance(backend, ImmediateBackend) else None
        self._metrics = metrics
        self._label = label
        self._record = record
        self._choices = [
            (part.name or str(index), part.first_column)
            for index, part in enumerate(backend.signature.components or ())
            if part.kind == "categorical"
        ]

    @property
    def signature(self) -> PolicySignature:
        """Return the signature of the policy; see `PolicyBackend`."""
        return self._backend.signature

    @property
    def capacity(self) -> int:
        """Return how many calls are computed at the same time; see `PolicyBackend`."""
        return self._backend.capacity

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now."""
        return await self._backend.is_ready()

    def is_immediate(self, rows: int) -> bool:
        """Return whether a call is short; no call is where the backend answers none at once."""
        return self._immediate is not None and self._immediate.is_immediate(rows)

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations; see `PolicyBackend.infer`."""
        started = time.perf_counter()
        try:
            outputs = await self._backend.infer(inputs)
        except Exception:
            self._note_failed(inputs)
            raise
        self._note(outputs, time.perf_counter() - started)
        return outputs

    def infer_at_once(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations; see `ImmediateBackend.infer_at_once`."""
        assert self._immediate is not None, "is_immediate said so"
        started = time.perf_counter()
        try:
            outputs = self._immediate.infer_at_once(inputs)
        except Exception:
            self._note_failed(inputs)
            raise
        self._note(outputs, time.perf_counter() - started)
        return outputs

    def _note_failed(self, inputs: PolicyInputs) -> None:
        self._record.note(len(inputs), seconds=None)
        self._metrics.count_version(self._label, "failed", len(inputs))

    def _note(self, outputs: PolicyOutputs, seconds: float) -> None:
        self._record.note(len(outputs), seconds=seconds)
        self._metrics.count_version(self._label, "answered", len(outputs))
        # All or none: where a row is to blame, the others are asked again.
        counted = [(name, _counts_of(outputs, column)) for name, column in self._choices]
        for name, counts in counted:
            self._metrics.count_actions(name, counts)


def _counts_of(outputs: PolicyOutputs, column: int) -> dict[int, int]:
    """Return how often each integer action of a column was answered.

    Raises:
        ValueError: if one is negative, or NaN.
    """
    if len(outputs) == 1:
        # NumPy's counts take ten times as long.
        action = int(outputs.actions.item(0, column))
        if action < 0:
            raise ValueError(action)
        return {action: 1}
    counts = np.bincount(outputs.actions[:, column].astype(np.int64)).tolist()
    return {action: count for action, count in enumerate(counts) if count}


class _CountedSending(CountedBackend):
    """A `SendingBackend` with counts."""

    def __init__(
        self, backend: SendingBackend, metrics: PolicyMetrics, label: str, record: VersionRecord
    ) -> None:
        """Own nothing; see `CountedBackend`."""
        super().__init__(backend, metrics, label, record)
        self._sending = backend

    def send(self, inputs: PolicyInputs, answered: Answered, *, within_s: float) -> bool:
        """Send a call; see `SendingBackend.send`. One that is lost counts when it is made again."""
        started = time.perf_counter()

        def counted_outcome(outcome: PolicyOutputs | Exception | None) -> None:
            if isinstance(outcome, PolicyOutputs):
                try:
                    self._note(outcome, time.perf_counter() - started)
                except Exception as error:
                    # Raised here, it would end the connection that the answer came by.
                    outcome = error
            elif outcome is not None:
                self._note_failed(inputs)
            answered(outcome)

        return self._sending.send(inputs, counted_outcome, within_s=within_s)


def counted(
    backend: PolicyBackend, metrics: PolicyMetrics, label: str, record: VersionRecord
) -> CountedBackend:
    """Return a backend with counts, which can be sent calls where the one behind it can.

    Args:
        backend: computes the version.
        metrics: counts its answers, failures and integer actions.
        label: the version's name.
        record: notes its calls.
    """
    if isinstance(backend, SendingBackend):
        return _CountedSending(backend, metrics, label, record)
    return CountedBackend(backend, metrics, label, record)
