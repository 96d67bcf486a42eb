"""A run as JSON: the machine, the counts and the samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.soak.samples import Sample
from benchmarks.soak.traffic import ScenarioCounts

__all__ = ["Record"]


@dataclass(frozen=True)
class Record:
    """A run.

    Attributes:
        machine: what `describe_machine` says.
        backend: `local` or `ray`.
        minutes: how long there was traffic.
        clients: how many asked at once.
        scenarios: what became of the requests, by scenario.
        troubles: the first visits that failed, in words.
        samples: what the server held, in order of time.
    """

    machine: Mapping[str, str]
    backend: str
    minutes: float
    clients: int
    scenarios: Mapping[str, ScenarioCounts]
    troubles: tuple[str, ...]
    samples: tuple[Sample, ...]

    def write(self, path: Path) -> None:
        """Write the run as JSON."""
        path.write_bytes(_ADAPTER.dump_json(self) + b"\n")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a run that was written."""
        return _ADAPTER.validate_json(path.read_bytes())

    @property
    def requests(self) -> int:
        """All requests, frames of streams included."""
        return sum(sum(vars(each).values()) for each in self.scenarios.values())

    @property
    def failed(self) -> int:
        """Visits that met a wrong answer or none."""
        return sum(each.failed for each in self.scenarios.values())


_ADAPTER = TypeAdapter(Record)
