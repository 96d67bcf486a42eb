"""How long a server takes to its first answer, and what memory it holds then."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.failures import BenchmarkError
from benchmarks.load import check_answered, drive
from benchmarks.processes import RunningServer
from benchmarks.progress import say
from benchmarks.results import Results, Start
from benchmarks.subjects import SUBJECTS, Workplace, serving
from benchmarks.workplace import fill_home

__all__ = ["measure_starts"]

_LOAD_CONNECTIONS = 32
_LOAD_S = 2.0
_REST_S = 6.0
_STEP_S = 0.5


def measure_starts(
    results: Results,
    workplace: Workplace,
    environment: Mapping[str, str],
    *,
    subjects: Sequence[str],
    repeats: int,
) -> None:
    """Start each subject with a policy that is new to it, and again with what it has kept.

    Args:
        results: gets the starts.
        workplace: what the subjects need.
        environment: what they inherit.
        subjects: their names.
        repeats: how many rounds.
    """
    for number in range(repeats):
        for name in subjects:
            home = workplace.scratch / f"home-{name}-{number}"
            fill_home(home)
            for is_first in (True, False):
                try:
                    start = _start(name, workplace, environment, home)
                except BenchmarkError as error:
                    results.missing[f"start of {name}"] = str(error)
                    say(f"{name}: {error}")
                    # The next start would be the first, and be taken for a later one.
                    break
                results.starts.append(replace(start, is_first=is_first, round=number))
                say(
                    f"start    {name:<18} {'first' if is_first else 'again'}: {start.seconds:.1f} s"
                    f", {start.memory_mb:.0f} MB in {start.processes} processes"
                )


def _memory_at_rest(server: RunningServer) -> tuple[int, int]:
    """Return the memory once no process is added any more: Ray's dashboard comes last."""
    size, processes = server.memory_bytes()
    since = time.monotonic()
    while time.monotonic() < since + _REST_S:
        time.sleep(_STEP_S)
        known, (size, processes) = processes, server.memory_bytes()
        if processes != known:
            since = time.monotonic()
    return size, processes


def _start(name: str, workplace: Workplace, environment: Mapping[str, str], home: Path) -> Start:
    with serving(SUBJECTS[name], replace(workplace, home=home), environment) as running:
        request = running.subject.request
        check_answered(drive(running.url, request, connections=_LOAD_CONNECTIONS, seconds=_LOAD_S))
        size, processes = _memory_at_rest(running.server)
    return Start(
        subject=name,
        is_first=False,
        round=0,
        seconds=round(running.start_s, 3),
        memory_mb=round(size / 1e6, 1),
        processes=processes,
    )
