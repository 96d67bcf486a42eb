"""A command whose operations on files fail; `python -m tests.injected_faults` has all of them."""

from __future__ import annotations

import re
import sys

import pytest

from tests.injected_faults.layer import CHANGES, Fault, Kind
from tests.injected_faults.outcomes import CONNECTION_ENDED, PROCESS_ENDED, Outcome
from tests.support.processes import run

FEWEST = 10


def test_command_whose_files_fail_changes_all_or_nothing() -> None:
    done = run(sys.executable, "-m", "tests.injected_faults", "replace", "--every", "12")

    counted = re.findall(r"\| replace \| [^|]* \| (\d+) \| \d+ \| (\d+) \|", done.stdout)
    assert len(counted) == 4
    assert sum(int(faults) for faults, _ in counted) >= FEWEST
    assert all(int(refused) for _, refused in counted)


@pytest.mark.parametrize("ended", [CONNECTION_ENDED, PROCESS_ENDED])
def test_process_may_end_for_want_of_memory_alone(ended: str) -> None:
    assert Outcome(Fault(1, CHANGES), ended).is_bad
    assert not Outcome(Fault(1, Kind.ALLOCATE), ended).is_bad
    assert not Outcome(Fault(1), "not reached").is_reached
