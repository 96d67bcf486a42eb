"""A closed loop at a fixed rate, by each transport, as `generate.py realtime` drives it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.failures import BenchmarkError
from benchmarks.progress import say
from benchmarks.results import LoopCell, Results
from benchmarks.subjects import KEY, SUBJECTS, Subject, Workplace, serving
from policy_server.commands.realtime import LoopOptions, Place, measure
from policy_server.errors import PolicyServerError

__all__ = ["measure_loops"]

_HZ = 200.0
_TRANSPORTS = ("http", "stream")


def measure_loops(
    results: Results,
    workplace: Workplace,
    environment: Mapping[str, str],
    *,
    subjects: Sequence[str],
    seconds: float,
    repeats: int,
) -> None:
    """Drive servers by HTTP and by a stream, over TCP and over their UNIX socket, in turn.

    Args:
        results: gets the cells, and why there are none.
        workplace: what the servers need.
        environment: what they inherit.
        subjects: names of Policy Server's own, one after another.
        seconds: how long each cell takes.
        repeats: how many rounds.
    """
    for name in subjects:
        uds = workplace.scratch / f"{name}.sock"
        try:
            with serving(_on_two_sockets(name, uds), workplace, environment) as running:
                for number in range(repeats):
                    for transport in _TRANSPORTS:
                        for path in (None, str(uds)):
                            place = Place(url=running.url, uds=path, key=KEY)
                            options = LoopOptions(hz=_HZ, seconds=seconds, transport=transport)
                            results.loops.append(_measure(name, place, options, number))
        except (BenchmarkError, PolicyServerError) as error:
            results.missing[f"closed loops, {name}"] = str(error)
            say(f"closed loops of {name} left out: {error}")


def _measure(name: str, place: Place, options: LoopOptions, number: int) -> LoopCell:
    figures = measure(place, options)
    times = figures.policies[0].round_trip_ms
    measured = (times.p50, times.p99, times.worst, figures.missed)
    cell = LoopCell(figures.transport, options.hz, number, *measured, subject=name)
    say(
        f"loop     {name:<6} {cell.transport:<24} round {number} p50 {cell.p50_ms:.3g} "
        f"p99 {cell.p99_ms:.3g} worst {cell.worst_ms:.3g} ms"
    )
    return cell


def _on_two_sockets(name: str, uds: Path) -> Subject:
    """Return a server on both sockets at once, so that nothing but the way differs."""
    return replace(
        SUBJECTS[name],
        name=f"{name}-sockets",
        command=lambda _workplace, ports: [
            *(sys.executable, "-m", "benchmarks.apps.two_sockets", str(ports[0]), str(uds))
        ],
    )
