"""Measure the faults that are named, or all, and print a line of the table for each.

Tables that one fault alone has follow, and then a line for each expectation that did not hold; the
status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import signal
import sys

from tests.faults import clock, hostile, network, policies, processes, redis, stops, versions
from tests.faults.measuring import HEADS, Fault, measure, row

_ROOMS = (processes, stops, redis, clock, policies, hostile, network, versions)
FAULTS: dict[str, Fault] = {name: fault for room in _ROOMS for name, fault in room.FAULTS.items()}


def say(line: str) -> None:
    """Write a line of a table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure the faults."""
    # What was started is ended first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(FAULTS)}; all if left out"
    )
    names = parser.parse_args().names or list(FAULTS)
    if unknown := set(names) - set(FAULTS):
        parser.error(f"expected some of {', '.join(FAULTS)}, got {', '.join(unknown)}")
    say(row(HEADS))
    say("| --- " * len(HEADS) + "|")
    further, broken = [], []
    for name in names:
        measured = measure(FAULTS[name])
        for line in measured.lines:
            say(line)
        further += measured.further
        broken += measured.broken
    for line in further:
        say(line)
    if broken:
        sys.exit("\n".join(f"faults: {each}" for each in broken))


if __name__ == "__main__":
    main()
