"""The ticks of a closed loop: asked at a fixed rate, whatever the server does.

The schedule is fixed before the first tick. Where an answer comes after the next tick began, that
tick is asked late and not left out, and its time counts from its schedule: a server that stands
still for a second costs all ticks of that second, and none of them is omitted ("coordinated
omission").
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy_server.commands.realtime.connections import Connection
from policy_server.errors import ServerAnswerError
from policy_server.lean_imports import without_collections

__all__ = ["Asked", "Ticks", "drive"]

_OK = 200
# The first tick begins this long after the schedule is made, or a tick if that is shorter.
_LEAD_S = 0.1


@dataclass(frozen=True, eq=False)
class Asked:
    """One policy that is asked at each tick.

    Attributes:
        name: the policy's name.
        connection: asks it.
        requests: what is asked, one after another and over again.
    """

    name: str
    connection: Connection
    requests: Sequence[bytes]


@dataclass(frozen=True, eq=False)
class Ticks:
    """The times of the ticks that were driven, in seconds since the first one's schedule.

    Attributes:
        hz: their rate.
        planned: how many there should have been.
        begun: float64[T], when each tick began.
        asked: float64[T, P], when each policy was asked.
        answered: float64[T, P], when its answer was there.
        statuses: int64[T, P], of the answers.
        ended: why they ended before all were driven; None where they did not.
    """

    hz: float
    planned: int
    begun: NDArray[np.float64]
    asked: NDArray[np.float64]
    answered: NDArray[np.float64]
    statuses: NDArray[np.int64]
    ended: KeyboardInterrupt | ServerAnswerError | None = None

    def __len__(self) -> int:
        """Return the number of ticks whose answers are all there."""
        return len(self.begun)

    @property
    def scheduled(self) -> NDArray[np.float64]:
        """Return float64[T], when each tick should have begun."""
        return np.arange(len(self)) / self.hz


def drive(
    policies: Sequence[Asked],
    *,
    hz: float,
    seconds: float,
    spin_s: float,
    show: Callable[[int, int], None] = lambda _done, _total: None,
) -> Ticks:
    """Ask each policy at each tick, one after another, as a controller does.

    Args:
        policies: what is asked.
        hz: ticks a second.
        seconds: for how long.
        spin_s: how long before a tick the processor is kept busy, since a sleep may end late.
        show: is told each second how many ticks of how many are done.

    Returns:
        The times. A connection that breaks and Ctrl-C end them early.
    """
    planned = max(1, round(hz * seconds))
    begun = np.zeros(planned)
    asked, answered = np.zeros((planned, len(policies))), np.zeros((planned, len(policies)))
    statuses = np.zeros((planned, len(policies)), np.int64)
    tick, ended = 0, None
    each_second = max(1, round(hz))
    clock = time.perf_counter
    gc.collect()
    with without_collections():
        start = clock() + min(1 / hz, _LEAD_S)
        try:
            for tick in range(planned):
                _wait_until(start + tick / hz, spin_s)
                begun[tick] = clock() - start
                for index, policy in enumerate(policies):
                    request = policy.requests[tick % len(policy.requests)]
                    asked[tick, index] = clock() - start
                    statuses[tick, index], _ = policy.connection.ask(request)
                    answered[tick, index] = clock() - start
                if tick % each_second == 0:
                    show(tick, planned)
            tick = planned
        except (KeyboardInterrupt, ServerAnswerError) as error:
            ended = error
    show(planned, planned)
    return Ticks(
        hz, planned, begun[:tick], asked[:tick], answered[:tick], statuses[:tick], ended=ended
    )


def _wait_until(due: float, spin_s: float) -> None:
    left = due - time.perf_counter() - spin_s
    if left > 0:
        time.sleep(left)
    while time.perf_counter() < due:
        """Spin: a sleep would end some 50 microseconds late."""
