"""The packages that Ray's processes do without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from policy_server.backends.ray.slim_serve import write_left_out


def run(program: str, *, folder: Path) -> str:
    """Return what a program prints that has the folder of left-out packages first."""
    write_left_out(folder)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("package", ["pandas", "pyarrow", "rfc3987_syntax"])
def test_left_out_packages_look_as_if_they_were_not_installed(tmp_path: Path, package: str) -> None:
    program = f"""
try:
    import {package}
except ModuleNotFoundError as error:
    print(error.name)
"""

    assert run(program, folder=tmp_path / "left-out") == package


def test_checker_of_schemas_is_loaded_when_it_is_used(tmp_path: Path) -> None:
    program = """
import sys
import jsonschema
print("jsonschema.validators" in sys.modules)
try:
    jsonschema.validate({"a": 1}, {"type": "array"})
except jsonschema.ValidationError as error:
    print(error.message)
print("jsonschema.validators" in sys.modules, sys.modules["jsonschema"] is jsonschema)
"""

    lines = run(program, folder=tmp_path / "left-out").splitlines()

    assert lines == ["False", "{'a': 1} is not of type 'array'", "True True"]
