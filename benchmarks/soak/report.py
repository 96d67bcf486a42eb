"""A run as a page."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.machine import LOAD
from benchmarks.soak.record import Record
from benchmarks.soak.traffic import ScenarioCounts
from benchmarks.soak.verdict import Finding

__all__ = ["render"]


def render(record: Record, findings: Sequence[Finding]) -> str:
    """Return the page in Markdown.

    Args:
        record: the run.
        findings: what was found of it.
    """
    holds = "it holds" if all(each.holds for each in findings) else "**it does not hold**"
    machine = record.machine
    lines = [
        f"# Soak, backend {record.backend}: {holds}",
        "",
        f"`python -m benchmarks.soak --minutes {record.minutes:g} --backend {record.backend} "
        f"--clients {record.clients}`, {machine['date']}, commit {machine['commit']}: "
        f"{machine['cores']} cores of {machine['processor']}, {LOAD} {machine[LOAD]}.",
        "",
        "| figure | found after the warm-up, the first third | bound | holds |",
        "| --- | --- | --- | --- |",
        *(
            f"| {each.subject} | {each.found} | {each.bound} | "
            f"{'yes' if each.holds else '**no**'} |"
            for each in findings
        ),
        "",
        "| scenario | answered rightly | refused rightly | client left | failed |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(_row(name, counts) for name, counts in record.scenarios.items()),
        _row("all", _sum(list(record.scenarios.values()))),
        *([""] if record.troubles else []),
        *(f"- {told}" for told in record.troubles),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, counts: ScenarioCounts) -> str:
    cells = (counts.answered, counts.refused, counts.left, counts.failed)
    return f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |"


def _sum(counts: Sequence[ScenarioCounts]) -> ScenarioCounts:
    return ScenarioCounts(
        sum(each.answered for each in counts),
        sum(each.refused for each in counts),
        sum(each.left for each in counts),
        sum(each.failed for each in counts),
    )
