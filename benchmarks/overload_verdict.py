"""What became of the requests of an overload, and whether the server held.

Some of what is measured is the machine's: where it had no time for this process, the clients fell
behind their pace. Each latency may lie above its bound by as much as that, and by a tenth of it;
beyond a bound of its own that delay tells of a busy machine, and the run of nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Outcome", "Run", "judge"]

_OK, _UNAVAILABLE = b"200", b"503"
_SHARE = 0.1
# A delay of the clients that hides no bound: half of the shorter wait that the server is given.
_LATE_S = 0.05
# Of what the policy can do alone: a server that collapses answers next to nothing in time.
_GOODPUT_SHARE = 0.5
# At once: a tenth of the time after which a person notices a delay.
_REFUSED_S = 0.01
# What connections and the queue may take, and what memory may seem to grow by under the load.
_TAKEN_MB, _GROWN_MB = 10.0, 2.0
# How many bodies wait within a bound varies by more than this with the speed of the machine.
_BODIES_VARY = 0.1
# The median of the fifty requests a second later, against that of those before.
_BACK_FACTOR, _BACK_S = 1.5, 0.001


@dataclass
class Outcome:
    """What became of the requests.

    Attributes:
        answered: seconds until each answer.
        refused: seconds until each 503 that has `Retry-After`.
        failed: the first bytes of every other answer, or why there was none.
        gave_up: how many closed their connection before the answer.
        late_s: how far the requests were behind their pace at most, in seconds: where the machine
            had no time for this process, the figures tell more of that than of the server.
    """

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: list[bytes] = field(default_factory=list)
    gave_up: int = 0
    late_s: float = 0.0

    def note(self, answer: bytes, seconds: float) -> None:
        """Count an answer.

        Args:
            answer: all of it.
            seconds: since the request was sent.
        """
        status = answer[9:12]
        if status == _OK:
            self.answered.append(seconds)
        elif status == _UNAVAILABLE and b"\r\nretry-after: " in answer:
            self.refused.append(seconds)
        else:
            self.failed.append(answer[:80])


@dataclass(frozen=True)
class Run:
    """An overload, and what came before and after it.

    Attributes:
        bound_s: the server's bound of the wait, in seconds.
        before: of a tenth of what the server can do.
        loaded: of four times that.
        after: of a tenth again, a second later.
        memory_mb: the server's memory before, and at even distances under the load.
        alone: how many requests the policy itself could answer while the load lasted.
        bodies_mb: the bodies that may wait to be read within the bound.
    """

    bound_s: float
    before: Outcome
    loaded: Outcome
    after: Outcome
    memory_mb: Sequence[float]
    alone: int
    bodies_mb: float = 0.0


def judge(run: Run) -> list[str]:
    """Return what did not hold, in words; nothing where all did."""
    return [
        *_judge_pace(run),
        *_judge_whole("before", run.before),
        *_judge_load(run),
        *_judge_memory(
            run.memory_mb,
            taken_mb=_TAKEN_MB + run.bodies_mb,
            grown_mb=_GROWN_MB + _BODIES_VARY * run.bodies_mb,
        ),
        *_judge_end(run),
    ]


def _judge_pace(run: Run) -> Iterator[str]:
    for part in ("before", "loaded", "after"):
        late_s = getattr(run, part).late_s
        if late_s > _LATE_S:
            yield (
                f"{part}: the run tells nothing: its clients were {1e3 * late_s:.0f} ms behind "
                f"their pace, of which {1e3 * _LATE_S:g} ms are allowed; the machine was busy"
            )


def _judge_whole(part: str, outcome: Outcome) -> Iterator[str]:
    others = len(outcome.refused) + len(outcome.failed)
    if others or not outcome.answered:
        yield f"{part}: expected each request to be answered, got {others} that were not"


def _judge_load(run: Run) -> Iterator[str]:
    loaded = run.loaded
    if loaded.failed:
        yield f"failed: expected 0, got {len(loaded.failed)}"
    if not loaded.answered or not loaded.refused:
        yield (
            f"expected some requests to be answered and some refused, got {len(loaded.answered)} "
            f"and {len(loaded.refused)}"
        )
        return
    if len(loaded.answered) < run.alone * _GOODPUT_SHARE:
        yield (
            f"answered: expected {run.alone * _GOODPUT_SHARE:.0f} at least, half of the "
            f"{run.alone} that the policy can do, got {len(loaded.answered)}"
        )
    for subject, times, most_s in (
        ("answered", loaded.answered, run.bound_s),
        ("refused", loaded.refused, _REFUSED_S),
    ):
        allowed_s = most_s * (1 + _SHARE) + min(loaded.late_s, _LATE_S)
        late_s = float(np.quantile(times, 0.99))
        if late_s > allowed_s:
            yield (
                f"{subject}: expected a 99th percentile of {1e3 * most_s:g} ms, with "
                f"{1e3 * (allowed_s - most_s):.0f} ms for noise, got {1e3 * late_s:.1f} ms"
            )


def _judge_memory(memory_mb: Sequence[float], *, taken_mb: float, grown_mb: float) -> Iterator[str]:
    before, first, *_, last = memory_mb
    if max(memory_mb) - before > taken_mb:
        yield (
            f"memory: expected {taken_mb:g} MB more than before at the most, got "
            f"{before:.1f} MB before and {max(memory_mb):.1f} MB"
        )
    if last - first > grown_mb:
        yield (
            f"memory: expected it to grow by {grown_mb:g} MB under the load at the most, got "
            f"{first:.1f} MB and then {last:.1f} MB"
        )


def _judge_end(run: Run) -> Iterator[str]:
    unanswered = list(_judge_whole("after", run.after))
    yield from unanswered
    if unanswered or not run.before.answered:
        return
    before_s = float(np.median(run.before.answered))
    after_s = float(np.median(run.after.answered))
    if after_s > before_s * _BACK_FACTOR + _BACK_S + min(run.after.late_s, _LATE_S) * _SHARE:
        yield (
            f"after: expected the median of before, {1e3 * before_s:.1f} ms, got "
            f"{1e3 * after_s:.1f} ms"
        )
