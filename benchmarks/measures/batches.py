"""Rows a second of the batch route, and single predictions beside it."""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

from benchmarks.failures import BenchmarkError
from benchmarks.load import Load, Request, drive, post, post_repeatedly
from benchmarks.progress import say
from benchmarks.results import BatchCell, Results
from benchmarks.subjects import KEY, OBSERVATION, SUBJECTS, Serving, Workplace, serving

__all__ = ["BODIES", "check_columns", "measure_batches"]

_ROUTE = "/predict/batch"
_TOLERANCE = 1e-4
_LEAST_ANSWERS = 3


def _rows(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return float32[count, 6]: observations that differ, the first being `OBSERVATION`."""
    rows = np.random.default_rng(0).integers(0, 6, (count, len(OBSERVATION)))
    rows[0] = list(OBSERVATION.values())
    return rows.astype(np.float32)


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _json_rows(count: int) -> Request:
    named = [dict(zip(OBSERVATION, row, strict=True)) for row in _rows(count).tolist()]
    return Request(_ROUTE, _json(named), {"content-type": "application/json", "access-token": KEY})


def _json_columns(count: int) -> Request:
    columns = dict(zip(OBSERVATION, _rows(count).T.tolist(), strict=True))
    return Request(
        _ROUTE, _json(columns), {"content-type": "application/json", "access-token": KEY}
    )


def _npy(count: int) -> Request:
    buffer = io.BytesIO()
    np.save(buffer, _rows(count))
    kind = "application/x-npy"
    headers = {"content-type": kind, "accept": kind, "access-token": KEY}
    return Request(_ROUTE, buffer.getvalue(), headers)


BODIES: dict[str, Callable[[int], Request]] = {
    "JSON rows": _json_rows,
    "JSON columns": _json_columns,
    "npy": _npy,
}


def measure_batches(
    results: Results,
    workplace: Workplace,
    environment: Mapping[str, str],
    *,
    subjects: Sequence[str],
    rows: Iterable[int],
    seconds: float,
    repeats: int,
) -> None:
    """Send many observations a request, alone, and beside single predictions.

    Args:
        results: gets the cells, and why there are none.
        workplace: what the subjects need.
        environment: what they inherit.
        subjects: their names.
        rows: how many observations a request has.
        seconds: how long each cell takes.
        repeats: how many rounds.
    """
    sizes = sorted(rows)
    for index in range(repeats):
        for name in subjects:
            try:
                with serving(SUBJECTS[name], workplace, environment) as running:
                    for size in sizes:
                        _measure(
                            results,
                            running,
                            workplace,
                            number_of_round=index,
                            size=size,
                            seconds=seconds,
                            has_singles=size == sizes[-1],
                        )
            except BenchmarkError as error:
                results.missing[f"batches of {name}"] = str(error)
                say(f"{name}: batches left out: {error}")


def _measure(
    results: Results,
    running: Serving,
    workplace: Workplace,
    *,
    number_of_round: int,
    size: int,
    seconds: float,
    has_singles: bool,
) -> None:
    name = running.subject.name
    for body, request_of in BODIES.items():
        # A server without this kind of body says so at once to a small one.
        post(running.url, request_of(1))
        request = request_of(size)
        check_columns(post(running.url, request), size, body, workplace.probabilities)
        times = post_repeatedly(running.url, request, seconds=seconds, least=_LEAST_ANSWERS)
        single = _beside(running, request, seconds) if has_singles else None
        shown = None if single is None or single.errors else single
        cell = BatchCell(
            subject=name,
            body=body,
            rows=size,
            round=number_of_round,
            rows_per_s=round(size / median(times) * 1000),
            p50_ms=round(median(times), 3),
            single_p50_ms=None if shown is None else shown.p50_ms,
            single_p90_ms=None if shown is None else shown.p90_ms,
        )
        results.batches.append(cell)
        beside = (
            ""
            if single is None
            else f"   single predictions meanwhile: p50 {single.p50_ms:.3g} ms, "
            f"p90 {single.p90_ms:.3g} ms" + (f"   {single.errors} ERRORS" if single.errors else "")
        )
        say(
            f"batches  {name:<18} {size:>7} x {body:<13} {cell.rows_per_s:>9.0f} rows/s   "
            f"p50 {cell.p50_ms:.3g} ms{beside}"
        )


def _beside(running: Serving, request: Request, seconds: float) -> Load:
    """Return the latency of single predictions while batches are answered."""
    is_over = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as executor:
        batches = executor.submit(
            post_repeatedly, running.url, request, seconds=seconds, least=1, until=is_over
        )
        try:
            return drive(running.url, running.subject.request, connections=1, seconds=seconds)
        finally:
            is_over.set()
            batches.result()


def check_columns(body: bytes, rows: int, kind: str, probabilities: Sequence[float]) -> None:
    """Hold a batch's answer against the policy.

    Args:
        body: the answer.
        rows: how many observations were asked.
        kind: one of `BODIES`.
        probabilities: what is right for the first observation.

    Raises:
        BenchmarkError: if it is not the policy's.
    """
    try:
        given, action, probability = _read_columns(body, kind)
        expected = dict(enumerate(probabilities)).get(action, math.inf)
        is_right = given == rows and abs(probability - expected) <= _TOLERANCE
    except (ValueError, LookupError, TypeError, EOFError) as error:
        raise BenchmarkError(f"{_ROUTE}, {kind}: answered {body[:200]!r}") from error
    if not is_right:
        raise BenchmarkError(
            f"{_ROUTE}, {kind}: {given} answers for {rows} rows, the first is action {action} with "
            f"probability {probability:.6g}"
        )


def _read_columns(body: bytes, kind: str) -> tuple[int, int, float]:
    """Return the number of rows, and the first one's action and probability."""
    if kind == "npy":
        answer = np.load(io.BytesIO(body), allow_pickle=False)
        return len(answer), int(answer[0, 0]), float(answer[0, -1])
    document = json.loads(body)
    return len(document["actions"]), document["actions"][0][0], document["probability"][0]
