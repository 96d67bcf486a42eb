"""The library by which `python -m tests.faults` sets the clock of a server's processes."""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.folders import ROOT
from tests.support.preloading import built
from tests.support.processes import Child, child

HALF_AN_HOUR_S, HOUR_S = 1800, 3600
# Tells its times for each line, and ends once half an hour has passed by the time of day.
PROGRAM = f"""
import ctypes, sys, time
class Time(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
c = ctypes.CDLL(None)
until = Time(int(time.time()) + {HALF_AN_HOUR_S}, 0)
print(time.time(), time.monotonic(), flush=True)
sys.stdin.readline()
print(time.time(), time.monotonic(), flush=True)
condition, mutex = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
c.pthread_mutex_lock(mutex)
while not c.pthread_cond_timedwait(condition, mutex, ctypes.byref(until)):
    pass
print("over", flush=True)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT / "tests" / "faults" / "clock.c", tmp_path_factory.mktemp("library"))


@contextmanager
def by_a_clock(library: Path, clock: Path) -> Iterator[Child]:
    """Run the program by the clock of a file."""
    set_clock(clock, 0)
    variables = {**os.environ, "LD_PRELOAD": str(library), "CLOCK_FILE": str(clock)}
    with child(sys.executable, "-c", PROGRAM, environment=variables) as program:
        yield program


def set_clock(clock: Path, ahead_s: int) -> None:
    with clock.open("r+b" if clock.exists() else "wb") as file:
        file.write(struct.pack("q", ahead_s))


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S])
def test_clock_that_is_set_changes_the_time_of_day_alone(
    library: Path, tmp_path: Path, ahead_s: int
) -> None:
    with by_a_clock(library, tmp_path / "clock") as program:
        before = [float(word) for word in program.read_line().split()]
        set_clock(tmp_path / "clock", ahead_s)
        program.tell("now")
        after = [float(word) for word in program.read_line().split()]
        now = time.monotonic()

    assert after[0] - before[0] == pytest.approx(ahead_s, abs=HALF_AN_HOUR_S / 2)
    assert before[1] <= after[1] <= now


def test_wait_until_a_time_of_day_is_over_when_the_clock_is_set_beyond_it(
    library: Path, tmp_path: Path
) -> None:
    with by_a_clock(library, tmp_path / "clock") as program:
        program.read_line()
        program.tell("wait")
        program.read_line()
        set_clock(tmp_path / "clock", HOUR_S)

        assert program.read_line() == "over"
