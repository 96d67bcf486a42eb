"""The packages that Ray's processes do without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from policy_server.backends.ray.slim_serve import write_left_out


@pytest.mark.parametrize("package", ["pandas", "pyarrow", "rfc3987_syntax"])
def test_left_out_packages_look_as_if_they_were_not_installed(tmp_path: Path, package: str) -> None:
    write_left_out(tmp_path / "left-out")
    program = f"""
try:
    import {package}
except ModuleNotFoundError as error:
    print(error.name)
"""

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "left-out")},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == package
