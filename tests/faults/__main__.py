"""Measure the faults that are named, or all, and print a line of the table for each."""

from __future__ import annotations

import signal
import sys

from tests.faults import clock, network, policies, processes, redis, stops
from tests.faults.measuring import HEADS, Fault, measure

_ROOMS = (processes, stops, redis, clock, policies, network)
FAULTS: dict[str, Fault] = {name: fault for room in _ROOMS for name, fault in room.FAULTS.items()}


def say(line: str) -> None:
    """Write a line of the table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure the faults."""
    # What was started is ended first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    names = sys.argv[1:] or list(FAULTS)
    if unknown := set(names) - set(FAULTS):
        sys.exit(f"faults: expected some of {', '.join(FAULTS)}, got {', '.join(unknown)}")
    say("| " + " | ".join(HEADS) + " |")
    say("| --- " * len(HEADS) + "|")
    for name in names:
        for line in measure(FAULTS[name]):
            say(line)


if __name__ == "__main__":
    main()
