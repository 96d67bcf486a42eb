"""The program; see the package."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.injected_faults.commands import COMMANDS, outcomes_of
from tests.injected_faults.layer import CONTROL, Control, Fault, Faults, Kind, build_layer
from tests.injected_faults.outcomes import COLUMNS, Outcome, line_of
from tests.injected_faults.servers import STEPS, outcomes_of_steps

# Smaller ones take the memory that is there already, mostly.
_LARGE_BYTES = 65_536
FAULTS = {
    "one operation (EIO)": Fault(1, error=errno.EIO),
    "one reading operation (EIO)": Fault(1, Kind.READ, errno.EIO),
    "disk full from then on": Fault(1, Kind.OPEN | Kind.WRITE, errno.ENOSPC, is_lasting=True),
    "one allocation of 64 KiB or more": Fault(
        1, Kind.ALLOCATE, errno.ENOMEM, least_bytes=_LARGE_BYTES
    ),
}


def main() -> int:
    """Measure what is named, or all; return 1 for what must not happen, or did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.injected_faults")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*COMMANDS, *STEPS]))
    parser.add_argument("--every", type=int, default=1, help="let every n-th operation fail only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="injected-") as name:
        place = Path(name)
        if CONTROL not in os.environ:
            return _started_with_the_layer(place)
        control = Control.of_this_process()
        _say("| " + " | ".join(COLUMNS) + " |")
        _say("| --- " * len(COLUMNS) + "|")
        bad: list[Outcome] = []
        untold: list[str] = []
        for each in options.names or [*COMMANDS, *STEPS]:
            for told, fault in FAULTS.items():
                faults = Faults(fault, options.every)
                if each in COMMANDS:
                    outcomes = list(outcomes_of(COMMANDS[each], control, place, faults))
                else:
                    outcomes = list(outcomes_of_steps(STEPS[each], place, faults))
                _say(line_of(each, told, outcomes))
                bad += [item for item in outcomes if item.is_bad]
                if not any(item.is_reached for item in outcomes):
                    untold.append(f"{each}, {told}: no operation came that was to fail")
        for item in bad:
            _say(f"{item.fault}: {item.kind}: {item.told}")
        for line in untold:
            _say(line)
    return bool(bad or untold)


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
