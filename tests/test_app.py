"""What app.py settles before anything else is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app.py"
# Without a policy the start ends, after the imports.
PROGRAM = f"""
import os, runpy
try:
    runpy.run_path({str(APP)!r})
except SystemExit:
    pass
print(os.environ["OPENBLAS_NUM_THREADS"])
"""


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "2"}, "2")], ids=["none", "two"]
)
def test_numpy_computes_on_one_thread_unless_told_otherwise(
    given: dict[str, str], expected: str, tmp_path: Path
) -> None:
    kept = {name: text for name, text in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    environment = {**kept, "POLICY_SERVER_HOME": str(tmp_path), **given}

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        cwd=APP.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.split() == [expected]
