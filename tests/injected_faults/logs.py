"""A running server whose log can't be written while each prediction stands in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.injected_faults.layer import CHANGES, Control, Fault, Faults
from tests.injected_faults.outcomes import Outcome, Step
from tests.injected_faults.served import answers, environment_of, fill
from tests.support.server_processes import Server, running_server
from tests.support.waiting import wait_until

__all__ = ["STEPS"]

_REQUESTS, _CLIENTS = 24, 4
# Of each request: its prediction, and its line of the access log.
_EVENTS = ("prediction", "request")
_EXPECTED = len(_EVENTS) * _REQUESTS


def _outcomes_of(place: Path, faults: Faults) -> Iterator[Outcome]:
    """Let the log fail at one operation after the other, while a running server is asked."""
    control, home = Control.of_this_process(), place / "served" / "home"
    fill(home)
    variables = {**environment_of(home), "POLICY_SERVER_PREDICTION_LOG_RATE": "1"}
    with running_server(home.parent, environment=variables) as server:
        log = home.parent / "server.log"
        # Lines of the access log are held back for a moment: those of the start come before.
        answers(server)
        wait_until(lambda: '"route":"/distribution"' in log.read_text())
        start = log.stat().st_size
        control.arm(log, faults.never)
        _are_answered(server)
        wait_until(lambda: _Lines.of(log, start).number == _EXPECTED)
        control.disarm()
        for fault in faults.each(control.counted):
            yield _outcome(control, server, log, fault)


def _outcome(control: Control, server: Server, log: Path, fault: Fault) -> Outcome:
    start = log.stat().st_size
    control.arm(log, fault)
    are_right = _are_answered(server)
    control.disarm()
    if not control.failed:
        return Outcome(fault, "not reached")
    # The next line that can be written tells of those before it.
    are_right = _are_answered(server) and are_right
    with suppress(AssertionError):
        wait_until(lambda: _Lines.of(log, start).number == 2 * _EXPECTED, timeout_s=10)
    lines = _Lines.of(log, start)
    if not are_right:
        return Outcome(fault, "half replaced", f"another answer, or none: {lines}")
    is_told = len(lines.lost) == 1 and not lines.others and len(lines.cut_off) <= 1
    if not is_told or lines.number != 2 * _EXPECTED:
        return Outcome(fault, "not told in one line", str(lines))
    return Outcome(fault, "done all the same")


def _are_answered(server: Server) -> bool:
    """Ask many times, and return whether all answers are the library's."""
    with ThreadPoolExecutor(_CLIENTS) as pool:
        return all(list(pool.map(lambda _: answers(server), range(_REQUESTS))))


@dataclass(frozen=True)
class _Lines:
    """The lines that a log has got.

    Attributes:
        written: the number of those about requests.
        lost: the number of lines in each `log_lines_lost`.
        cut_off: the lines of which only the start was written.
        others: all others.
    """

    written: int
    lost: list[int]
    cut_off: list[str]
    others: list[str]

    @property
    def number(self) -> int:
        """Return the number of lines about requests that were written or are told to be lost."""
        return self.written + sum(self.lost)

    @classmethod
    def of(cls, log: Path, start: int) -> _Lines:
        """Return the lines of a log from a byte on."""
        written, lost, cut_off, others = 0, [], [], []
        with log.open("rb") as file:
            file.seek(start)
            lines = filter(None, file.read().decode().splitlines())
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:
                cut_off.append(line)
                continue
            if found["event"] in _EVENTS:
                written += 1
            elif found["event"] == "log_lines_lost":
                lost.append(found["lines"])
            else:
                others.append(line)
        return cls(written, lost, cut_off, others)


STEPS = {"log": Step(_outcomes_of, CHANGES)}
