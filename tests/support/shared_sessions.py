"""Web processes, here all in one event loop, that share the sessions of a policy with memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import SecretStr

from policy_server.metrics import Metrics, MetricsExporter
from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry, PolicySlot
from policy_server.serving.redis_sessions import RedisSessions
from policy_server.settings import Settings
from policy_server.web import Application, create_app
from tests.support.fakes import FakeBackend, slot_of, summing_backend
from tests.support.pages import summed
from tests.support.web import KEY, SCHEMA, client_of, running

__all__ = ["WebProcess", "key_of", "two", "web_process"]


def key_of(session: str) -> str:
    """Return where Redis keeps a session, by its address."""
    return f"policy-server:session:{session.rpartition('/')[2]}"


@dataclass
class WebProcess:
    """One of several web processes."""

    app: Application
    client: httpx.AsyncClient
    slot: PolicySlot
    metrics: Metrics
    backend: FakeBackend

    async def begin(self, **start: Any) -> str:  # noqa: ANN401 -- any start
        """Begin a session, and return its address."""
        answer = await self.client.post("/sessions", json=start)
        assert answer.status_code == 201, answer.text
        return f"/sessions/{answer.json()['session_id']}"

    async def step(self, session: str, cat: int = 1, **headers: str) -> httpx.Response:
        """Make a step, whose action is the sum of its numbers so far, modulo 3."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(
            f"{session}/predict_deterministic", json={"cat": cat, "mouse": 1.0}, headers=named
        )

    def figure(self, name: str) -> float:
        """Return a number of the metrics page."""
        return summed(MetricsExporter(self.metrics, port=0).render().decode(), name)


@asynccontextmanager
async def web_process(
    url: str,
    backend: FakeBackend | None = None,
    *,
    has_fast_path: bool = True,
    schema: str = SCHEMA,
    **settings: Any,  # noqa: ANN401 -- their own types
) -> AsyncIterator[WebProcess]:
    """Serve a policy with memory whose sessions are in Redis."""
    known, metrics, used = Settings(**settings), Metrics(), backend or summing_backend()
    sessions = RedisSessions(SecretStr(url), known, metrics, swept_every_s=0.02)
    slot = slot_of(used, parse_schema(schema), settings=known, metrics=metrics, sessions=sessions)
    policies = PolicyRegistry([slot])
    app = create_app(policies, known, api_key=KEY, has_fast_path=has_fast_path, metrics=metrics)
    async with sessions.running(), running(app), client_of(app) as client:
        yield WebProcess(app, client, slot, metrics, used)


@asynccontextmanager
async def two(
    url: str,
    **settings: Any,  # noqa: ANN401 -- their own types
) -> AsyncIterator[tuple[WebProcess, WebProcess]]:
    """Serve by two web processes."""
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(web_process(url, **settings)) for _ in range(2)
        ]
        yield first, second
