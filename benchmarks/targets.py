"""What the server is held to, as ratios and limits of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from benchmarks.measures.batches import BODIES
from benchmarks.measures.one_row import KINDS
from benchmarks.results import Results

__all__ = ["TARGETS", "Outcome", "Target", "describe_peers", "outcomes"]

Unit = Literal["x", "µs", "ms", "rows/s", "s", "MB"]


@dataclass(frozen=True)
class Target:
    """One figure to reach.

    Attributes:
        title: what is compared.
        bound: the figure.
        unit: its unit; `x` for ratios.
        measure: returns the measured figure; None where the run did not measure it.
        is_least: the measured figure has to be at least this; otherwise below it.
    """

    title: str
    bound: float
    unit: Unit
    measure: Callable[[Results], float | None]
    is_least: bool = False


@dataclass(frozen=True)
class Outcome:
    """A target and what was measured; None where it was not."""

    target: Target
    measured: float | None

    @property
    def is_met(self) -> bool | None:
        """Return whether the target was reached; None where it was not measured."""
        if self.measured is None:
            return None
        if self.target.is_least:
            return self.measured >= self.target.bound
        return self.measured < self.target.bound


def outcomes(results: Results) -> list[Outcome]:
    """Return every target with what a run measured."""
    return [Outcome(target, target.measure(results)) for target in TARGETS]


def describe_peers(results: Results) -> str:
    """Return the sentences that name the peers compared, and those that a run knows nothing of.

    Args:
        results: what the run measured; without requests of peers the sentences are empty.
    """
    peers = _peers(results)
    if not any(cell.subject in peers for cell in results.cells):
        return ""
    said = f"The best peer is the fastest of {_named(results, peers)}."
    for count in results.connections():
        lacking = [
            name for name in peers if results.median_of(name, count, "requests_per_s") is None
        ]
        if lacking:
            connections = f"{count} connection{'s' if count > 1 else ''}"
            said += f" There is on {connections} no figure without errors of "
            said += f"{_named(results, lacking)}."
    return said


def _named(results: Results, names: Iterable[str]) -> str:
    return "; ".join(results.titles[name] for name in names)


def _peers(results: Results) -> list[str]:
    return [name for name, group in results.groups.items() if group == "peer"]


def _ratio(subject: str, other: str, connections: int) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        ours = results.median_of(subject, connections, "requests_per_s")
        theirs = results.median_of(other, connections, "requests_per_s")
        return None if ours is None or theirs is None else ours / theirs

    return measure


def _ratio_of_p99(subject: str, connections: int) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        """Return it where both were measured in the same rounds: so few cells scatter."""
        rounds = (results.rounds_of(name, connections) for name in (subject, "floor"))
        if len({frozenset(numbers) for numbers in rounds}) != 1:
            return None
        ours = results.median_of(subject, connections, "p99_ms")
        floors = results.median_of("floor", connections, "p99_ms")
        return None if ours is None or floors is None else ours / floors

    return measure


def _best_peer(subject: str, connections: int) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        """Return the ratio to the fastest; None where any has no figure, which may be the best.

        The rate of a peer that had errors bounds nothing: refusals make it higher, and timeouts
        lower, than what the peer can do.
        """
        ratios = [_ratio(subject, peer, connections)(results) for peer in _peers(results)]
        known = [ratio for ratio in ratios if ratio is not None]
        return min(known) if known and len(known) == len(ratios) else None

    return measure


def _latency(subject: str, connections: int, value: str) -> Callable[[Results], float | None]:
    return lambda results: results.median_of(subject, connections, value)


def _streams_of(results: Results, subject: str, value: str) -> float | None:
    figures = [
        getattr(cell, value)
        for cell in results.streams
        if (cell.subject, cell.frames, cell.in_flight) == (subject, "JSON", 1)
    ]
    return median(figures) if figures else None


def _stream_ratio(results: Results) -> float | None:
    ours, floors = (
        _streams_of(results, subject, "round_trips_per_s") for subject in ("local", "floor")
    )
    return None if ours is None or floors is None else ours / floors


def _stream_p50(subject: str) -> Callable[[Results], float | None]:
    return lambda results: _streams_of(results, subject, "p50_ms")


def _single_p90(subject: str) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        """Return that of the worst kind of body; None where one of them, or of its cells, has none.

        A kind that failed has no cells, and may be the worst.
        """
        cells = [cell for cell in results.batches if cell.subject == subject]
        most = max((cell.rows for cell in cells), default=0)
        by_body: dict[str, list[float]] = {}
        for cell in cells:
            if cell.rows == most:
                if cell.single_p90_ms is None:
                    return None
                by_body.setdefault(cell.body, []).append(cell.single_p90_ms)
        if set(by_body) != set(BODIES):
            return None
        return max(median(figures) for figures in by_body.values())

    return measure


def _call_us(actions: str) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        return next((cell.call_us for cell in results.rows if cell.actions == actions), None)

    return measure


def _rows_per_s(body: str) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        """Return the better backend's figure at the largest request."""
        cells = [cell for cell in results.batches if cell.body == body]
        most = max((cell.rows for cell in cells), default=0)
        figures = [
            median(cell.rows_per_s for cell in cells if (cell.subject, cell.rows) == (name, most))
            for name in dict.fromkeys(cell.subject for cell in cells if cell.rows == most)
        ]
        return max(figures, default=None)

    return measure


def _start(
    subject: str, value: str, *, is_first: bool = False
) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        figures = [
            getattr(start, value)
            for start in results.starts
            if start.subject == subject and start.is_first == is_first
        ]
        return median(figures) if figures else None

    return measure


def _at_least(
    title: str, bound: float, unit: Unit, measure: Callable[[Results], float | None]
) -> Target:
    return Target(title, bound, unit, measure, is_least=True)


def _against(
    way: str, subject: str, title: str, other: str, bounds: Mapping[int, float]
) -> list[Target]:
    """Return the targets of a subject's req/s against another's, by number of connections."""
    return [
        _at_least(
            f"req/s {way} against {title}, {count} connection{'s' if count > 1 else ''}",
            *(bound, "x", _ratio(subject, other, count)),
        )
        for count, bound in bounds.items()
    ]


TARGETS = (
    _at_least(
        "req/s with Ray against one Ray call a request, 128 connections",
        *(30, "x", _ratio("ray", "ray-call", 128)),
    ),
    *_against("with Ray", "ray", "the floor", "floor", {1: 0.22, 32: 0.4, 128: 0.45}),
    *_against("local", "local", "the floor", "floor", {1: 0.4, 32: 0.55, 128: 0.6}),
    *_against("local", "local", "bare ASGI under uvicorn", "bare-asgi", {128: 1.7}),
    _at_least(
        "req/s with Ray against the best peer, 32 connections",
        *(12, "x", _best_peer("ray", 32)),
    ),
    _at_least(
        "req/s with Ray against the best peer, 128 connections",
        *(11, "x", _best_peer("ray", 128)),
    ),
    *(
        target
        for way, subject in (("with Ray", "ray"), ("local", "local"))
        for target in _against(
            *(f"{way} and the access log", f"{subject}-logs", "those without it", subject),
            {1: 0.85, 32: 0.85, 128: 0.85},
        )
    ),
    Target(
        "p99 with Ray, 128 connections, in the floor's (medians of the same rounds)",
        *(2.0, "x", _ratio_of_p99("ray", 128)),
    ),
    _at_least(
        "round trips/s of a stream, one in flight, local, against the bare echo",
        *(0.5, "x", _stream_ratio),
    ),
    Target("p50 of a stream, one in flight, local", 0.08, "ms", _stream_p50("local")),
    Target("p50 of a stream, one in flight, with Ray", 0.18, "ms", _stream_p50("ray")),
    Target("p50 with Ray, 1 connection", 2.0, "ms", _latency("ray", 1, "p50_ms")),
    Target("p50 local, 1 connection", 0.3, "ms", _latency("local", 1, "p50_ms")),
    Target("p99 with Ray, 128 connections", 15, "ms", _latency("ray", 128, "p99_ms")),
    *(
        Target(
            f"p90 of single predictions beside large batches, {way}, the worst of their bodies",
            *(3.0, "ms", _single_p90(subject)),
        )
        for way, subject in (("with Ray", "ray"), ("local", "local"))
    ),
    *(
        Target(f"one row of a policy of two layers of 64, {actions}", 25, "µs", _call_us(actions))
        for actions in KINDS
    ),
    _at_least("batch route, JSON rows", 150_000, "rows/s", _rows_per_s("JSON rows")),
    _at_least("batch route, JSON columns", 300_000, "rows/s", _rows_per_s("JSON columns")),
    _at_least("batch route, npy", 400_000, "rows/s", _rows_per_s("npy")),
    _at_least(
        "req/s of the fast path against FastAPI's own route, 128 connections",
        *(2.5, "x", _ratio("local", "fastapi-route", 128)),
    ),
    Target("first answer with Ray", 4, "s", _start("ray", "seconds")),
    Target(
        "first answer with Ray, of a policy never served before",
        *(10, "s", _start("ray", "seconds", is_first=True)),
    ),
    Target("first answer, local", 0.6, "s", _start("local", "seconds")),
    Target(
        "first answer, local, of a policy never served before",
        *(4, "s", _start("local", "seconds", is_first=True)),
    ),
    Target("memory of all processes with Ray", 750, "MB", _start("ray", "memory_mb")),
    Target(
        "memory of all processes with Ray, without its dashboard",
        *(600, "MB", _start("ray-no-dashboard", "memory_mb")),
    ),
    Target("memory of all processes, local", 60, "MB", _start("local", "memory_mb")),
)
