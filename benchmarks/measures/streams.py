"""Round trips a second over the WebSocket route."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from benchmarks.failures import BenchmarkError
from benchmarks.progress import say
from benchmarks.results import Results, StreamCell
from benchmarks.subjects import KEY, OBSERVATION, SUBJECTS, Serving, Workplace, serving
from benchmarks.websocket import BINARY, TEXT, connected, encode_frame

__all__ = ["measure_streams"]

_ROUTE = "/predict/stream"
_IN_FLIGHT = (1, 64)
_WARM_UP_S = 0.5
_FRAMES: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "JSON": (encode_frame(TEXT, json.dumps(OBSERVATION).encode()), json.loads),
    "msgpack": (encode_frame(BINARY, msgpack.packb(OBSERVATION)), msgpack.unpackb),
}


def measure_streams(
    results: Results,
    workplace: Workplace,
    environment: Mapping[str, str],
    *,
    subjects: Sequence[str],
    seconds: float,
    repeats: int,
) -> None:
    """Send one observation a frame, with one in flight and with many.

    Args:
        results: gets the cells, and why there are none.
        workplace: what the subjects need.
        environment: what they inherit.
        subjects: their names.
        seconds: how long each cell takes.
        repeats: how many rounds.
    """
    for number in range(repeats):
        for name in subjects:
            try:
                with serving(SUBJECTS[name], workplace, environment) as running:
                    _measure(results, running, workplace, number, seconds)
            except BenchmarkError as error:
                results.missing[f"streams of {name}"] = str(error)
                say(f"{name}: streams left out: {error}")


def _measure(
    results: Results, running: Serving, workplace: Workplace, number: int, seconds: float
) -> None:
    for frames, (frame, read) in _FRAMES.items():
        with connected(running.ports[0], _ROUTE, {"access-token": KEY}) as connection:
            answer = read(connection.ask(frame))
            running.subject.check_answer(json.dumps(answer).encode(), workplace)
            connection.round_trips(frame, in_flight=1, seconds=_WARM_UP_S)
        for in_flight in _IN_FLIGHT:
            with connected(running.ports[0], _ROUTE, {"access-token": KEY}) as connection:
                before = _spent_us(running)
                rate, p50_ms = connection.round_trips(frame, in_flight=in_flight, seconds=seconds)
                cpu_us = (_spent_us(running) - before) / (rate * seconds)
            cell = StreamCell(
                *(running.subject.name, frames, in_flight, number),
                *(round(rate), round(p50_ms, 3), round(cpu_us, 1)),
            )
            results.streams.append(cell)
            say(
                f"stream   {cell.subject:<18} {frames:<7} {in_flight:>2} in flight "
                f"{cell.round_trips_per_s:>9.0f} round trips/s   p50 {cell.p50_ms:.3g} ms   "
                f"{cell.cpu_us:.3g} us of processor time"
            )


def _spent_us(running: Serving) -> float:
    return sum(running.server.cpu_by_role().values())
