"""What a run was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.subjects import ROOT

__all__ = ["LOAD", "describe_machine", "is_busy"]

LOAD = "load average before the run"
# More than this, and others take what is measured.
_MOST_LOAD = 0.5

_PACKAGES = ("fastapi", "numpy", "orjson", "pydantic", "ray", "tensorflow", "uvicorn")


def describe_machine() -> dict[str, str]:
    """Return date, commit, processor, cores, memory, system and versions."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{pages * page / 1e9:.0f} GB",
        LOAD: f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def is_busy(machine: Mapping[str, str]) -> bool:
    """Return whether the machine had other work before the run.

    Args:
        machine: what `describe_machine` returned.
    """
    return float(machine.get(LOAD, 0.0)) > _MOST_LOAD


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607 -- the one that is installed
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
