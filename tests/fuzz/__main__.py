"""Long runs of what the tests try for seconds: `python -m tests.fuzz SUBJECT --cases N`.

A case that fails ends the run with what it sent; the same seed sends it again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from tests.fuzz.documents import ask_all
from tests.fuzz.frames import send_frames
from tests.fuzz.model_files import load_files
from tests.fuzz.raw_requests import compare_mutants, compare_requests
from tests.fuzz.saved_models import load_saved_models
from tests.fuzz.schema_texts import read_texts
from tests.fuzz.session_steps import compare_session_mutants, compare_sessions
from tests.fuzz.sockets import send_bytes
from tests.fuzz.team_steps import compare_team_mutants, compare_teams

Run = Callable[[int, int], Counter[Any]]


def _in_loop(run: Callable[[int, int], Coroutine[Any, Any, Counter[Any]]]) -> Run:
    return lambda cases, seed: asyncio.run(run(cases, seed))


# Each with the cases of a long run.
SUBJECTS: dict[str, tuple[Run, int]] = {
    "requests": (_in_loop(compare_requests), 200_000),
    "mutants": (_in_loop(compare_mutants), 200_000),
    "sessions": (_in_loop(compare_sessions), 50_000),
    "session-mutants": (_in_loop(compare_session_mutants), 50_000),
    "teams": (_in_loop(compare_teams), 50_000),
    "team-mutants": (_in_loop(compare_team_mutants), 50_000),
    "sockets": (_in_loop(send_bytes), 50_000),
    "schemas": (read_texts, 50_000),
    "models": (load_files, 20_000),
    "saved-models": (load_saved_models, 5_000),
    # For each of the servers.
    "documents": (ask_all, 5_000),
    "frames": (_in_loop(send_frames), 50_000),
}


def main() -> None:
    """Run one subject, and print how its cases ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    run, usual = SUBJECTS[asked.subject]
    cases = asked.cases or usual
    # Each refused request has a line of its own; errors fail the run.
    logging.disable(logging.WARNING)
    began = time.monotonic()
    ends = run(cases, asked.seed)
    told = ", ".join(f"{end}: {count}" for end, count in sorted(ends.items(), key=_count))
    print(f"{asked.subject}: {cases} cases in {time.monotonic() - began:.0f} s; {told}")  # noqa: T201 -- a command


def _count(item: tuple[object, int]) -> int:
    return -item[1]


if __name__ == "__main__":
    main()
