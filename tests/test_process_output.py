"""What libraries and child processes print becomes records of the log."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import logging, os, subprocess, sys, threading, warnings
from policy_server.process_output import drain_output, take_output
from policy_server.telemetry import configure_logging, log_uncaught

configure_logging(level="INFO", log_format="json", stream=take_output())
log_uncaught()
{body}
"""


def printed(body: str, *, status: int = 0) -> list[dict[str, Any]]:
    """Run a program whose output is taken, and return the documents that it logged."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_what_is_printed_is_logged_in_order_and_without_colours() -> None:
    lines = printed(
        "print('\\x1b[33m(raylet)\\x1b[0m a worker died', flush=True)\n"
        "os.write(2, b'E0000 00:00:17.5 12 proxy.cc:7] refused\\n\\nI1125 fine\\n')\n"
    )

    assert [(line["level"], line["event"]) for line in lines] == [
        ("WARNING", "(raylet) a worker died"),
        ("ERROR", "E0000 00:00:17.5 12 proxy.cc:7] refused"),
    ]


def test_what_a_child_prints_is_logged() -> None:
    lines = printed("subprocess.run(['sh', '-c', 'echo one; echo two >&2'])")

    assert [line["event"] for line in lines] == ["one", "two"]


def test_line_without_an_end_is_logged_when_the_process_ends() -> None:
    lines = printed("os.write(2, b'abrupt')")

    assert [line["event"] for line in lines] == ["abrupt"]


def test_drain_waits_for_what_was_printed() -> None:
    lines = printed("os.write(2, b'last\\n')\ndrain_output()\nos._exit(0)")

    assert [line["event"] for line in lines] == ["last"]


def test_warning_and_uncaught_errors_are_one_document_each() -> None:
    lines = printed(
        "warnings.warn('old')\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()\n"
        "raise ValueError('no')",
        status=1,
    )

    assert [line["logger"] for line in lines] == ["py.warnings", *["policy_server.telemetry"] * 2]
    assert "UserWarning: old" in lines[0]["event"]
    assert "ZeroDivisionError" in lines[1]["exc_info"]
    assert "ValueError: no" in lines[2]["exc_info"]


CLOSED = """
import asyncio, os, subprocess, sys
{before}
from policy_server.process_output import open_closed_streams, take_output
from policy_server.telemetry import configure_logging

open_closed_streams()
configure_logging(level="INFO", log_format="json", stream=take_output())
sys.stdin.read(), print("x"), sys.stderr.write("x")
subprocess.run(["true"], check=True)
{after}
"""
ALL_CLOSED = "<&- >&- 2>&-"


def status_with(closed: str, program: str) -> int:
    """Return the exit status of a program with some of its standard streams closed."""
    command = shlex.join([sys.executable, "-c", program])
    return subprocess.run(
        ["bash", "-c", f"exec {command} {closed}"], stdin=subprocess.DEVNULL, timeout=60
    ).returncode


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ALL_CLOSED])
def test_closed_streams_go_nowhere(closed: str) -> None:
    after = "subprocess.run(['sh', '-c', 'echo one; echo two >&2'], check=True)"

    assert status_with(closed, CLOSED.format(before="", after=after)) == 0


@pytest.mark.parametrize("closed", ["2>&-", ALL_CLOSED])
def test_number_of_a_closed_stream_stays_that_of_the_event_loop(closed: str) -> None:
    before = "loop = asyncio.new_event_loop(); kept = os.fstat(2)"
    after = "assert os.fstat(2) == kept; loop.run_until_complete(asyncio.sleep(0.01))"

    assert status_with(closed, CLOSED.format(before=before, after=after)) == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ALL_CLOSED])
def test_start_that_fails_has_its_status_whatever_is_closed(closed: str, tmp_path: Path) -> None:
    program = f"import os; os.environ['POLICY_SERVER_HOME'] = {str(tmp_path)!r}; import app"

    assert status_with(closed, program) == 3


PRINTING = """
class Printing:
    def __str__(self):
        print("A" * 200_000, flush=True)
        return "printed"
"""


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (
            "logging.getLogger('somelib').warning('%d items', 'A' * 200_000)",
            {"line_not_formatted", "after"},
        ),
        (
            f"{PRINTING}\nlogging.getLogger('policy_server').warning('%s', Printing())",
            {"printed", "after", "A"},
        ),
        (
            "for item in logging.getLogger().handlers:\n"
            "    with item.lock: os.write(2, b'A' * 200_000 + b'\\n')",
            {"after", "A"},
        ),
        (
            "import ctypes\nctypes.PyDLL(None).write(2, b'A' * 200_000 + b'\\n', 200_001)",
            {"after", "A"},
        ),
    ],
    ids=["arguments", "printing-text", "under-the-handlers-lock", "under-pythons-lock"],
)
def test_nothing_that_is_written_holds_the_log_up(body: str, events: set[str]) -> None:
    lines = printed(f"{body}\nlogging.getLogger('policy_server').warning('after')")

    assert {re.sub("^A+$", "A", line["event"]) for line in lines} == events


def test_filter_that_fails_loses_the_line_alone() -> None:
    lines = printed(
        "def fail(record):\n"
        "    if record.getMessage() == 'one': raise ValueError\n"
        "    return True\n"
        "root = logging.getLogger().handlers[0]\n"
        "root.addFilter(fail)\n"
        "os.write(2, b'one\\n')\n"
        "drain_output()\n"
        "root.removeFilter(fail)\n"
        "os.write(2, b'two\\n')"
    )

    assert [line["event"] for line in lines] == ["two"]


def test_other_handler_whose_disk_is_full_makes_no_lines() -> None:
    lines = printed(
        "logging.getLogger().addHandler(logging.FileHandler('/dev/full'))\n"
        "os.write(2, b'one\\n')\n"
        "drain_output()"
    )

    assert [line["event"] for line in lines] == ["one"]


def test_output_of_which_too_much_waits_for_the_log_is_counted_as_lost() -> None:
    lines = printed(
        "with logging.getLogger().handlers[0].lock:\n"
        "    for _ in range(200): os.write(2, b'A' * 99_999 + b'\\n')\n"
        "drain_output()"
    )

    [told] = [line for line in lines if line["event"] == "output_lines_lost"]
    assert 10 < told["lines"] < 200


def test_log_whose_disk_is_full_holds_nobody_up() -> None:
    body = "logger = __import__('logging').getLogger('x')\nfor _ in range(300): logger.error('x')"
    with open("/dev/full", "wb") as full:  # noqa: PTH123 -- a device
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(body=body)],
            stdout=full,
            stderr=full,
            timeout=30,
            check=False,
        )

    assert done.returncode in (0, 120)
