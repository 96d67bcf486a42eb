"""Measure the faults that are named, or all, and print a line of the table for each."""

from __future__ import annotations

import sys

from tests.faults import clock, processes, redis, stops
from tests.faults.measuring import HEADS, measure

FAULTS = {**processes.FAULTS, **stops.FAULTS, **redis.FAULTS, **clock.FAULTS}


def say(line: str) -> None:
    """Write a line of the table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure the faults."""
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
