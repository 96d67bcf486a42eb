"""The whole call of one row, by kinds of actions: `python -m benchmarks.measures.one_row HOME`.

`benchmarks.few_rows` measures it: network, draw, probability and JSON of a policy of two layers of
64, in processor time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks.few_rows import ACTIONS, whole_us
from benchmarks.own_process import BLOCK_S, run_module
from benchmarks.progress import say
from benchmarks.results import Results, RowCell

__all__ = ["KINDS", "measure_one_row", "rows_of"]

KINDS: Mapping[str, str] = {
    "Discrete(4)": "Discrete(4)",
    "Box(6)": "Box(6), Gaussian, cut",
    "six binary actions": "MultiBinary(6)",
}
"""What is measured, as the tables and as `benchmarks.few_rows` name it."""
_ROUNDS = 5


def measure_one_row(results: Results, home: Path, environment: Mapping[str, str]) -> None:
    """Time the call of one row for each kind of actions.

    Args:
        results: gets the cells.
        home: any folder: the policies are made up.
        environment: what the process inherits.
    """
    document = run_module("one_row", home, environment, results)
    if document is None:
        return
    results.rows = [RowCell(**item) for item in document]
    for cell in results.rows:
        say(f"one row  {cell.actions:<18} {cell.call_us:.1f} us a call")


def rows_of(*, rounds: int = _ROUNDS, block_s: float = BLOCK_S) -> list[RowCell]:
    """Return the medians of each kind.

    Args:
        rounds: how often each kind is measured, in turn.
        block_s: how long each of a measurement's blocks takes, in seconds.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in KINDS}
    for _ in range(rounds):
        for name, actions in KINDS.items():
            found[name].append(whole_us(ACTIONS[actions], block_s=block_s))
    return [
        RowCell(name, *(round(median(figures), 2) for figures in zip(*times, strict=True)))
        for name, times in found.items()
    ]


if __name__ == "__main__":
    print(json.dumps([asdict(cell) for cell in rows_of()]))
