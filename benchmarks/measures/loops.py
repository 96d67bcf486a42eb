"""A closed loop at a fixed rate, by each transport, as `generate.py realtime` drives it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
    seconds: float,
    repeats: int,
) -> None:
    """Drive one server by HTTP and by a stream, over TCP and over its UNIX socket, in turn.

    Args:
        results: gets the cells, and why there are none.
        workplace: what the server needs.
        environment: what it inherits.
        seconds: how long each cell takes.
        repeats: how many rounds.
    """
    uds = workplace.scratch / "loop.sock"
    try:
        with serving(_on_two_sockets(uds), workplace, environment) as running:
            for number in range(repeats):
                for transport in _TRANSPORTS:
                    for path in (None, str(uds)):
                        place = Place(url=running.url, uds=path, key=KEY)
                        results.loops.append(_measure(place, transport, number, seconds))
    except (BenchmarkError, PolicyServerError) as error:
        results.missing["closed loops"] = str(error)
        say(f"closed loops left out: {error}")


def _measure(place: Place, transport: str, number: int, seconds: float) -> LoopCell:
    figures = measure(place, LoopOptions(hz=_HZ, seconds=seconds, transport=transport))
    times = figures.policies[0].round_trip_ms
    cell = LoopCell(
        figures.transport, _HZ, number, times.p50, times.p99, times.worst, figures.missed
    )
    say(
        f"loop     {cell.transport:<24} round {number} p50 {cell.p50_ms:.3g} "
        f"p99 {cell.p99_ms:.3g} worst {cell.worst_ms:.3g} ms"
    )
    return cell


def _on_two_sockets(uds: Path) -> Subject:
    """Return the local server on both sockets at once, so that nothing but the way differs."""
    return replace(
        SUBJECTS["local"],
        name="local-sockets",
        command=lambda _workplace, ports: [
            *(sys.executable, "-m", "benchmarks.apps.two_sockets", str(ports[0]), str(uds))
        ],
    )
