"""Commands whose standard streams are closed, full or not read, and those ended at once."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from policy_server import __version__
from tests.support.folders import ROOT

PROGRAM = shlex.join([sys.executable, str(ROOT / "generate.py")])


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which `$P` is the program."""
    return subprocess.run(
        ["bash", "-c", f"P={shlex.quote(PROGRAM)}\n{line}"], capture_output=True, text=True
    )


@pytest.mark.parametrize("arguments", ["--version", "--help", "digest generate.py"])
def test_full_disk_is_one_line(arguments: str) -> None:
    ended = shell(f"cd {shlex.quote(str(ROOT))}; $P {arguments} >/dev/full")

    assert (ended.returncode, ended.stderr) == (
        1,
        "generate.py: standard output: can't be written: No space left on device\n",
    )


def test_version_that_nobody_reads_is_no_error() -> None:
    ended = shell("set -o pipefail; $P --version | true")

    assert (ended.returncode, ended.stderr) == (141, "")


def test_output_that_is_closed_goes_nowhere() -> None:
    ended = shell("$P --version >&-")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_errors_that_are_closed_leave_the_exit_code() -> None:
    assert shell("$P frobnicate 2>&-").returncode == 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_digest_is_computed_whatever_is_closed(closed: str) -> None:
    assert shell(f"cd {shlex.quote(str(ROOT))}; $P digest generate.py {closed}").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [("hash_key", "the key: expected", 2), ("predict -", "standard input: expected JSON", 1)],
)
def test_input_that_is_closed_is_empty(arguments: str, message: str, code: int) -> None:
    ended = shell(f"$P {arguments} <&-")

    assert ended.returncode == code
    assert ended.stderr.startswith(f"generate.py: {message}")


@pytest.mark.parametrize(
    "start",
    [
        f"import runpy; runpy.run_path({str(ROOT / 'generate.py')!r}, run_name='__main__')",
        "from policy_server.commands.installed_program import installed_program; "
        "sys.exit(installed_program())",
    ],
    ids=["generate.py", "policy-server"],
)
def test_interrupt_while_modules_are_imported_ends_with_130_and_no_words(start: str) -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "class Interrupt:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'policy_server.commands.program':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt)\n"
        f"{start}\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_version_is_one_line_of_the_program() -> None:
    assert shell("$P --version").stdout == f"Policy Server {__version__}\n"


@pytest.mark.parametrize(
    ("options", "is_one_line"), [("", True), ("-X dev", False)], ids=["usual", "dev"]
)
def test_error_that_a_library_logs_is_one_line(options: str, *, is_one_line: bool) -> None:
    program = """
import asyncio
import sys
from policy_server.commands.command_line import run

class Commands:
    @staticmethod
    def ends() -> None: ...

def fails():
    raise MemoryError

async def main():
    asyncio.get_running_loop().call_soon(fails)
    await asyncio.sleep(0)

run(Commands, ["--version"], program="p")
asyncio.run(main())
"""
    ended = shell(
        f"cd {shlex.quote(str(ROOT))}; {sys.executable} {options} -c {shlex.quote(program)}"
    )

    assert ended.returncode == 0
    assert ended.stderr.startswith("Exception in callback fails()")
    assert ended.stderr.count("MemoryError") == 1
    assert (len(ended.stderr.splitlines()) == 1) == is_one_line
