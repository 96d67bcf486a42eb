"""The expectation of a fault, and what of it did not hold.

`TARGET` is what the server aims at in every fault. A fault for which docs/reliability.md states a
limit is held to that limit in its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from tests.faults.load import CLIENTS, Asked

__all__ = ["TARGET", "Counts", "Course", "Expectation", "Limits", "connections_lost"]

_UNAVAILABLE = 503
_SUCCESSES = range(200, 300)
# A connection that a client has, and the next one, which the kernel makes while the process ends.
_CONNECTIONS_OF_A_CLIENT = 2
# The kernel ends those that it has made in that time, on a busy machine too.
_CONNECTIONS_END_S = 1.0


@dataclass(frozen=True)
class Counts:
    """What became of the requests of a load.

    Attributes:
        requests: how many were sent.
        answered: how many had a successful answer.
        refused: how many were answered 503.
        failed: how many had another answer.
        wrong: how many answers are not the library's, and how many 503 had no `Retry-After`.
        lost: how many connections ended without an answer.
        slowest_s: the longest wait for an answer, or for the end of the connection.
        last_trouble_s: when the last request without a successful answer ended, in seconds after
            the fault; None if there was none.
    """

    requests: int
    answered: int
    refused: int
    failed: int
    wrong: int
    lost: int
    slowest_s: float
    last_trouble_s: float | None

    @classmethod
    def of(cls, sent: Sequence[Asked], happened: float) -> Self:
        """Count requests.

        Args:
            sent: at least one.
            happened: when the fault happened, by the clock of `Asked.at`.
        """
        assert sent, "the clients sent nothing"
        statuses = [asked.status for asked in sent]
        answered = sum(status in _SUCCESSES for status in statuses)
        refused, lost = statuses.count(_UNAVAILABLE), statuses.count(0)
        troubles = [
            asked.at + asked.seconds - happened for asked in sent if asked.status not in _SUCCESSES
        ]
        return cls(
            len(sent),
            answered,
            refused,
            len(sent) - answered - refused - lost,
            sum(not asked.is_right for asked in sent),
            lost,
            max(asked.seconds for asked in sent),
            max(troubles, default=None),
        )


@dataclass
class Course:
    """What was seen of a server from the fault to its end.

    Attributes:
        happened: when the fault happened, by `time.monotonic`.
        ready_s: when it was last not ready, in seconds after the fault; 0 if it always was.
        stop_s: how long its stop took, in seconds.
        pids: the ids of its processes, and of all that were ever below it.
        status: that of its end; negative for a signal.
        left: processes and files that are there after the end, in words.
    """

    happened: float
    ready_s: float = 0.0
    stop_s: float = 0.0
    status: int = 0
    pids: set[int] = field(default_factory=set)
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """The most that the requests of a load may meet; none may be wrong.

    Attributes:
        refused: how many may be answered 503, with `Retry-After`.
        failed: how many may have another answer.
        lost: how many may end without an answer.
        slowest_s: the longest that one may take, in seconds.
        trouble_s: when the last without a successful answer has to have ended, in seconds after
            the fault.
    """

    refused: float = 0
    failed: float = 0
    lost: float = 0
    slowest_s: float = 15.0
    trouble_s: float = math.inf

    def broken_by(self, counts: Counts) -> Iterator[str]:
        """Give what did not hold, in words."""
        yield from _beyond("wrong answers", counts.wrong, 0)
        yield from _beyond("answers 503", counts.refused, self.refused)
        yield from _beyond("failed requests", counts.failed, self.failed)
        yield from _beyond("lost requests", counts.lost, self.lost)
        yield from _beyond("the slowest request", counts.slowest_s, self.slowest_s, " s")
        if counts.last_trouble_s is not None:
            yield from _beyond("the last trouble", counts.last_trouble_s, self.trouble_s, " s")


@dataclass(frozen=True)
class Expectation:
    """What must hold in a fault; nothing may be left behind by any.

    Attributes:
        limits: of loads that are not held to the target, by the names of the loads.
        ready_s: when the server has to be ready again, in seconds after the fault.
        stop_s: how long its stop may take, in seconds: `docker stop` kills after ten.
    """

    limits: Mapping[str, Limits] = field(default_factory=dict)
    ready_s: float = 15.0
    stop_s: float = 10.0

    def broken_by(self, counts: Mapping[str, Counts], course: Course) -> Iterator[str]:
        """Give what did not hold, in words, such as `sessions: lost requests: ...`.

        Args:
            counts: by the names of the loads.
            course: that of their server.
        """
        for name, counted in counts.items():
            for broken in self.limits.get(name, Limits()).broken_by(counted):
                yield f"{name}: {broken}" if name else broken
        yield from _beyond("ready again", course.ready_s, self.ready_s, " s")
        yield from _beyond("the stop", course.stop_s, self.stop_s, " s")
        if course.status > 0:
            yield f"the stop: expected status 0 or the signal's, got {course.status}"
        if course.left:
            yield f"left behind: expected nothing, got {', '.join(course.left)}"


TARGET = Expectation()


def connections_lost(
    *, clients: int = CLIENTS, within_s: float = _CONNECTIONS_END_S, slowest_s: float = 15.0
) -> Limits:
    """Return the limits of a load where a process that held its connections is killed.

    Args:
        clients: how many ask.
        within_s: when the connections have ended, in seconds after the fault.
        slowest_s: the longest that a request may take, in seconds.
    """
    return Limits(lost=clients * _CONNECTIONS_OF_A_CLIENT, slowest_s=slowest_s, trouble_s=within_s)


def _beyond(subject: str, found: float, most: float, unit: str = "") -> Iterable[str]:
    if found <= most:
        return []
    return [f"{subject}: expected {most:g}{unit} at the most, got {found:.6g}{unit}"]
