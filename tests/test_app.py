"""What app.py settles before anything else is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.folders import ROOT

APP = ROOT / "app.py"
# Without a policy the start ends, after the imports.
PROGRAM = f"""
import os, runpy
try:
    runpy.run_path({str(APP)!r})
except SystemExit:
    pass
print(os.environ["OPENBLAS_NUM_THREADS"])
"""
NO_POLICY = "schema.yaml: not found"
WRONG_SETTING = (
    {"POLICY_SERVER_NUM_REPLICAS": "0"},
    "POLICY_SERVER_NUM_REPLICAS: expected greater than",
)
UNKNOWN_SETTING = {"POLICY_SERVER_COLOUR": "1"}, "POLICY_SERVER_COLOUR: is no setting"


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "2"}, "2")], ids=["none", "two"]
)
def test_numpy_computes_on_one_thread_unless_told_otherwise(
    given: dict[str, str], expected: str, tmp_path: Path
) -> None:
    kept = {name: text for name, text in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    environment = {
        **kept,
        "POLICY_SERVER_HOME": str(tmp_path),
        # Else what is printed becomes a line of the log.
        "POLICY_SERVER_LOG_FORMAT": "text",
        **given,
    }

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


# Each case is a start of its own: each reason once, and each format where it is chosen: by settings
# that were read and, where those are wrong, by the environment alone.
@pytest.mark.parametrize(
    ("log_format", "given", "reason"),
    [
        ("auto", {}, NO_POLICY),
        ("JSON", {}, NO_POLICY),
        ("text", {}, NO_POLICY),
        ("json", *WRONG_SETTING),
        ("text", *WRONG_SETTING),
        ("auto", *UNKNOWN_SETTING),
    ],
)
def test_start_that_fails_is_one_line_in_the_form_of_the_log(
    log_format: str, given: dict[str, str], reason: str, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "POLICY_SERVER_HOME": str(tmp_path),
        "POLICY_SERVER_LOG_FORMAT": log_format,
        "POLICY_SERVER_METRICS_PORT": "0",
        **given,
    }

    done = subprocess.run(
        [sys.executable, "-c", "import app"],
        env=environment,
        cwd=APP.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    (line,) = done.stderr.splitlines()
    told = line if log_format == "text" else f"policy server: {json.loads(line)['reason']}"
    assert (
        told.removeprefix(f"policy server: {tmp_path}/")
        .removeprefix("policy server: ")
        .startswith(reason)
    )
    assert (done.returncode, done.stdout) == (3, "")
