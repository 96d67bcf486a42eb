"""What a run measured: plain values, written to JSON and read again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

__all__ = [
    "BatchCell",
    "Cell",
    "EngineCell",
    "LoopCell",
    "Results",
    "RowCell",
    "Stage",
    "Start",
    "StreamCell",
]


@dataclass(frozen=True)
class Cell:
    """One subject under one number of connections in one round.

    Attributes:
        subject: its name.
        connections: how many were open.
        round: which repetition.
        requests_per_s: answers a second.
        p50_ms: the median latency.
        p99_ms: what 99 of 100 requests stay below.
        errors: answers that were none; a cell with any counts for nothing.
        cpu_us: microseconds of processor time a request, by `web`, `replica`, `Ray` and `wrk`.
        stages: what the server's own metrics say of the time between: mean microseconds by stage,
            and `batch`, the mean number of observations in a call.
    """

    subject: str
    connections: int
    round: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_us: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchCell:
    """A batch route under one kind of body.

    Attributes:
        subject: its name.
        body: `JSON rows`, `JSON columns` or `npy`.
        rows: how many observations a request has.
        round: which repetition.
        rows_per_s: observations answered a second.
        p50_ms: the median latency of a request.
        single_p50_ms: the median latency of single predictions meanwhile; None where not measured.
        single_p90_ms: what 90 of 100 of them stay below; None where not measured.
    """

    subject: str
    body: str
    rows: int
    round: int
    rows_per_s: float
    p50_ms: float
    single_p50_ms: float | None
    single_p90_ms: float | None = None


@dataclass(frozen=True)
class StreamCell:
    """A WebSocket under one number of frames in flight.

    Attributes:
        subject: its name.
        frames: `JSON` or `msgpack`.
        in_flight: how many frames wait for their answers.
        round: which repetition.
        round_trips_per_s: answers a second.
        p50_ms: the median time of one round trip.
        cpu_us: processor time of all the server's processes for each, in microseconds; None where
            a run did not measure it.
    """

    subject: str
    frames: str
    in_flight: int
    round: int
    round_trips_per_s: float
    p50_ms: float
    cpu_us: float | None = None


@dataclass(frozen=True)
class LoopCell:
    """A closed loop at a fixed rate.

    Attributes:
        transport: the way to the server.
        hz: ticks a second.
        round: which repetition.
        p50_ms: the median time of one round trip.
        p99_ms: the time that one of a hundred takes longer than.
        worst_ms: the longest time.
        missed: how many answers came after the next tick began.
        subject: the name of the server.
    """

    transport: str
    hz: float
    round: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    missed: int
    subject: str = "local"


@dataclass(frozen=True)
class Start:
    """One start.

    Attributes:
        subject: its name.
        is_first: whether the policy was never served before: nothing is unzipped or compiled.
        round: which repetition.
        seconds: from the process's start to the first right answer.
        memory_mb: proportional set size of all its processes after some load, in 10^6 bytes.
        processes: how many these are.
    """

    subject: str
    is_first: bool
    round: int
    seconds: float
    memory_mb: float
    processes: int


@dataclass(frozen=True)
class EngineCell:
    """One call of the policy by one engine.

    Attributes:
        engine: as `POLICY_SERVER_ENGINE` names it.
        batch: how many observations.
        forward_us: the network alone, in microseconds; None where it can't be called alone.
        call_us: with draws and probabilities.
    """

    engine: str
    batch: int
    forward_us: float | None
    call_us: float


@dataclass(frozen=True)
class RowCell:
    """The call of one row, in microseconds of processor time; each part is measured by itself.

    Attributes:
        actions: the kind of actions.
        network_us: the network.
        draw_us: the draw and its probability.
        json_us: the JSON of the answer.
        call_us: the whole call.
    """

    actions: str
    network_us: float
    draw_us: float
    json_us: float
    call_us: float


@dataclass(frozen=True)
class Stage:
    """A stage of a request's way in one process, without sockets.

    Attributes:
        name: what happens there.
        batch: how many requests share a call of the policy.
        us: microseconds of processor time a request.
    """

    name: str
    batch: int
    us: float


@dataclass
class Results:
    """All that one run measured."""

    machine: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    batches: list[BatchCell] = field(default_factory=list)
    streams: list[StreamCell] = field(default_factory=list)
    loops: list[LoopCell] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    engines: list[EngineCell] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    rows: list[RowCell] = field(default_factory=list)

    def median_of(self, subject: str, connections: int, value: str) -> float | None:
        """Return the median over the rounds of one of `Cell`'s numbers.

        Args:
            subject: its name.
            connections: how many.
            value: the attribute.

        Returns:
            The median; None where it was not measured, or a round had errors.
        """
        cells = self.cells_of(subject, connections)
        if not cells or any(cell.errors for cell in cells):
            return None
        figure: float = median(getattr(cell, value) for cell in cells)
        return figure

    def rounds_of(self, subject: str, connections: int) -> set[int]:
        """Return the rounds in which a subject was measured under a number of connections."""
        return {cell.round for cell in self.cells_of(subject, connections)}

    def cells_of(self, subject: str, connections: int) -> list[Cell]:
        """Return the rounds of one subject under one number of connections."""
        return [
            cell
            for cell in self.cells
            if cell.subject == subject and cell.connections == connections
        ]

    def subjects(self) -> list[str]:
        """Return the subjects that have cells, in the order of measuring."""
        return list(dict.fromkeys(cell.subject for cell in self.cells))

    def connections(self) -> list[int]:
        """Return the numbers of connections, ascending."""
        return sorted({cell.connections for cell in self.cells})

    def write(self, path: Path) -> None:
        """Write all to a JSON file.

        Args:
            path: the file.
        """
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return what `write` wrote, now or when a run had fewer parts.

        Args:
            path: the file.
        """
        document = json.loads(path.read_text(encoding="utf-8"))
        kinds: dict[str, Any] = {
            "cells": Cell,
            "batches": BatchCell,
            "streams": StreamCell,
            "loops": LoopCell,
            "starts": Start,
            "engines": EngineCell,
            "stages": Stage,
            "rows": RowCell,
        }
        lists = {
            name: [kind(**item) for item in document.get(name, [])] for name, kind in kinds.items()
        }
        return cls(**{**document, **lists})
