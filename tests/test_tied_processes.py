"""Processes that end with the one that started them."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from policy_server.child_environment import environment_of_child
from policy_server.tied_processes import tied_command
from tests.support.processes import child, command_line, descendants, is_running, run
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is tied")

TIED = """
import os, sys, time
from policy_server.tied_processes import end_with
end_with(int(sys.argv[1]))
print("tied", flush=True)
time.sleep(600)
"""
PARENT = f"""
import os, subprocess, sys
subprocess.run([sys.executable, "-c", {TIED!r}, str(os.getpid())])
"""
GENERATING = """
import asyncio
from policy_server.sdk.generator import generate
from policy_server.sdk.languages import LANGUAGES
info = {"title": "t", "version": "1"}
document = {"openapi": "3.1.0", "info": info, "paths": {}, "components": {}}
asyncio.run(generate(document, [LANGUAGES['python']]))
"""


def test_process_ends_with_the_killed_one_that_started_it() -> None:
    with child(sys.executable, "-c", PARENT) as parent:
        assert parent.read_line() == "tied"
        [tied] = descendants(parent.process.pid)

        parent.process.kill()

        wait_until(lambda: not is_running(tied))


def test_process_that_has_lost_the_one_that_started_it_ends_at_once() -> None:
    # As if that one had ended: another process is the parent.
    done = run(sys.executable, "-c", TIED, str(os.getppid()), status=-signal.SIGKILL)

    assert done.stdout == ""


def test_tied_command_is_the_program_with_its_arguments_and_priority(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getppid(), os.nice(0), os.environ['MARK'], *sys.argv[1:])"

    done = run(
        *tied_command([sys.executable, "-c", code, "a b", "-c"], niceness=1),
        folder=tmp_path,
        environment={"MARK": "here"},
    )

    assert done.stdout == f"{os.getpid()} {os.nice(0) + 1} here a b -c\n"


def test_generator_of_client_libraries_ends_with_the_killed_server() -> None:
    def java(pid: int) -> list[int]:
        # What becomes of it has its own command line before, with Java's in it.
        return [each for each in descendants(pid) if re.match(r"\S*/java ", command_line(each))]

    with child(sys.executable, "-c", GENERATING) as server:
        [generator] = server.wait_until(lambda: java(server.process.pid))
        # So it does not end by itself.
        os.kill(generator, signal.SIGSTOP)

        server.process.kill()

        wait_until(lambda: not is_running(generator))


def test_child_finds_this_package_from_any_folder(tmp_path: Path) -> None:
    done = run(
        *(sys.executable, "-P", "-c", "import policy_server"),
        folder=tmp_path,
        environment=environment_of_child(),
    )

    assert done.stderr == ""
