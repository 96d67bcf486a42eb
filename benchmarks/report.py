"""A run's results as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from benchmarks.machine import is_busy
from benchmarks.measures.stages import FLOOR, LOG, WHOLE
from benchmarks.progress import ABSENT, number
from benchmarks.results import Cell, Results
from benchmarks.targets import Outcome, describe_peers, outcomes

__all__ = ["BUSY", "render"]

BUSY = (
    "The machine was busy with other work before the run: "
    "its figures, its ratios and its targets say little."
)
_ROLES = ("web", "replica", "Ray", "wrk")
_SERVER_STAGES = ("validate", "queue", "policy", "total", "batch")
# What is timed without sockets, the subject that has them, and what its row is called.
_SOCKETS = (
    (WHOLE, "local", "sockets, kernel, waking up: the running server's time less that"),
    (FLOOR, "floor", "sockets, kernel, waking up: the running floor's time less that"),
)
_WHAT_STAGES_ARE = (
    "What each stage adds to those before it, where the server's own protocol answers requests in "
    f"one process without sockets. All of them are {WHOLE}, in which the access log is off."
)


def render(results: Results) -> str:
    """Return the page.

    Args:
        results: what a run measured.
    """
    sections: list[tuple[str, Callable[[Results], list[str]]]] = [
        ("Requests a second", _requests),
        ("Ratios", _ratios),
        ("Targets", _targets),
        ("Processor time of a request", _processor),
        ("Time by the server's own metrics", _server_stages),
        ("Stages in one process", _stages),
        ("Batch route", _batches),
        ("WebSocket", _streams),
        ("Closed loop", _loops),
        ("Start and memory", _starts),
        ("Engines", _engines),
        ("One row", _one_row),
        ("Not measured", _missing),
    ]
    parts = ["# Results of one run", "", *_head(results)]
    for title, section in sections:
        lines = section(results)
        if lines:
            parts += ["", f"## {title}", "", *lines]
    return "\n".join(parts) + "\n"


def _head(results: Results) -> list[str]:
    lines = [f"- {name}: {value}" for name, value in results.machine.items()]
    options = ", ".join(f"{name} {_flat(value)}" for name, value in results.options.items())
    return [
        "Written by `make bench`. What the figures mean stands in "
        "[docs/benchmarks.md](../../docs/benchmarks.md).",
        *(["", f"**{BUSY}**"] if is_busy(results.machine) else []),
        "",
        *lines,
        f"- options: {options}",
    ]


def _flat(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], f"| --- |{' ---: |' * (len(head) - 1)}", *lines[1:]] if lines[1:] else []


def _requests(results: Results) -> list[str]:
    def shown(name: str, connections: int) -> str:
        cells = results.cells_of(name, connections)
        errors = sum(cell.errors for cell in cells)
        if errors:
            return f"{errors} errors"
        rate, p50, p99 = (
            results.median_of(name, connections, value)
            for value in ("requests_per_s", "p50_ms", "p99_ms")
        )
        return ABSENT if rate is None else f"{number(rate)} ({number(p50)} / {number(p99)})"

    head = ["connections", *map(str, results.connections())]
    rows = [
        [results.titles[name], *(shown(name, count) for count in results.connections())]
        for name in results.subjects()
    ]
    table = _table(head, rows)
    return [f"req/s (p50 / p99 in ms), {_medians_over(results)}:", "", *table] if table else []


def _medians_over(results: Results) -> str:
    rounds = len({cell.round for cell in results.cells})
    return f"medians over {rounds} rounds" if rounds > 1 else "of one round"


def _ratios(results: Results) -> list[str]:
    lines: list[str] = []
    for ours in ("ray", "local"):
        if ours not in results.subjects():
            continue
        rows = [
            [
                results.titles[name],
                *(_ratio(results, ours, name, count) for count in results.connections()),
            ]
            for name in results.subjects()
            if name != ours
        ]
        head = [f"req/s of {results.titles[ours]}, against", *map(str, results.connections())]
        lines += [*([""] if lines else []), *_table(head, rows)]
    return lines


def _ratio(results: Results, ours: str, other: str, connections: int) -> str:
    a = results.median_of(ours, connections, "requests_per_s")
    b = results.median_of(other, connections, "requests_per_s")
    return ABSENT if a is None or b is None else f"{number(a / b, digits=2)} x"


def _targets(results: Results) -> list[str]:
    def row(outcome: Outcome) -> list[str]:
        target, unit = outcome.target, outcome.target.unit
        bound = f"{number(target.bound)} {unit}"
        met = {True: "met", False: "**not met**", None: "not measured"}[outcome.is_met]
        measured = ABSENT if outcome.measured is None else f"{number(outcome.measured)} {unit}"
        return [target.title, f"≥ {bound}" if target.is_least else f"< {bound}", measured, met]

    table = _table(
        ["figure", "target", "measured", ""], [row(outcome) for outcome in outcomes(results)]
    )
    if not results.cells:
        return table
    said = f"Requests a second and latencies are {_medians_over(results)}, the floor's like the "
    return [" ".join([f"{said}servers'.", describe_peers(results)]).strip(), "", *table]


def _medians(cells: Sequence[Cell], values: Callable[[Cell], dict[str, float]], key: str) -> str:
    figures = [values(cell)[key] for cell in cells if key in values(cell)]
    return number(median(figures)) if figures else ABSENT


def _ends(results: Results) -> list[int]:
    """Return the numbers of connections that the profile is shown for."""
    known = results.connections()
    return [count for count in (1, 32, 128) if count in known] or known[:1]


def _processor(results: Results) -> list[str]:
    rows = [
        [
            f"{results.titles[name]}, {count}",
            *(_medians(cells, lambda cell: cell.cpu_us, role) for role in _ROLES),
        ]
        for name in results.subjects()
        for count in _ends(results)
        if (cells := results.cells_of(name, count))
    ]
    return _table(["µs a request, by connections", *_ROLES], rows)


def _server_stages(results: Results) -> list[str]:
    rows = [
        [
            f"{results.titles[name]}, {count}",
            *(_medians(cells, lambda cell: cell.stages, stage) for stage in _SERVER_STAGES),
        ]
        for name in results.subjects()
        for count in _ends(results)
        if (cells := results.cells_of(name, count)) and any(cell.stages for cell in cells)
    ]
    return _table(["mean µs, by connections", *_SERVER_STAGES[:-1], "rows in a call"], rows)


def _stages(results: Results) -> list[str]:
    if not results.stages:
        return []
    sizes = sorted({stage.batch for stage in results.stages})
    known = {(stage.name, stage.batch): stage.us for stage in results.stages}
    names = list(dict.fromkeys(stage.name for stage in results.stages))
    rows = [[name, *(number(known.get((name, size))) for size in sizes)] for name in names]
    for whole, subject, sockets in _SOCKETS:
        left = {size: _beyond(results, subject, known.get((whole, size)), size) for size in sizes}
        if any(us is not None for us in left.values()):
            place = next(place for place, row in enumerate(rows) if row[0] == whole)
            rows.insert(place + 1, [sockets, *(number(left[size]) for size in sizes)])
    head = ["µs of processor time a request", *(f"{size} at once" for size in sizes)]
    # Runs of before had other stages, and no such log.
    return [*([_WHAT_STAGES_ARE, ""] if LOG in names else []), *_table(head, rows)]


def _beyond(results: Results, subject: str, us: float | None, connections: int) -> float | None:
    """Return how much more a running server takes for a request than so many microseconds."""
    cells = results.cells_of(subject, connections)
    spent = _median_of([cell.cpu_us.get("web") for cell in cells])
    return None if us is None or spent is None else spent - us


def _batches(results: Results) -> list[str]:
    keys = dict.fromkeys((cell.subject, cell.body, cell.rows) for cell in results.batches)
    rows = []
    for name, body, size in keys:
        cells = [
            cell
            for cell in results.batches
            if (cell.subject, cell.body, cell.rows) == (name, body, size)
        ]
        rows.append(
            [
                results.titles[name],
                body,
                f"{size:,}",
                number(median(cell.rows_per_s for cell in cells)),
                number(median(cell.p50_ms for cell in cells)),
                *(
                    number(_median_of([getattr(cell, name) for cell in cells]))
                    for name in ("single_p50_ms", "single_p90_ms")
                ),
            ]
        )
    head = ["", "body", "rows a request", "rows/s", "p50 in ms"]
    return _table([*head, *(f"{p} of single predictions beside" for p in ("p50", "p90"))], rows)


def _streams(results: Results) -> list[str]:
    keys = dict.fromkeys((cell.subject, cell.frames, cell.in_flight) for cell in results.streams)
    rows = []
    for name, frames, in_flight in keys:
        cells = [
            cell
            for cell in results.streams
            if (cell.subject, cell.frames, cell.in_flight) == (name, frames, in_flight)
        ]
        rows.append(
            [
                results.titles[name],
                frames,
                str(in_flight),
                number(median(cell.round_trips_per_s for cell in cells)),
                number(median(cell.p50_ms for cell in cells)),
                number(_median_of([cell.cpu_us for cell in cells])),
            ]
        )
    header = ["", "frames", "in flight", "round trips/s", "p50 in ms", "server, us a frame"]
    return _table(header, rows)


def _median_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _loops(results: Results) -> list[str]:
    rows = []
    for name, transport in dict.fromkeys((cell.subject, cell.transport) for cell in results.loops):
        cells = [
            cell for cell in results.loops if (cell.subject, cell.transport) == (name, transport)
        ]
        rows.append(
            [
                f"{results.titles[name]}, {transport}",
                number(cells[0].hz),
                *(
                    number(median(getattr(cell, name) for cell in cells))
                    for name in ("p50_ms", "p99_ms", "worst_ms", "missed")
                ),
            ]
        )
    return _table(["", "Hz", "p50 in ms", "p99 in ms", "worst in ms", "missed"], rows)


def _starts(results: Results) -> list[str]:
    keys = dict.fromkeys((start.subject, start.is_first) for start in results.starts)
    rows = []
    for name, is_first in keys:
        starts = [
            start for start in results.starts if (start.subject, start.is_first) == (name, is_first)
        ]
        rows.append(
            [
                results.titles[name],
                "never served before" if is_first else "served before",
                number(median(start.seconds for start in starts)),
                number(median(start.memory_mb for start in starts)),
                number(median(start.processes for start in starts)),
            ]
        )
    return _table(["", "policy", "s to the first answer", "MB", "processes"], rows)


def _engines(results: Results) -> list[str]:
    sizes = sorted({cell.batch for cell in results.engines})
    known = {(cell.engine, cell.batch): cell for cell in results.engines}
    rows = []
    for engine in dict.fromkeys(cell.engine for cell in results.engines):
        cells = [known[engine, size] for size in sizes]
        rows.append([f"{engine}: the network", *(number(cell.forward_us) for cell in cells)])
        rows.append([f"{engine}: with draws", *(number(cell.call_us) for cell in cells)])
    return _table(["µs of processor time a call", *(f"batch {size}" for size in sizes)], rows)


def _one_row(results: Results) -> list[str]:
    rows = [
        [
            cell.actions,
            *(number(us) for us in (cell.network_us, cell.draw_us, cell.json_us, cell.call_us)),
        ]
        for cell in results.rows
    ]
    head = ["µs of processor time, two layers of 64", "network", "draw", "JSON", "the whole call"]
    return _table(head, rows)


def _missing(results: Results) -> list[str]:
    return [
        f"- {results.titles.get(name, name)}: {reason}" for name, reason in results.missing.items()
    ]
