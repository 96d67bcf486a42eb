"""Requests a second and latencies of every subject, and what they cost it."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.failures import BenchmarkError
from benchmarks.load import drive, post
from benchmarks.progress import say
from benchmarks.results import Cell, Results
from benchmarks.subjects import SUBJECTS, Serving, Workplace, serving
from policy_server.policy import DEFAULT_POLICY

__all__ = ["measure_requests"]

_WARM_UP_CONNECTIONS = 32
_WARM_UP_S = 1.0
_STAGES = ("validate", "queue", "policy", "total")
# The server's histograms, with the label that tells their series apart.
_HISTOGRAMS = {
    "policy_server_stage_seconds": "stage",
    "policy_server_request_seconds": "route",
    "policy_server_batch_size": "policy",
}


def measure_requests(
    results: Results,
    workplace: Workplace,
    environment: Mapping[str, str],
    *,
    subjects: Sequence[str],
    connections: Sequence[int],
    seconds: float,
    repeats: int,
) -> None:
    """Drive each subject with wrk, round by round, so that all see the machine's good minutes.

    Args:
        results: gets the cells, and why a subject has none.
        workplace: what the subjects need.
        environment: what they inherit.
        subjects: their names.
        connections: the numbers of connections.
        seconds: how long each cell takes.
        repeats: how many rounds.
    """
    for number in range(repeats):
        # Every other round goes backwards: nobody always follows the same neighbour.
        for name in subjects if number % 2 == 0 else reversed(subjects):
            if name in results.missing:
                continue
            try:
                with serving(SUBJECTS[name], workplace, environment) as running:
                    results.cells += _round(running, workplace, number, connections, seconds)
            except BenchmarkError as error:
                results.missing[name] = str(error)
                results.cells = [cell for cell in results.cells if cell.subject != name]
                say(f"{name}: left out: {error}")


def _round(
    running: Serving,
    workplace: Workplace,
    number: int,
    connections: Sequence[int],
    seconds: float,
) -> list[Cell]:
    subject = running.subject
    drive(running.url, subject.request, connections=_WARM_UP_CONNECTIONS, seconds=_WARM_UP_S)
    cells = []
    for count in connections:
        stages, cpu = _stage_sums(running), running.server.cpu_by_role()
        load = drive(running.url, subject.request, connections=count, seconds=seconds)
        spent = {
            role: (us - cpu.get(role, 0.0)) / load.requests
            for role, us in running.server.cpu_by_role().items()
        }
        cell = Cell(
            subject=subject.name,
            connections=count,
            round=number,
            requests_per_s=load.requests_per_s,
            p50_ms=load.p50_ms,
            p99_ms=load.p99_ms,
            errors=load.errors,
            cpu_us=_rounded({**spent, "wrk": load.client_us}),
            stages=_rounded(_stage_means(stages, _stage_sums(running))),
        )
        cells.append(cell)
        say(
            f"round {number + 1}  {subject.name:<18} {count:>4} connections "
            f"{cell.requests_per_s:>9.0f} req/s   p50 {cell.p50_ms:.3g} ms   "
            f"p99 {cell.p99_ms:.3g} ms" + (f"   {cell.errors} ERRORS" if cell.errors else "")
        )
    subject.check_answer(post(running.url, subject.request), workplace)
    return cells


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}


def _stage_sums(running: Serving) -> dict[str, tuple[float, float]]:
    """Return sum and count of the server's own histograms; nothing where it has none."""
    # Ours serve their metrics on the second port; the floor counts, but shows nothing.
    if running.subject.group != "ours":
        return {}
    url = f"http://127.0.0.1:{running.ports[1]}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        page = answer.read().decode()
    # The columns of the report: the whole of a request is that of the route that is driven.
    columns = {running.subject.request.path: "total", DEFAULT_POLICY: "batch"}
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples if family.name in _HISTOGRAMS else ():
            series = sample.labels[_HISTOGRAMS[family.name]]
            if sample.name.endswith("_sum"):
                sums[columns.get(series, series)] = sample.value
            elif sample.name.endswith("_count"):
                counts[columns.get(series, series)] = sample.value
    return {stage: (sums[stage], counts[stage]) for stage in sums}


def _stage_means(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    means = {}
    for stage in (*_STAGES, "batch"):
        total, count = after.get(stage, (0.0, 0.0))
        total_before, count_before = before.get(stage, (0.0, 0.0))
        if count > count_before:
            mean = (total - total_before) / (count - count_before)
            means[stage] = mean if stage == "batch" else mean * 1e6
    return means
