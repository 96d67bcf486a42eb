"""Clients that go on until they are told to pause, and the count of what became of requests."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
from websockets.exceptions import WebSocketException

from benchmarks.soak.expected import Case, Expected, is_same
from benchmarks.subjects import KEY

__all__ = ["Counts", "Outcome", "Scenario", "ScenarioCounts", "Traffic", "Trouble", "Visitor"]

# A version is compiled, which takes minutes where others use the machine.
_TIMEOUT_S = 300.0
_SHOWN = 3
# What ends a connection answers no request, and so has no id of one.
_OF_CONNECTIONS = (400, 408, 431)
_LONGEST_PAUSE_S = 0.02
# The last four: of an answer that has another form than the right one.
_TROUBLES = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)


class Trouble(Exception):  # noqa: N818 -- it is no error of this program
    """Says what is wrong with an answer."""


@dataclass(frozen=True)
class ScenarioCounts:
    """What became of the requests of one scenario, frames of streams included.

    Attributes:
        answered: those with the right answer.
        refused: those that had to be refused, and were, with the right status.
        left: those whose client left before the answer.
        failed: visits that met a wrong answer or none.
    """

    answered: int
    refused: int
    left: int
    failed: int


@dataclass
class Counts:
    """What became of requests, frames of streams included.

    Attributes:
        answered: by scenario, those with the right answer.
        refused: by scenario, those that had to be refused, and were, with the right status.
        left: by scenario, those whose client left before the answer.
        failed: by scenario, visits that met a wrong answer or none.
        troubles: the first of these of each scenario, in words.
    """

    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All requests."""
        kinds = (self.answered, self.refused, self.left, self.failed)
        return sum(kind.total() for kind in kinds)

    def by_scenario(self, names: Iterable[str]) -> dict[str, ScenarioCounts]:
        """Return what became of the requests of each scenario.

        Args:
            names: the scenarios.
        """
        return {
            name: ScenarioCounts(
                self.answered[name], self.refused[name], self.left[name], self.failed[name]
            )
            for name in names
        }

    def fail(self, scenario: str, said: str) -> None:
        """Count a visit that failed, and keep the words of the first ones."""
        self.failed[scenario] += 1
        if self.failed[scenario] <= _SHOWN:
            self.troubles.append(f"{scenario}: {said}")


@dataclass(frozen=True)
class Outcome:
    """An answer over HTTP.

    Attributes:
        status: its code.
        headers: in lower case.
        body: its bytes.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 -- JSON
        """Return the document that the body is."""
        return orjson.loads(self.body)


@dataclass(frozen=True)
class Visitor:
    """One client in one scenario.

    Attributes:
        name: the scenario's.
        port: the server's.
        metrics_port: that of its metrics.
        expected: the right answers.
        chance: what is drawn from.
        counts: of all clients.
        http: connections that are kept open, and have the key.
        held: the count of the last answer, until its content was compared too.
    """

    name: str
    port: int
    metrics_port: int
    expected: Expected
    chance: random.Random
    counts: Counts
    http: httpx.AsyncClient
    held: list[Counter[str]] = field(default_factory=list)

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401 -- JSON, or bytes
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Send a request, and hold its status.

        Args:
            method: GET and so on.
            path: with the query.
            body: JSON; bytes are sent as they are.
            status: the right one.
            headers: beside the key.

        Raises:
            Trouble: if the answer has another status.
        """
        self.confirm()
        content = body if isinstance(body, bytes | None) else orjson.dumps(body)
        answer = await self.http.request(method, path, content=content, headers=headers)
        outcome = Outcome(answer.status_code, answer.headers, answer.content)
        self.hold(outcome, status, f"{method} {path}")
        return outcome

    def hold(self, outcome: Outcome, status: int, told: str) -> None:
        """Hold the status of an answer, and count it once the visit goes on or ends.

        Args:
            outcome: the answer.
            status: the right one.
            told: the request, in words.

        Raises:
            Trouble: if it has another one.
        """
        self.confirm()
        if outcome.status != status:
            said = outcome.body[:200].decode(errors="replace")
            raise Trouble(f"{told}: expected {status}, got {outcome.status}: {said}")
        if "x-request-id" not in outcome.headers and status not in _OF_CONNECTIONS:
            raise Trouble(f"{told}: has no x-request-id")
        self.held.append(self.counts.answered if status < 400 else self.counts.refused)

    def confirm(self) -> None:
        """Count the answer that was held last: nothing was wrong with its content."""
        while self.held:
            self.held.pop()[self.name] += 1

    def leave(self) -> None:
        """Count a request whose answer nobody waits for."""
        self.counts.left[self.name] += 1

    def case(self, *, is_named: bool | None = None) -> Case:
        """Draw an observation.

        Args:
            is_named: whether its policy takes named ones; None for any.
        """
        cases = self.expected.cases
        while True:
            case = self.chance.choice(cases)
            if is_named is None or case.is_named == is_named:
                return case

    @staticmethod
    def compare(found: Any, wanted: Sequence[Any], told: str) -> None:  # noqa: ANN401 -- JSON
        """Hold an answer.

        Args:
            found: JSON.
            wanted: the right answers, of which it has to be one.
            told: the request, in words.

        Raises:
            Trouble: if it is none of them.
        """
        if not any(is_same(found, each) for each in wanted):
            raise Trouble(f"{told}: wrong answer: expected {wanted[0]}, got {found}")


Scenario = Callable[[Visitor], Awaitable[None]]


@dataclass
class Traffic:
    """Clients that draw one scenario after the other.

    Attributes:
        port: the server's.
        metrics_port: that of its metrics.
        expected: the right answers.
        scenarios: by name, each with how often it is drawn beside the others.
        clients: how many go at once.
        counts: what became of their requests.
    """

    port: int
    metrics_port: int
    expected: Expected
    scenarios: Mapping[str, tuple[Scenario, float]]
    clients: int
    counts: Counts = field(default_factory=Counts)

    @asynccontextmanager
    async def flowing(self, seed: int) -> AsyncIterator[None]:
        """Let the clients go while the block runs; its end waits until each has done its visit.

        Args:
            seed: of what they draw.
        """
        is_over = asyncio.Event()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.clients)
        async with (
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{self.port}",
                headers={"access-token": KEY},
                timeout=_TIMEOUT_S,
                limits=limits,
                trust_env=False,
            ) as http,
            asyncio.TaskGroup() as group,
        ):
            for number in range(self.clients):
                group.create_task(self._go(http, random.Random(f"{seed}/{number}"), is_over))  # noqa: S311 -- drawn for a test
            try:
                yield
            finally:
                is_over.set()

    async def _go(
        self, http: httpx.AsyncClient, chance: random.Random, is_over: asyncio.Event
    ) -> None:
        names = list(self.scenarios)
        weights = [weight for _, weight in self.scenarios.values()]
        while not is_over.is_set():
            [name] = chance.choices(names, weights)
            await self.visit(name, http, chance)
            await asyncio.sleep(chance.uniform(0, _LONGEST_PAUSE_S))

    async def visit(self, name: str, http: httpx.AsyncClient, chance: random.Random) -> None:
        """Let one client do a scenario once.

        Args:
            name: the scenario's.
            http: the client's connections.
            chance: what it draws from.
        """
        ports = self.port, self.metrics_port
        visitor = Visitor(name, *ports, self.expected, chance, self.counts, http)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self.scenarios[name][0](visitor)
            visitor.confirm()
        except Trouble as error:
            self.counts.fail(name, str(error))
        except (*_TROUBLES, httpx.HTTPError, WebSocketException) as error:
            self.counts.fail(name, f"{type(error).__name__}: {error}"[:300])
