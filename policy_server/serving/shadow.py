"""A shadow: a version that gets copies of questions, and is compared with those that answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from policy_server.distributions.agreement import compare
from policy_server.errors import PolicyServerError
from policy_server.metrics import PolicyMetrics
from policy_server.policy import (
    NO_SEED,
    Float32Array,
    Float64Array,
    PolicyInputs,
    PolicyOutputs,
)
from policy_server.serving.questions import Answer, Question
from policy_server.serving.version import PolicyVersion

__all__ = ["Shadow", "ShadowReport"]

logger = logging.getLogger(__name__)

# So many copies wait at most; others are dropped.
_MOST_COPIES = 256
_COPIES_A_CALL = 32
# A shadow computes for at most this share of the time: the rest is that of those that answer.
_SHARE_OF_TIME = 0.1
_TIMEOUT_S = 5.0
# Dropped copies go to the metrics together: one at a time costs as much as it saves.
_DROPPED_A_COUNT = 100
# The versions that answer have so many questions waiting: they need the time themselves.
_BUSY = 64
_LATEST_CALLS = 256
_SHOWN_CALLS = 24


@dataclass(frozen=True)
class _Copy:
    """A question that was answered.

    Attributes:
        version: answered it.
        question: the question.
        answer: its answer, whose call has the distribution.
    """

    version: PolicyVersion
    question: Question
    answer: Answer


@dataclass(frozen=True)
class ShadowReport:
    """How a shadow has agreed so far.

    Attributes:
        copies: how many copies it has answered.
        same_mode: the share of these whose deterministic action is that of the answering version;
            None before the first.
        mean_distance: their mean total variation distance, from 0 to 1; None before the first.
        failed: how many copies it could not answer.
        dropped: how many copies it never got, since there was no time for them.
        call_seconds: the median time of its latest calls; None before the first.
        reason: the last error, in words; None where there was none.
        course: of each of its latest calls the share of copies with the same mode.
    """

    copies: int
    same_mode: float | None
    mean_distance: float | None
    failed: int
    dropped: int
    call_seconds: float | None
    reason: str | None
    course: tuple[float, ...] = ()


class Shadow:
    """A version that answers nobody, and its agreement with those that do."""

    def __init__(self, version: PolicyVersion, metrics: PolicyMetrics) -> None:
        """Own the copies that wait, and the task that asks, until `close`.

        Args:
            version: the shadow.
            metrics: counts its copies.
        """
        self.version = version
        self._metrics = metrics
        self._copies: deque[_Copy] = deque()
        self._task: asyncio.Task[None] | None = None
        self._answered = 0
        self._same = 0
        self._failed = 0
        self._dropped = 0
        self._counted = 0
        self._distance = 0.0
        self._seconds: deque[float] = deque(maxlen=_LATEST_CALLS)
        self._course: deque[float] = deque(maxlen=_SHOWN_CALLS)
        self._reason: str | None = None
        self._raised: type[Exception] | None = None
        self._is_closed = False

    @property
    def has_room(self) -> bool:
        """Return whether another copy may wait."""
        return not self._is_closed and len(self._copies) < _MOST_COPIES

    def offer(self, version: PolicyVersion, question: Question, answer: Answer) -> None:
        """Take a copy of a question that was answered; drop it where there is no time for it.

        Args:
            version: the version that answered.
            question: the question.
            answer: its answer.
        """
        is_busy = version.scheduler.waiting > _BUSY
        if not question.is_copied or is_busy or not self.has_room:
            self._drop()
            return
        self._copies.append(_Copy(version, question, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._work())

    def report(self) -> ShadowReport:
        """Return how the shadow has agreed so far."""
        known = self._answered
        return ShadowReport(
            copies=known,
            same_mode=self._same / known if known else None,
            mean_distance=self._distance / known if known else None,
            failed=self._failed,
            dropped=self._dropped,
            call_seconds=float(np.median(self._seconds)) if self._seconds else None,
            reason=self._reason,
            course=tuple(self._course),
        )

    def close(self) -> None:
        """Drop the copies that wait, and ask no more."""
        self._is_closed = True
        self._count_dropped()
        self._copies.clear()
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        try:
            while self._copies:
                copies = self._next_call()
                started = time.perf_counter()
                await self._ask(copies[0].version, copies)
                self._count_dropped()
                taken = time.perf_counter() - started
                await asyncio.sleep(taken * (1 / _SHARE_OF_TIME - 1))
        finally:
            self._task = None

    def _next_call(self) -> list[_Copy]:
        """Take the copies of the next call out: of one version, and with rows of one width."""
        first = self._copies[0]
        copies: list[_Copy] = []
        while self._copies and len(copies) < _COPIES_A_CALL:
            item = self._copies[0]
            is_alike = len(item.question.row) == len(first.question.row)
            if item.version is not first.version or not is_alike:
                break
            copies.append(self._copies.popleft())
        return copies

    def _inputs(self, copies: list[_Copy]) -> PolicyInputs:
        signature = self.version.signature
        dtype: type[np.floating[Any]] = signature.row_dtype
        rows: Float32Array | Float64Array = np.array([item.question.row for item in copies], dtype)
        return PolicyInputs.of_rows(
            rows,
            signature,
            is_deterministic=np.ones(len(rows), np.bool_),
            seeds=np.full(len(rows), NO_SEED),
            wants_distribution=True,
        )

    async def _ask(self, answering: PolicyVersion, copies: list[_Copy]) -> None:
        """Ask the shadow about some questions, and compare."""
        try:
            inputs = self._inputs(copies)
            started = time.perf_counter()
            async with asyncio.timeout(_TIMEOUT_S):
                outputs = await self.version.backend.infer(inputs)
            self._compare(answering, copies, outputs, time.perf_counter() - started)
        except TimeoutError:
            self._fail(copies, f"gave no answer within {_TIMEOUT_S:g} s")
        except PolicyServerError as error:
            self._fail(copies, error.message)
        except Exception as error:
            # Once: the metrics count the others, and each traceback takes time from those who ask.
            if self._raised is not type(error):
                self._raised = type(error)
                logger.exception("shadow_failed", extra={"version": self.version.label})
            self._fail(copies, type(error).__name__)

    def _compare(
        self,
        answering: PolicyVersion,
        copies: list[_Copy],
        outputs: PolicyOutputs,
        seconds: float,
    ) -> None:
        own, theirs = self.version.distribution, answering.distribution
        label = self.version.label
        self._seconds.append(seconds)
        given = [
            item.answer.call.outputs.distribution[item.answer.index]
            for item in copies
            if item.answer.call.outputs.distribution is not None
        ]
        is_known = outputs.distribution is not None and len(given) == len(copies)
        if own is None or theirs is None or not is_known:
            self._fail(copies, "its distribution is unknown, so that there is nothing to compare")
            return
        assert outputs.distribution is not None, "it is known"
        found = compare(theirs, own, np.array(given), outputs.distribution)
        same = int(np.count_nonzero(found.is_same_mode))
        self._answered += len(copies)
        self._same += same
        self._course.append(same / len(copies))
        self._distance += float(found.distance.sum())
        self._metrics.observe_shadow(label, found.distance.tolist(), seconds)
        self._metrics.count_shadow(label, "same_mode", same)
        self._metrics.count_shadow(label, "other_mode", len(copies) - same)

    def _fail(self, copies: list[_Copy], reason: str) -> None:
        self._failed += len(copies)
        self._reason = reason
        self._metrics.count_shadow(self.version.label, "failed", len(copies))

    def _drop(self) -> None:
        self._dropped += 1
        if self._dropped - self._counted >= _DROPPED_A_COUNT:
            self._count_dropped()

    def _count_dropped(self) -> None:
        count, self._counted = self._dropped - self._counted, self._dropped
        if count:
            self._metrics.count_shadow(self.version.label, "dropped", count)
