"""Teams of small policies, served in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import httpx

from policy_server.http_server.http_protocol import HttpProtocol
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.metrics import Metrics
from policy_server.schema import AgentPolicies, ServerSchema, parse_schema
from policy_server.serving import PolicyRegistry, PolicySlot
from policy_server.serving.process_sessions import ProcessSessions
from policy_server.serving.session_store import SessionStore
from policy_server.settings import Settings
from policy_server.web import Application, create_app
from tests.support.fakes import FakeBackend, integer_backend, opened, summing_backend
from tests.support.servers import app_in_loop
from tests.support.streams import Served
from tests.support.web import KEY, client_of, running

HUNTER = parse_schema("observations: {cat: {type: int}, mouse: {type: float, maximum: 10}}")
PREY = parse_schema("observations: {distance: {type: float}, is_seen: {type: bool}}")
FLAT = parse_schema("parameters: {discrete: True}")
RULES = {"hunter_*": "hunter", "prey": "prey", "drone_*": "drone"}


@dataclass(frozen=True)
class ServedTeam:
    """A team that is served.

    Attributes:
        client: asks the server.
        app: the server.
        backends: compute the policies, by name.
        slots: the policies' slots.
        metrics: the server's.
    """

    client: httpx.AsyncClient
    app: Application
    backends: Mapping[str, FakeBackend]
    slots: Mapping[str, PolicySlot]
    metrics: Metrics


def usual_backends() -> dict[str, FakeBackend]:
    """Return a policy with memory, and two without; the last takes flat observations."""
    return {
        "hunter": summing_backend(),
        "prey": integer_backend(),
        "drone": integer_backend([1.0, 0.0]),
    }


def build_team(
    backends: Mapping[str, FakeBackend] | None = None,
    *,
    schemas: Mapping[str, ServerSchema] | None = None,
    rules: Mapping[str, str] = RULES,
    has_fast_path: bool = True,
    open_sessions: Callable[[Settings, Metrics], SessionStore] = ProcessSessions,
    **settings: Any,  # noqa: ANN401 -- the settings' own types
) -> tuple[Application, dict[str, PolicySlot], Metrics]:
    """Build the application of a team: by default a hunter with memory, two others without."""
    known, metrics = Settings(**settings), Metrics()
    used = usual_backends() if backends is None else backends
    of = {"hunter": HUNTER, "prey": PREY, "drone": FLAT} if schemas is None else schemas
    sessions = open_sessions(known, metrics)

    def slot(name: str, backend: FakeBackend) -> PolicySlot:
        return PolicySlot(
            name,
            of[name],
            lambda: opened(backend, digest=f"{name}0123"),
            settings=known,
            metrics=metrics,
            sessions=sessions,
        )

    slots = {name: slot(name, backend) for name, backend in used.items()}
    registry = PolicyRegistry([*slots.values()], agents=AgentPolicies(rules))
    app = create_app(registry, known, api_key=KEY, has_fast_path=has_fast_path, metrics=metrics)
    return app, slots, metrics


@asynccontextmanager
async def served_team(
    backends: Mapping[str, FakeBackend] | None = None,
    **options: Any,  # noqa: ANN401 -- what `build_team` takes
) -> AsyncIterator[ServedTeam]:
    """Serve a team; see `build_team`."""
    used = usual_backends() if backends is None else backends
    app, slots, metrics = build_team(used, **options)
    async with running(app), client_of(app) as client:
        yield ServedTeam(client, app, used, slots, metrics)


@asynccontextmanager
async def streamed_team(
    backends: Mapping[str, FakeBackend] | None = None,
    **options: Any,  # noqa: ANN401 -- what `build_team` takes
) -> AsyncIterator[tuple[Served, dict[str, PolicySlot]]]:
    """Serve a team's streams; see `build_team`."""
    app, slots, metrics = build_team(backends, **options)
    async with app_in_loop(app, http=HttpProtocol, ws=WebSocketProtocol) as (url, server):
        yield Served(url, server, metrics), slots


def own_seed(seed: int, agent: str) -> int:
    """Return the seed of an agent, by the rule of the documentation."""
    return int.from_bytes(sha256(f"{seed}/{agent}".encode()).digest()[:8], "big") >> 1
