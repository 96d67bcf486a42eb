"""What is measured: a server, how it is started, and what a right answer of it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.failures import BenchmarkError
from benchmarks.load import Request, post
from benchmarks.processes import RunningServer, free_ports, started

__all__ = ["OBSERVATION", "ROOT", "Group", "Serving", "Subject", "Workplace", "serving"]

ROOT = Path(__file__).resolve().parents[2]
OBSERVATION = {
    "mouse_row": 5,
    "mouse_column": 0,
    "cheese_row": 1,
    "cheese_column": 4,
    "cat_row": 3,
    "cat_column": 2,
}
Group = Literal["ours", "floor", "ray", "peer"]
_START_TIMEOUT_S = 180.0
_POLL_S = 0.01
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Workplace:
    """Where the benchmark keeps what servers need.

    Attributes:
        home: holds schema.yaml and the policy, as `POLICY_SERVER_HOME` names it.
        weights: the policy's weights, for servers that don't know policy_server.
        scratch: logs and generated configuration.
        environments: the peers' virtual environments.
        probabilities: the chance of each action for `OBSERVATION`.
    """

    home: Path
    weights: Path
    scratch: Path
    environments: Path
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Subject:
    """A server to measure.

    Attributes:
        name: what it is called on the command line and in the results.
        title: what it is called in tables.
        group: what kind of subject it is.
        request: what asks for one action.
        read: returns the action and its probability from an answer's JSON.
        command: returns the program and its arguments; the first of the ports is for HTTP.
        environment: returns variables, given the workplace and the ports.
        ports: how many free ports it needs.
        folder: returns where it starts.
        peer: the name of its virtual environment; None where it runs in ours.
    """

    name: str
    title: str
    group: Group
    request: Request
    read: Callable[[Any], tuple[int, float]]
    command: Callable[[Workplace, list[int]], list[str]]
    environment: Callable[[Workplace, list[int]], Mapping[str, str]] = field(
        default=lambda _workplace, _ports: {}
    )
    ports: int = 1
    folder: Callable[[Workplace, list[int]], Path] = field(default=lambda _workplace, _ports: ROOT)
    peer: str | None = None

    def check_answer(self, body: bytes, workplace: Workplace) -> None:
        """Hold an answer against the policy.

        Args:
            body: the answer's JSON.
            workplace: knows the right probabilities.

        Raises:
            BenchmarkError: if it is not the policy's.
        """
        try:
            action, probability = self.read(json.loads(body))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise BenchmarkError(f"{self.name}: answered {body[:200]!r}") from error
        expected = dict(enumerate(workplace.probabilities)).get(action)
        if expected is None or abs(probability - expected) > _TOLERANCE:
            raise BenchmarkError(
                f"{self.name}: action {action} with probability {probability}, expected {expected}"
            )


@dataclass(frozen=True)
class Serving:
    """A subject that answers.

    Attributes:
        subject: which one.
        server: its processes.
        url: its address.
        ports: all of its ports.
        start_s: seconds from the process's start to the first right answer.
    """

    subject: Subject
    server: RunningServer
    url: str
    ports: list[int]
    start_s: float


@contextmanager
def serving(
    subject: Subject,
    workplace: Workplace,
    environment: Mapping[str, str],
) -> Iterator[Serving]:
    """Start a subject and wait until it has answered rightly and is at rest.

    Args:
        subject: what is started.
        workplace: what it needs.
        environment: the caller's environment, without settings of ours.

    Yields:
        The subject.

    Raises:
        BenchmarkError: if it ends, answers wrongly, or does not answer in time.
    """
    ports = free_ports(subject.ports)
    variables = {**environment, **subject.environment(workplace, ports)}
    began = time.perf_counter()
    with started(
        subject.command(workplace, ports),
        environment=variables,
        folder=subject.folder(workplace, ports),
        log=workplace.scratch / f"{subject.name}.log",
    ) as server:
        url = f"http://127.0.0.1:{ports[0]}"
        answer = _first_answer(subject, server, url, began)
        start_s = time.perf_counter() - began
        subject.check_answer(answer, workplace)
        server.settle()
        yield Serving(subject, server, url, ports, start_s)


def _first_answer(subject: Subject, server: RunningServer, url: str, began: float) -> bytes:
    problem = "nobody listens"
    while time.perf_counter() - began < _START_TIMEOUT_S:
        server.check_alive()
        try:
            return post(url, subject.request)
        except BenchmarkError as error:
            # Some listen before they can answer.
            problem = str(error)
        time.sleep(_POLL_S)
    raise BenchmarkError(f"{subject.name}: no answer in {_START_TIMEOUT_S:.0f} s: {problem}")
