"""The command line: `python -m benchmarks.soak --help`."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.failures import BenchmarkError
from benchmarks.machine import describe_machine
from benchmarks.progress import say
from benchmarks.soak.picture import draw
from benchmarks.soak.record import Record
from benchmarks.soak.report import render
from benchmarks.soak.run import Options, soak
from benchmarks.soak.verdict import judge
from benchmarks.subjects import ROOT

__all__ = ["main"]

_RESULTS = ROOT / "benchmarks" / "results" / "partial"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, write JSON, page and picture; the status tells whether the run holds.

    Args:
        arguments: those of the command line, which are taken if left out.
    """
    options = _parser().parse_args(arguments)
    target = options.output / f"soak-{options.backend}"
    try:
        if not options.render_only:
            _run(options).write(target.with_suffix(".json"))
        record = _read(target.with_suffix(".json"))
        findings = judge(record)
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    page = render(record, findings)
    target.with_suffix(".md").write_text(page, encoding="utf-8")
    target.with_suffix(".svg").write_text(draw(record), encoding="utf-8")
    say(page)
    if not all(each.holds for each in findings):
        sys.exit(f"benchmarks: the server did not hold; its log: {_log(options)}")
    _log(options).unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=20.0, help="how long (default: %(default)g)")
    add("--backend", choices=("local", "ray"), default="local", help="(default: %(default)s)")
    add("--clients", type=int, default=8, help="how many ask at once (default: %(default)s)")
    add("--seed", type=int, default=0, help="of what they draw (default: %(default)s)")
    add("--output", type=Path, default=_RESULTS, help="folder of JSON, page and picture")
    add("--render-only", action="store_true", help="measure nothing; write page and picture anew")
    return parser


def _log(options: argparse.Namespace) -> Path:
    folder: Path = options.output
    return folder / f"soak-{options.backend}.log"


def _run(options: argparse.Namespace) -> Record:
    options.output.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    # Ray's sockets lie in there, whose paths have to be short.
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        chosen = Options(options.backend, options.minutes, options.clients, options.seed)
        try:
            record = asyncio.run(soak(chosen, Path(folder), machine))
        finally:
            log = Path(folder, "server.log")
            if log.exists():
                shutil.copy(log, _log(options))
    return record


def _read(path: Path) -> Record:
    try:
        return Record.read(path)
    except FileNotFoundError as error:
        raise BenchmarkError(f"{path}: is not there; run without --render-only") from error


def _end(number: int, _frame: object) -> None:
    # What a shell reports of a program that a signal ended; the server is ended on the way out.
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    main()
