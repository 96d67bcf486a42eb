"""The connection to Redis: order, lost connections, forgotten scripts and time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from policy_server.errors import SessionStoreError, SettingsError
from policy_server.serving.redis_sessions.script_calls import RedisScripts
from policy_server.serving.redis_sessions.scripts import Script
from tests.support.redis_servers import RedisServer, redis_server
from tests.support.waiting import turns, until, wait_until

APPEND = Script.of("return redis.call('APPEND', KEYS[1], ARGV[1])")
WRITE = Script.of("return redis.call('APPEND', KEYS[1], ARGV[1])", takes_room=True)
READ = Script.of("return redis.call('GET', KEYS[1])")


@pytest.fixture(scope="module")
def store() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@asynccontextmanager
async def connected(store: RedisServer, **options: float) -> AsyncIterator[RedisScripts]:
    """Connect to a Redis that is empty."""
    store.ask("FLUSHALL")
    calls = RedisScripts(SecretStr(store.url), **options)
    yield calls
    await calls.aclose()


async def test_calls_reach_redis_in_their_order_cancelled_ones_too(store: RedisServer) -> None:
    async with connected(store) as calls:
        appended = [calls.call(APPEND, "key", f"{number},") for number in range(600)]
        appended[1].cancel()
        calls.tell(APPEND, "key", "told")
        found = await calls.call(READ, "key")

    assert found.decode() == "".join(f"{number}," for number in range(600)) + "told"


async def test_calls_that_wait_when_the_connection_is_closed_are_made(store: RedisServer) -> None:
    async with connected(store) as calls:
        calls.tell(APPEND, "key", "last")

    assert store.ask("GET", "key") == b"last"


async def test_lost_connection_and_forgotten_scripts_cost_no_call(store: RedisServer) -> None:
    async with connected(store) as calls:
        await calls.call(APPEND, "key", "a")
        store.ask("CLIENT", "KILL", "TYPE", "normal")
        await calls.call(APPEND, "key", "b")
        store.ask("SCRIPT", "FLUSH")
        await asyncio.gather(calls.call(APPEND, "key", "c"), calls.call(APPEND, "key", "d"))
        found = await calls.call(READ, "key")

    assert found == b"abcd"


async def test_event_loop_that_stood_still_takes_the_answer_that_came_meanwhile(
    store: RedisServer,
) -> None:
    async with connected(store, timeout_s=1) as calls:
        await calls.call(APPEND, "key", "a")
        read = store.commands("get")
        with store.held_up():
            asked = calls.call(READ, "key")
            # It is sent in these turns, and answered while the loop stands still.
            await turns()
        time.sleep(1.1)
        wait_until(lambda: store.commands("get") > read)
        found = await asked

    assert found == b"a"


async def test_call_that_fails_leaves_those_beside_it(store: RedisServer) -> None:
    async with connected(store) as calls:
        store.ask("LPUSH", "list", "item")
        answers = await asyncio.gather(
            calls.call(READ, "list"), calls.call(APPEND, "key", "a"), return_exceptions=True
        )

    assert isinstance(answers[0], SessionStoreError)
    assert "refuses what it is asked for" in answers[0].message
    assert answers[1] == 1


async def test_refusals_among_answers_are_told_once(
    store: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with connected(store, quiet_s=60) as calls:
        store.ask("LPUSH", "list", "item")
        for _ in range(5):
            with pytest.raises(SessionStoreError):
                await calls.call(READ, "list")
            await calls.call(WRITE, "key", "a")

    assert caplog.messages == ["sessions_unreachable"]


async def test_end_of_refusals_is_told_once_redis_writes(
    store: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with connected(store, quiet_s=0) as calls:
        store.ask("LPUSH", "list", "item")
        with pytest.raises(SessionStoreError):
            await calls.call(READ, "list")
        await calls.call(APPEND, "key", "a")
        read = caplog.messages.copy()
        for _ in range(2):
            await calls.call(WRITE, "key", "a")

    assert read == ["sessions_unreachable"]
    assert caplog.messages == ["sessions_unreachable", "sessions_reachable"]


@pytest.mark.parametrize(
    ("refusal", "connections"),
    [
        ("OOM no room", 0),
        ("WRONGTYPE no text", 0),
        ("READONLY a replica", 3),
        ("MASTERDOWN a replica", 3),
    ],
)
async def test_refusal_takes_a_new_connection_where_another_redis_may_be_there(
    store: RedisServer, refusal: str, connections: int
) -> None:
    refuse = Script.of(f"return redis.error_reply('{refusal}')")
    async with connected(store) as calls:
        await calls.call(APPEND, "key", "a")
        before = _connections(store)
        for _ in range(3):
            with pytest.raises(SessionStoreError):
                await calls.call(refuse, "key")
        await calls.call(APPEND, "key", "a")
        made = _connections(store) - before - 1

    assert made == connections


def _connections(store: RedisServer) -> int:
    """Return how many were made so far, with the one that asks."""
    return int(store.ask("INFO", "stats")["total_connections_received"])


async def test_nobody_waits_for_a_redis_that_has_failed_until_it_answers(
    store: RedisServer,
) -> None:
    async with connected(store, timeout_s=0.1, pause_s=0.01) as calls:
        with store.held_up():
            with pytest.raises(SessionStoreError, match=r"within 0\.1 s"):
                await calls.call(READ, "key")
            # As long as some tries to reach it.
            for _ in range(50):
                with pytest.raises(SessionStoreError, match=r"within 0\.1 s"):
                    calls.call(READ, "key")
                await asyncio.sleep(0.01)
        await until(lambda: calls.is_answered)
        found = await calls.call(READ, "key")

    assert found is None


async def test_telling_a_redis_that_fails_is_made_up_for_before_other_calls(
    store: RedisServer,
) -> None:
    async with connected(store, timeout_s=0.1, pause_s=0.01) as calls:
        with store.held_up():
            with pytest.raises(SessionStoreError):
                await calls.call(READ, "key")
            calls.tell(APPEND, "key", "told,")
            calls.tell(APPEND, "key", "too")
        await until(lambda: calls.is_answered)
        found = await calls.call(READ, "key")

    assert found == b"told,too"


async def test_telling_that_redis_did_not_answer_is_made_up_for(store: RedisServer) -> None:
    async with connected(store, timeout_s=0.1, pause_s=0.01) as calls:
        with store.held_up():
            calls.tell(APPEND, "key", "told,")
            await until(lambda: not calls.is_answered)
        await until(lambda: calls.is_answered)
        found = await calls.call(READ, "key")

    # Redis got it twice: by the connection that was given up, and by the next one.
    assert found == b"told,told,"


@pytest.mark.parametrize(
    "options", ["ssl_cert_reqs=hunter2", "ssl_check_hostname=True&ssl_cert_reqs=hunter2"]
)
def test_option_that_the_client_does_not_take_is_refused(options: str) -> None:
    with pytest.raises(SettingsError, match="POLICY_SERVER_SESSIONS_URL: has an option") as caught:
        RedisScripts(SecretStr(f"rediss://:hunter2@redis?{options}"))

    assert "hunter2" not in caught.value.message
