"""A server whose log, schema.yaml and reads fail; `python -m tests.injected_faults` has all."""

from __future__ import annotations

import re
import sys

import pytest

from tests.support.processes import run

pytestmark = pytest.mark.service


@pytest.mark.parametrize(("name", "fails", "every"), [("log", "disk", 30), ("keys", "read", 2)])
def test_server_whose_files_fail_answers_rightly_and_tells_what_it_lost(
    name: str, fails: str, every: int
) -> None:
    done = run(
        *(sys.executable, "-m", "tests.injected_faults", name),
        *("--fails", fails, "--every", str(every)),
    )

    [(faults, good)] = re.findall(rf"\| {name} \| [^|]* \| (\d+) \| (\d+) \|", done.stdout)
    assert int(faults) == int(good) >= 1
