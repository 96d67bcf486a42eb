"""How many replicas answer, by connections and by Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import pytest

from policy_server.backends.ray.healthy_replicas import HealthyReplicas
from tests.support.waiting import until


@dataclass(eq=False)
class Backend:
    """What is counted of a backend."""

    application: str
    connected_replicas: int | None


def counted(*backends: Backend, told: Iterator[dict[str, int]] | None = None) -> HealthyReplicas:
    """Return a count of backends; Ray Serve's answers fail after those that are told."""
    answers = iter(()) if told is None else told
    return HealthyReplicas(
        cast("Any", set(backends)),
        call_ray=asyncio.to_thread,
        ask_serve=lambda: next(answers),
        period_s=0.001,
    )


@asynccontextmanager
async def running(replicas: HealthyReplicas) -> AsyncIterator[None]:
    """Let a count ask Ray Serve while the block runs."""
    task = asyncio.create_task(replicas.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_replicas_that_are_connected_are_counted_once_for_each_application() -> None:
    backends = (Backend("a", 2), Backend("a", 2), Backend("b", 1), Backend("c", None))

    assert counted(*backends).count() == 3
    assert counted().count() == 0


async def test_ray_serve_tells_of_those_that_are_not_connected() -> None:
    replicas = counted(
        Backend("a", 2), Backend("b", None), told=iter([{"a": 7, "b": 3, "other": 5}] * 1000)
    )
    async with running(replicas):
        await until(lambda: replicas.count() == 5)


async def test_ray_serve_that_fails_is_asked_again_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def told() -> Iterator[dict[str, int]]:
        yield {"b": 3}
        while True:
            yield {"b": 4}

    answers = told()
    failures = iter([None, RuntimeError("it has died"), RuntimeError("it has died")])

    def ask() -> dict[str, int]:
        if (failure := next(failures, None)) is not None:
            raise failure
        return next(answers)

    replicas = HealthyReplicas(
        cast("Any", [Backend("b", None)]), call_ray=asyncio.to_thread, ask_serve=ask, period_s=0.001
    )
    async with running(replicas):
        await until(lambda: replicas.count() == 4)

    assert [record.message for record in caplog.records] == ["replicas_not_counted"]


async def test_ray_serve_is_not_asked_where_all_are_connected() -> None:
    asked: list[None] = []

    def ask() -> dict[str, int]:
        asked.append(None)
        return {}

    backends = [Backend("a", 1)]
    replicas = HealthyReplicas(
        cast("Any", backends), call_ray=asyncio.to_thread, ask_serve=ask, period_s=0.0
    )
    async with running(replicas):
        for _ in range(20):
            await asyncio.sleep(0)
        assert asked == []
        backends.append(Backend("b", None))
        await until(lambda: asked)
