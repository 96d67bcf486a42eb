"""Measurements in a process of their own: one module, which prints one line of JSON at its end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.progress import say
from benchmarks.results import Results
from benchmarks.subjects import ROOT

__all__ = ["BLOCK_S", "ENVIRONMENT", "median_us", "median_us_async", "run_module"]

_TIMEOUT_S = 300
_BLOCKS = 7
BLOCK_S = 0.03
# As the server's replicas have it.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def run_module(module: str, home: Path, environment: Mapping[str, str], results: Results) -> Any:  # noqa: ANN401 -- JSON
    """Run a module of `benchmarks.measures` and return what it printed.

    Args:
        module: its name.
        home: holds schema.yaml and the policy; the module's argument.
        environment: what the process inherits.
        results: gets the reason where it fails.

    Returns:
        The JSON of the last line; None where it fails.
    """
    command = [sys.executable, "-m", f"benchmarks.measures.{module}", str(home)]
    try:
        done = subprocess.run(  # noqa: S603 -- the command is ours
            command,
            cwd=ROOT,
            env={**environment, **ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        reason = f"took more than {_TIMEOUT_S} s"
    else:
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        reason = " ".join(done.stderr.split())[-300:]
    part = module.replace("_", " ")
    results.missing[part] = f"{module}: {reason}"
    say(f"{part}: left out: {reason}")
    return None


def median_us(call: Callable[[], object], *, block_s: float = BLOCK_S) -> float:
    """Return the processor time of one call, in microseconds: the median over blocks of calls.

    Processor time, since others may use the machine too.

    Args:
        call: what is timed.
        block_s: how long each block of calls takes, in seconds.
    """
    count = 0
    began = time.perf_counter()
    while time.perf_counter() - began < block_s:
        call()
        count += 1
    times = []
    for _ in range(_BLOCKS):
        began = time.process_time()
        for _ in range(count):
            call()
        times.append((time.process_time() - began) / count * 1e6)
    return median(times)


async def median_us_async(
    call: Callable[[], Awaitable[object]], *, block_s: float = BLOCK_S
) -> float:
    """Return the processor time of one call of a coroutine function, likewise.

    Args:
        call: what is timed.
        block_s: how long each block of calls takes, in seconds.
    """
    count = 0
    began = time.perf_counter()
    while time.perf_counter() - began < block_s:
        await call()
        count += 1
    times = []
    for _ in range(_BLOCKS):
        began = time.process_time()
        for _ in range(count):
            await call()
        times.append((time.process_time() - began) / count * 1e6)
    return median(times)
