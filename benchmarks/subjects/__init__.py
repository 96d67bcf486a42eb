"""What is measured, by name."""

from __future__ import annotations

from benchmarks.subjects.ours import KEY, OURS
from benchmarks.subjects.peers import PEERS
from benchmarks.subjects.subject import OBSERVATION, ROOT, Serving, Subject, Workplace, serving

__all__ = ["KEY", "OBSERVATION", "ROOT", "SUBJECTS", "Serving", "Subject", "Workplace", "serving"]

SUBJECTS: dict[str, Subject] = {subject.name: subject for subject in (*OURS, *PEERS)}
