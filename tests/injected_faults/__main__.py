"""The program; see the package."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.injected_faults import changes, logs, starts
from tests.injected_faults.commands import COMMANDS, outcomes_of
from tests.injected_faults.layer import CONTROL, Control, Fault, Faults, Kind, build_layer
from tests.injected_faults.outcomes import COLUMNS, line_of

STEPS = {**starts.STEPS, **changes.STEPS, **logs.STEPS}
# Smaller ones take the memory that is there already, mostly.
_LARGE_BYTES = 65_536
FAULTS = {
    "operation": ("one operation (EIO)", Fault(1, error=errno.EIO)),
    "read": ("one reading operation (EIO)", Fault(1, Kind.READ, errno.EIO)),
    "disk": (
        "disk full from then on",
        Fault(1, Kind.OPEN | Kind.WRITE, errno.ENOSPC, is_lasting=True),
    ),
    "memory": (
        "one allocation of 64 KiB or more",
        Fault(1, Kind.ALLOCATE, errno.ENOMEM, least_bytes=_LARGE_BYTES),
    ),
}


def main() -> int:
    """Measure what is named, or all; return 1 for what must not happen, or did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.injected_faults")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*COMMANDS, *STEPS]))
    parser.add_argument("--every", type=int, default=1, help="let every n-th operation fail only")
    parser.add_argument("--fails", choices=FAULTS, help="only this kind of fault; all if left out")
    options = parser.parse_args()
    kinds = [options.fails] if options.fails else list(FAULTS)
    with tempfile.TemporaryDirectory(prefix="injected-") as name:
        place = Path(name)
        if CONTROL not in os.environ:
            return _started_with_the_layer(place)
        _say("| " + " | ".join(COLUMNS) + " |")
        _say("| --- " * len(COLUMNS) + "|")
        are_good = [
            _is_good(each, *FAULTS[kind], options.every, place)
            for each in options.names or [*COMMANDS, *STEPS]
            for kind in kinds
        ]
    return not all(are_good)


def _is_good(name: str, told: str, fault: Fault, every: int, place: Path) -> bool:
    """Measure one kind of fault, and return whether nothing happened that must not."""
    if name in STEPS and not fault.kinds & STEPS[name].kinds:
        return True
    faults = Faults(fault, every)
    if name in COMMANDS:
        found = outcomes_of(COMMANDS[name], Control.of_this_process(), place, faults)
    else:
        found = STEPS[name].outcomes(place, faults)
    outcomes = list(found)
    _say(line_of(name, told, outcomes))
    bad = [f"{item.fault}: {item.kind}: {item.told}" for item in outcomes if item.is_bad]
    if not any(item.is_reached for item in outcomes):
        bad.append(f"{name}, {told}: no operation came that was to fail")
    for line in bad:
        _say(line)
    return not bad


def _started_with_the_layer(place: Path) -> int:
    """Run this program again, with the layer in it."""
    control = Control(place / "control")
    variables = {**os.environ, **control.variables(build_layer(place))}
    words = [sys.executable, "-m", __package__, *sys.argv[1:]]
    return subprocess.run(words, env=variables, check=False).returncode


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
