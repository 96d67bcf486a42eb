"""Four times what a server can do: `python -m benchmarks.overload [SECONDS]`.

In this process, over a policy whose calls take 2 ms a row and that computes one call at a time:
questions come at an even pace, four times as many as it can answer. The table shows the latency of
those that are accepted, how soon the others are refused, the peak of the memory, and the latency a
second afterwards.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from policy_server.errors import OverloadedError
from policy_server.metrics import Metrics
from policy_server.policy import (
    DEFAULT_POLICY,
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
    SignatureTensor,
)
from policy_server.serving import Limits, Question, Scheduler

__all__ = ["Outcome", "overload"]

_ROW_S = 0.002
_FACTOR = 4
_MAX_WAIT_S = 0.1
_TICK_S = 0.01
_PAUSE_S = 1.0
_KILOBYTES_A_MEGABYTE = 1024


@dataclass
class Outcome:
    """What became of the questions.

    Attributes:
        answered: seconds until each answer.
        refused: seconds until each refusal.
    """

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)


class _Paced:
    """A policy of one number that takes 2 ms a row, one call at a time."""

    signature = PolicySignature(
        observation_width=1,
        observation_dtype="float32",
        inputs=(SignatureTensor("observations", "float32", (None, 1)),),
        outputs=(),
        action_outputs=(),
        components=None,
        basis="graph",
    )
    capacity = 1

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        async with self._turn:
            await asyncio.sleep(_ROW_S * len(inputs))
        rows = len(inputs)
        return PolicyOutputs(np.zeros((rows, 1)), np.zeros(rows), None)

    async def is_ready(self) -> bool:
        return True


async def overload(seconds: float, *, factor: float, max_wait_s: float) -> tuple[Outcome, Outcome]:
    """Ask more than a policy can answer, then less.

    Args:
        seconds: for how long.
        factor: how many times what it can answer.
        max_wait_s: the bound of the expected wait, in seconds.

    Returns:
        What became of the questions, and of those that came a second later at a tenth of the pace
        that the policy can keep.
    """
    limits = Limits(max_batch_size=256, max_queue_size=4096, timeout_s=30.0, max_wait_s=max_wait_s)
    scheduler = Scheduler(_Paced(), limits, Metrics().of(DEFAULT_POLICY))
    loaded = await _ask(scheduler, seconds, factor / _ROW_S)
    await asyncio.sleep(_PAUSE_S)
    after = await _ask(scheduler, 1.0, 0.1 / _ROW_S)
    await scheduler.aclose()
    return loaded, after


async def _ask(scheduler: Scheduler, seconds: float, per_second: float) -> Outcome:
    outcome = Outcome()

    async def ask() -> None:
        began = time.perf_counter()
        try:
            await scheduler.answer(Question([0.0], "predict"))
        except OverloadedError:
            outcome.refused.append(time.perf_counter() - began)
        else:
            outcome.answered.append(time.perf_counter() - began)

    start, asked = time.perf_counter(), 0
    async with asyncio.TaskGroup() as group:
        while (passed := time.perf_counter() - start) < seconds:
            while asked < passed * per_second:
                group.create_task(ask())
                asked += 1
            await asyncio.sleep(_TICK_S)
    return outcome


def _row(name: str, outcome: Outcome) -> str:
    cells = [
        f"{len(times)} | {1e3 * float(np.quantile(times, 0.5)):.1f} | "
        f"{1e3 * float(np.quantile(times, 0.99)):.1f}"
        if times
        else "0 | | "
        for times in (outcome.answered, outcome.refused)
    ]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KILOBYTES_A_MEGABYTE
    return f"| {name} | {' | '.join(cells)} | {memory:.0f} |\n"


def main() -> None:
    """Measure, and print a table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    write = sys.stdout.write
    write("| load | answered | p50 ms | p99 ms | refused | p50 ms | p99 ms | peak MB |\n")
    write("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
    for bound in (_MAX_WAIT_S, 30.0):
        loaded, after = asyncio.run(overload(seconds, factor=_FACTOR, max_wait_s=bound))
        write(_row(f"{_FACTOR} times, bound {bound:g} s", loaded))
        write(_row("a second later", after))


if __name__ == "__main__":
    main()
