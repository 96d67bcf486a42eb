"""The composition root, in a process of its own: it sets what belongs to the whole process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from policy_server.formats import compiling_process
from tests.support.folders import ROOT
from tests.support.forked_programs import Ended, run_forked
from tests.support.processes import run

STARTED = """
import asyncio, gc
known = gc.get_stats()
from policy_server.asgi import app
are_collected = gc.get_stats() != known

async def main():
    before = gc.get_threshold(), gc.isenabled()
    async with app.lifespan():
        during = gc.get_threshold(), gc.isenabled(), gc.get_freeze_count() > 0
    return before, during

before, during = asyncio.run(main())
print(are_collected, before[0] != during[0], before[1], *during)
"""

CRAMPED = """
import asyncio, resource
from pathlib import Path
from policy_server.asgi import app

async def main():
    mapped = Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]
    limit = int(mapped) * 1024 + 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    async with app.lifespan():
        pass

asyncio.run(main())
"""


def test_server_settles_the_collector_and_sets_its_log(tmp_path: Path) -> None:
    ended = run_in_home(STARTED, tmp_path)

    line = "False True False (10000, 10, 20) True True"
    assert ended.stdout.splitlines()[-1] == line, ended.stderr
    assert "policy_served" in ended.stderr


def test_start_that_the_system_gives_no_thread_is_one_line(tmp_path: Path) -> None:
    ended = run_in_home(CRAMPED, tmp_path)

    assert ended.stderr.splitlines()[-1] == (
        "policy_server.errors.NotReadyError: the system gives less than the start needs: can't "
        "start new thread; raise the limits of memory, processes and open files (ulimit, the "
        "container's)"
    )


def run_in_home(program: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run a program where an example's files are served."""
    for file in ("schema.yaml", "saved_model.zip"):
        shutil.copy(ROOT / "examples" / "mouse_and_cheese" / file, tmp_path)
    environment = {
        **os.environ,
        "POLICY_SERVER_HOME": str(tmp_path),
        "POLICY_SERVER_BACKEND": "local",
        "POLICY_SERVER_METRICS_PORT": "0",
        "POLICY_SERVER_LOG_FORMAT": "text",
    }

    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


# What a start can fail with, as the system tells it.
ENDS = {
    "memory": "MemoryError()",
    "disk": "OSError(errno.ESTALE, 'Stale file handle', '/share/b.zip')",
}


@pytest.fixture(scope="module")
def ended_starts() -> dict[str, Ended]:
    """A start that ended with each of `ENDS`, by its name."""
    programs = {
        name: f"import errno; from policy_server.launch import end_start; end_start({error})"
        for name, error in ENDS.items()
    }
    return run_forked(programs, imports="import policy_server.launch")


def test_start_that_gets_no_memory_ends_in_one_line(ended_starts: dict[str, Ended]) -> None:
    ended = ended_starts["memory"]

    [line] = (ended.stdout + ended.stderr).splitlines()
    assert ended.status == 3
    assert "no memory; raise the limits of memory" in line
    assert "Traceback" not in line


def test_start_whose_disk_fails_ends_in_one_line_that_names_the_file(
    ended_starts: dict[str, Ended],
) -> None:
    ended = ended_starts["disk"]

    [line] = (ended.stdout + ended.stderr).splitlines()
    assert ended.status == 3
    assert "/share/b.zip: can't be read: Stale file handle; try again" in line


@pytest.mark.parametrize(
    ("module", "program", "status", "told"),
    [
        (
            "launch",
            "import policy_server.asgi",
            3,
            "policy server: there is too little memory to start; raise its limits\n",
        ),
        ("engine.cache", compiling_process.PROGRAM, 12, ""),
    ],
    ids=["server", "process that compiles"],
)
def test_import_that_gets_no_memory_ends_without_a_traceback(
    module: str, program: str, status: int, told: str
) -> None:
    fails = f"""
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "policy_server.{module}":
            raise MemoryError
sys.meta_path.insert(0, Finder())
"""

    assert run(sys.executable, "-c", fails + program, status=status).stderr == told
