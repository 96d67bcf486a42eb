"""Many observations of one request: calls of their own, beside those of single observations.

A batch is cut into calls that are short enough for single observations to come in between, and no
more than two of those run at once, whatever the number of batches.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np

from policy_server.errors import (
    DistributionError,
    NotReadyError,
    OverloadedError,
    PolicyFailedError,
    UnsupportedAnswerError,
)
from policy_server.metrics import PolicyMetrics
from policy_server.policy import (
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyBackend,
    PolicyInputs,
    PolicyOutputs,
)

__all__ = ["ROWS_PER_CALL", "BulkCalls", "BulkRows"]

ROWS_PER_CALL = 1024
_MAX_CALLS_IN_FLIGHT = 2
# What no row alone brings: no answer of the backend, or none to the batch's kind and seed.
_OF_THE_WHOLE = (NotReadyError, OverloadedError, UnsupportedAnswerError)


@dataclass(frozen=True, eq=False)
class BulkRows:
    """Observations that follow each other in a batch.

    Attributes:
        observations: float[B, observation_width].
        first: the index of the first one in the batch.
        is_deterministic: whether modes are asked for, instead of draws.
        seeds: int64[B]; the seed of a row's draw, or -1 for an independent one.
    """

    observations: Float32Array | Float64Array
    first: int
    is_deterministic: bool
    seeds: Int64Array

    def part(self, start: int, stop: int) -> BulkRows:
        """Return some of the rows.

        Args:
            start: the first one.
            stop: the one after the last.
        """
        return BulkRows(
            self.observations[start:stop],
            self.first + start,
            self.is_deterministic,
            self.seeds[start:stop],
        )


class BulkCalls:
    """Calls a backend for batches. Used from one event loop."""

    def __init__(self, backend: PolicyBackend, *, timeout_s: float, metrics: PolicyMetrics) -> None:
        """Keep the backend.

        Args:
            backend: what answers.
            timeout_s: the longest that one call waits and runs, in seconds.
            metrics: where calls and refusals are counted.
        """
        self._backend = backend
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._places = asyncio.Semaphore(_MAX_CALLS_IN_FLIGHT)

    async def infer(self, rows: BulkRows) -> PolicyOutputs:
        """Answer rows of a batch by one call.

        Args:
            rows: at most `ROWS_PER_CALL`.

        Returns:
            The answers in the rows' order.

        Raises:
            OverloadedError: if no answer came in time.
            PolicyServerError: what the backend raised; if one row is to blame, it is named.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._places:
                return await self._infer(rows)
        except TimeoutError as error:
            self._metrics.count_rejected("timeout", len(rows.seeds))
            raise OverloadedError(
                f"no answer within {self._timeout_s:g} s; try again in a second"
            ) from error

    async def _infer(self, rows: BulkRows) -> PolicyOutputs:
        """Answer rows by one call; where that fails, find the first row that makes it fail."""
        answered = await self._attempt(rows)
        if isinstance(answered, PolicyOutputs):
            return answered
        if isinstance(answered, _OF_THE_WHOLE):
            raise answered
        count = len(rows.seeds)
        if count == 1:
            raise _of_row(answered, rows.first) from answered
        # Each half is asked again; the first of them that fails has the row to blame.
        await self._infer(rows.part(0, count // 2))
        await self._infer(rows.part(count // 2, count))
        raise PolicyFailedError.translate(answered)

    async def _attempt(self, rows: BulkRows) -> PolicyOutputs | Exception:
        """Answer rows by one call, or return why that failed; see `MicroBatcher`."""
        started, count = time.perf_counter(), len(rows.seeds)
        try:
            outputs = await self._backend.infer(
                PolicyInputs(rows.observations, np.full(count, rows.is_deterministic), rows.seeds)
            )
        except TimeoutError:
            raise
        except Exception as error:
            return error
        self._metrics.observe_batch(count)
        self._metrics.observe_stage("policy", time.perf_counter() - started)
        return outputs


def _of_row(error: Exception, row: int) -> DistributionError | PolicyFailedError:
    """Return the error with the row that is to blame in its message."""
    kind = DistributionError if isinstance(error, DistributionError) else PolicyFailedError
    return kind(f"observation {row}: {PolicyFailedError.translate(error).message}")
