"""Programs that these tests need and Python's requirements can't bring."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["ROOT", "program", "run", "running", "script"]

ROOT = Path(__file__).parents[2]
_SYSTEM_FOLDERS = os.pathsep.join(("/usr/sbin", "/usr/local/sbin", "/sbin"))
_STOP_TIMEOUT_S = 20.0


def program(name: str, *, package: str) -> str:
    """Return where a program of the system lies, or fail with how to install it."""
    found = shutil.which(name, path=os.environ["PATH"] + os.pathsep + _SYSTEM_FOLDERS)
    if found is None:
        pytest.fail(f"{name} is missing; on Debian and Ubuntu: apt-get install {package}")
    return found


def script(name: str) -> str:
    """Return where a script of requirements-dev.txt lies, or fail with how to install it."""
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        pytest.fail(f"{name} is missing; pip install -r requirements-dev.txt")
    return str(found)


def run(*command: str, folder: Path = ROOT) -> str:
    """Return what a command prints; it has to succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@contextmanager
def running(
    *command: str, log: Path, is_ready: Callable[[], bool], timeout_s: float = 30.0
) -> Iterator[None]:
    """Run a program until the block ends; it is ready at its start."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            assert process.poll() is None, f"{command[0]} ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"{command[0]} is not ready:\n{log.read_text()}"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
