"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.failures import BenchmarkError
from benchmarks.load import check_wrk
from benchmarks.machine import LOAD, describe_machine, is_busy
from benchmarks.measures.batches import measure_batches
from benchmarks.measures.engines import measure_engines
from benchmarks.measures.loops import measure_loops
from benchmarks.measures.one_row import measure_one_row
from benchmarks.measures.requests import measure_requests
from benchmarks.measures.stages import measure_stages
from benchmarks.measures.starts import measure_starts
from benchmarks.measures.streams import measure_streams
from benchmarks.plot import draw
from benchmarks.progress import say
from benchmarks.report import BUSY, render
from benchmarks.results import Results
from benchmarks.subjects import ROOT, SUBJECTS
from benchmarks.workplace import clean_environment, install_peer, prepare_workplace

__all__ = ["PARTS", "main"]

PARTS = ("requests", "batches", "streams", "loops", "starts", "engines", "stages", "one-row")
_BACKENDS = ("ray", "local")
_STARTED = ("ray", "ray-no-dashboard", "local")
# Nothing but its start and its memory differs.
_STARTED_ONLY = "ray-no-dashboard"
_CONNECTIONS = (1, 8, 32, 128, 256)
_QUICK_CONNECTIONS = (1, 32, 128)
_QUICK_SUBJECTS = ("ray", "local", "floor", "bare-asgi", "ray-call")
_ROWS = (10_000, 100_000)
_RESULTS = ROOT / "benchmarks" / "results"


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        given = _listed(text)
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise argparse.ArgumentTypeError(f"{text}: choose from {', '.join(known)}")
        return given

    return parse


def _counts(text: str) -> list[int]:
    try:
        counts = [int(item) for item in _listed(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers like 1,32,128") from error
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers from 1")
    return counts


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Policy Server, the floor below it, and other servers with the same "
        "policy, in one run on this machine. docs/benchmarks.md explains every figure.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="some minutes: no peers, one round, short cells"
    )
    parser.add_argument(
        "--subjects",
        type=_names(tuple(SUBJECTS)),
        metavar="NAMES",
        help=f"servers to drive (default: all): {','.join(SUBJECTS)}",
    )
    parser.add_argument(
        "--parts",
        type=_names(PARTS),
        metavar="NAMES",
        help=f"questions to answer (default: all): {','.join(PARTS)}",
    )
    parser.add_argument(
        "--connections",
        type=_counts,
        metavar="NUMBERS",
        help=f"open connections (default: {','.join(map(str, _CONNECTIONS))})",
    )
    parser.add_argument(
        "--rows",
        type=_counts,
        metavar="NUMBERS",
        default=list(_ROWS),
        help=f"observations in a batch request (default: {','.join(map(str, _ROWS))})",
    )
    parser.add_argument("--seconds", type=_positive, help="length of a cell (default: 2; quick: 1)")
    parser.add_argument("--repeats", type=_positive, help="rounds (default: 3; quick: 1)")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for benchmark.json, .md and .svg (default: benchmarks/results; with --quick, "
        "--subjects or --parts benchmarks/results/partial)",
    )
    parser.add_argument(
        "--render-only",
        action="store_true",
        help="measure nothing: write .md and .svg of the benchmark.json that is there",
    )
    return parser


def _with_defaults(options: argparse.Namespace) -> argparse.Namespace:
    is_quick = options.quick
    is_partial = is_quick or options.subjects is not None or options.parts is not None
    options.subjects = options.subjects or list(_QUICK_SUBJECTS if is_quick else SUBJECTS)
    options.connections = options.connections or list(
        _QUICK_CONNECTIONS if is_quick else _CONNECTIONS
    )
    options.seconds = options.seconds or (1 if is_quick else 2)
    options.repeats = options.repeats or (1 if is_quick else 3)
    options.parts = options.parts or list(PARTS)
    options.output = options.output or (_RESULTS / "partial" if is_partial else _RESULTS)
    return options


def _install_peers(results: Results, subjects: Sequence[str]) -> None:
    peers = dict.fromkeys(SUBJECTS[name].peer for name in subjects)
    for peer in peers:
        if peer is None:
            continue
        say(f"environment of {peer}")
        try:
            install_peer(peer)
        except BenchmarkError as error:
            missing = [name for name in subjects if SUBJECTS[name].peer == peer]
            results.missing |= dict.fromkeys(missing, str(error))
            say(f"{peer}: left out: {error}")


def _measure(results: Results, options: argparse.Namespace, scratch: Path) -> None:
    environment = clean_environment()
    _install_peers(results, options.subjects)
    workplace = prepare_workplace(scratch)
    backends, started = (
        [name for name in names if name in options.subjects] for names in (_BACKENDS, _STARTED)
    )
    seconds, repeats = options.seconds, options.repeats
    parts: dict[str, Callable[[], None]] = {
        "stages": lambda: measure_stages(results, workplace.home, environment),
        "one-row": lambda: measure_one_row(results, workplace.home, environment),
        "engines": lambda: measure_engines(results, workplace.home, environment),
        "starts": lambda: measure_starts(
            results, workplace, environment, subjects=started, repeats=repeats
        ),
        "requests": lambda: measure_requests(
            results,
            workplace,
            environment,
            subjects=[name for name in options.subjects if name != _STARTED_ONLY],
            connections=options.connections,
            seconds=seconds,
            repeats=repeats,
        ),
        "batches": lambda: measure_batches(
            results,
            workplace,
            environment,
            subjects=backends,
            rows=options.rows,
            seconds=seconds,
            repeats=repeats,
        ),
        "streams": lambda: measure_streams(
            results,
            workplace,
            environment,
            subjects=[*backends, *(["floor"] if "floor" in options.subjects else [])],
            seconds=seconds,
            repeats=repeats,
        ),
        "loops": lambda: measure_loops(
            results, workplace, environment, subjects=backends, seconds=seconds, repeats=repeats
        ),
    }
    for name, measure in parts.items():
        if name in options.parts:
            say(f"\n{name}")
            measure()


def _write(results: Results, folder: Path) -> None:
    results.write(folder / "benchmark.json")
    page = render(results)
    (folder / "benchmark.md").write_text(page, encoding="utf-8")
    if results.cells:
        (folder / "benchmark.svg").write_text(draw(results), encoding="utf-8")
    say(f"\n{page}\nwritten to {folder}/benchmark.json, .md and .svg")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for.

    Args:
        arguments: those of the command line; None takes the process's own.

    Raises:
        BenchmarkError: if nothing can be measured at all.
    """
    options = _with_defaults(_parser().parse_args(arguments))
    if options.render_only:
        path = options.output / "benchmark.json"
        if not path.exists():
            raise BenchmarkError(f"{path}: is not there; run `make bench` first")
        _write(Results.read(path), options.output)
        return
    check_wrk()
    options.output.mkdir(parents=True, exist_ok=True)
    shown = ("parts", "connections", "rows", "seconds", "repeats")
    results = Results(
        machine=describe_machine(),
        options={name: getattr(options, name) for name in shown},
        titles={name: subject.title for name, subject in SUBJECTS.items()},
        groups={name: subject.group for name, subject in SUBJECTS.items()},
    )
    if is_busy(results.machine):
        say(f"{BUSY} Load average: {results.machine[LOAD]}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        _measure(results, options, Path(scratch))
    results.machine["length of the run"] = f"{(time.monotonic() - began) / 60:.1f} minutes"
    _write(results, options.output)


def _end(number: int, _frame: object) -> None:
    # What a shell reports of a program that a signal ended; servers are ended on the way out.
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    try:
        main()
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    except KeyboardInterrupt:
        sys.exit("benchmarks: stopped; nothing was written")
