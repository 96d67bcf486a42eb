"""The stores of sessions, of a process and in Redis, which do the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from pydantic import SecretStr

from policy_server.errors import (
    OverloadedError,
    SessionConflictError,
    TooManyRequestsError,
    UnknownSessionError,
)
from policy_server.metrics import Metrics
from policy_server.serving.process_sessions import NoSessions, ProcessSessions
from policy_server.serving.redis_sessions import RedisSessions
from policy_server.serving.redis_sessions.records import decode_record, encode_record
from policy_server.serving.redis_sessions.scripts import GROUPS
from policy_server.serving.session_store import (
    LONGEST_SHORT_ANSWER,
    MOST_WAITING,
    AnsweredStep,
    SessionRecord,
    SessionStore,
)
from policy_server.serving.session_stores import session_store
from policy_server.serving.team_record import TEAM, AgentRecord, TeamRecord, VersionName
from policy_server.settings import Settings
from tests.support.pages import rendered
from tests.support.redis_servers import redis_server
from tests.support.waiting import turns, until

NOTHING = np.zeros(0, np.float32)
FIRST, SECOND, THIRD = ("a" * 32, "b" * 32, "c" * 32)


@pytest.fixture(params=["process", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[SecretStr | None]:
    """Name the store."""
    if request.param == "process":
        yield None
        return
    with redis_server() as server:
        yield SecretStr(server.url)


@asynccontextmanager
async def running(
    url: SecretStr | None,
    metrics: Metrics | None = None,
    **settings: Any,  # noqa: ANN401 -- their own types
) -> AsyncIterator[SessionStore]:
    """Run a store."""
    known = Settings(sessions_url=url, **settings)
    store = session_store(known, metrics or Metrics(), is_alone=True)
    async with store.running():
        yield store


def session(session_id: str, policy: str = "hunter") -> SessionRecord:
    """Return the record of a session of one policy."""
    return SessionRecord(session_id, policy, "v1", "aa", NOTHING)


def team_session(session_id: str) -> SessionRecord:
    """Return the session of a team of two policies, of which one agent has a memory."""
    team = TeamRecord(
        {"hunter": VersionName("v1", "aa"), "prey": VersionName("v7", "bb")},
        {"hunter_1": AgentRecord("hunter", np.ones(3, np.float32), steps=4)},
    )
    return SessionRecord(session_id, TEAM, "", "", NOTHING, team=team)


def test_store_is_that_which_the_settings_name() -> None:
    redis = Settings(sessions_url=SecretStr("redis://127.0.0.1:1"))
    made = [
        session_store(settings, Metrics(), is_alone=is_alone)
        for settings in (Settings(), redis)
        for is_alone in (True, False)
    ]

    kinds = [ProcessSessions, NoSessions, RedisSessions, RedisSessions]
    assert [type(store) for store in made] == kinds


async def test_record_comes_back_as_it_was_kept(url: SecretStr | None) -> None:
    record = replace(
        session(FIRST),
        state=np.array([0.1, -1e-40, 3e38], np.float32),
        steps=7,
        seed=2**63 - 1,
        episode_id="Öl",
        has_action=False,
        last=AnsweredStep(b"\x00\xff", b'{"actions":[1]}'),
    )
    async with running(url) as store:
        await store.add(session(FIRST))
        async with store.held("hunter", FIRST) as held:
            await held.keep(record)
        async with store.held("hunter", FIRST) as held:
            found = held.record

    assert found.state.dtype == np.float32
    assert found.state.tobytes() == record.state.tobytes()
    assert replace(found, state=NOTHING).__dict__ == replace(record, state=NOTHING).__dict__


async def test_memories_of_a_team_come_back_as_they_were_kept(url: SecretStr | None) -> None:
    async with running(url) as store:
        await store.add(team_session(FIRST))
        async with store.held(TEAM, FIRST) as held:
            found = held.record.team

    assert found is not None
    assert found.versions == {"hunter": ("v1", "aa", ""), "prey": ("v7", "bb", "")}
    agent = found.agents["hunter_1"]
    assert (agent.policy, agent.state.tolist(), agent.steps) == ("hunter", [1.0] * 3, 4)


async def test_session_of_a_team_counts_for_the_version_of_each_of_its_policies(
    url: SecretStr | None,
) -> None:
    metrics = Metrics()
    async with running(url, metrics) as store:
        await store.add(team_session(FIRST))
        await store.add(team_session(SECOND))
        await store.add(session(THIRD))
        versions = [("hunter", "v1", "aa"), ("prey", "v7", "bb"), ("prey", "v1", "aa")]
        counts = [await store.count(*version) for version in versions]
    # What another process, or the next start, finds.
    async with running(url, shown := Metrics()):
        if url is not None:
            await until(lambda: "sessions policy=" in rendered(shown))

    page = rendered(metrics if url is None else shown)
    assert counts == [3, 2, 0]
    assert (page["sessions policy="], page["sessions policy=hunter"]) == (2, 1)


async def test_session_of_a_team_counts_for_its_versions_until_it_has_others_or_ends(
    url: SecretStr | None,
) -> None:
    async with running(url) as store:
        await store.add(team_session(FIRST))
        async with store.held(TEAM, FIRST) as held:
            assert held.record.team is not None
            versions = {**held.record.team.versions, "prey": VersionName("v8", "cc")}
            await held.keep(replace(held.record, team=replace(held.record.team, versions=versions)))
        after = [await store.count("prey", *named) for named in (("v7", "bb"), ("v8", "cc"))]
        async with store.held(TEAM, FIRST) as held:
            await held.remove()
        left = [await store.count("hunter", "v1", "aa"), await store.count("prey", "v8", "cc")]

    assert after == [0, 1]
    assert left == [0, 0]


async def test_number_is_that_of_all_policies(url: SecretStr | None) -> None:
    async with running(url, max_sessions=2) as store:
        await store.add(team_session(FIRST))
        await store.add(session(SECOND))
        with pytest.raises(OverloadedError, match="2 sessions are open already"):
            await store.add(session(THIRD))


async def test_client_keeps_no_more_sessions_than_it_may(url: SecretStr | None) -> None:
    metrics = Metrics()
    async with running(url, metrics, max_key_sessions=2) as store:
        await store.add(replace(session(FIRST), client="key:plant"))
        await store.add(replace(team_session(SECOND), client="key:plant"))
        with pytest.raises(TooManyRequestsError, match="key 'plant': 2 sessions are open already"):
            await store.add(replace(session(THIRD), client="key:plant"))
        await store.add(replace(session(THIRD), client="key:ops"))
        async with store.held(TEAM, SECOND) as held:
            await held.remove()
        await store.add(replace(session("d" * 32), client="key:plant"))
        # Of a client that nothing is known of.
        for digit in "ef0":
            await store.add(session(digit * 32))

    page = rendered(metrics)
    assert page["rejected_total policy=hunter reason=key_sessions"] == 1
    assert page["session_changes_total change=refused policy=hunter"] == 1


async def test_session_may_be_kept_for_the_longest_time(url: SecretStr | None) -> None:
    async with running(url, session_idle_s=9e12) as store:
        await store.add(session(FIRST))
        for _ in range(2):
            async with store.held("hunter", FIRST) as held:
                await held.keep(held.record)


async def test_idle_sessions_count_for_their_client_no_more(url: SecretStr | None) -> None:
    async with running(url, max_key_sessions=1, session_idle_s=0.05) as store:
        await store.add(replace(session(FIRST), client="address:10.0.0.1"))
        with pytest.raises(TooManyRequestsError, match="this address: 1 sessions are open"):
            await store.add(replace(session(SECOND), client="address:10.0.0.1"))
        await asyncio.sleep(0.1)
        await store.add(replace(session(SECOND), client="address:10.0.0.1"))


async def test_long_last_answers_take_no_more_memory_than_they_may(url: SecretStr | None) -> None:
    text = b"x" * 2**15
    long, short = AnsweredStep(b"1", text), AnsweredStep(b"1", text[:LONGEST_SHORT_ANSWER])

    async def kept(store: SessionStore, name: str, last: AnsweredStep) -> bytes | None:
        async with store.held("hunter", name) as held:
            await held.keep(replace(held.record, steps=held.record.steps + 1, last=last))
        async with store.held("hunter", name) as held:
            assert held.record.last is not None
            return held.record.last.text

    async with running(url, max_kept_answer_bytes=2 * 2**15) as store:
        for name in (FIRST, SECOND, THIRD):
            await store.add(session(name))
        full = [await kept(store, name, long) for name in (FIRST, SECOND, THIRD)]
        # One that has its place keeps it, and a short one needs none.
        again, third = await kept(store, FIRST, long), await kept(store, THIRD, short)
        await kept(store, FIRST, short)
        after_step = await kept(store, THIRD, long)
        async with store.held("hunter", SECOND) as held:
            await held.remove()
        after_end = await kept(store, FIRST, long)

    assert full == [text, text, None]
    assert (again, third) == (text, short.text)
    assert (after_step, after_end) == (text, text)


@pytest.mark.parametrize("before", [1, 2])
def test_record_of_a_release_before_is_read_from_redis(before: int) -> None:
    hunter, prey = VersionName("v1", "aa", "s1"), VersionName("v7", "bb", "s2")
    team = TeamRecord({"hunter": hunter, "prey": prey}, {})
    kept = replace(team_session(FIRST), client="key:plant", schema="s0", team=team)
    form, *values = msgpack.unpackb(encode_record(kept))
    for version in values[9][0].values():
        del version[2:]
    found = decode_record(TEAM, FIRST, msgpack.packb([form - before, *values[:-before]]))
    now = decode_record(TEAM, FIRST, encode_record(kept))

    assert now.team is not None
    assert (now.client, now.schema, now.team.versions) == ("key:plant", "s0", team.versions)
    assert (found.policy, found.client, found.schema) == (TEAM, ["key:plant", ""][before - 1], "")
    assert found.team is not None
    assert found.team.versions == {"hunter": ("v1", "aa", ""), "prey": ("v7", "bb", "")}


@pytest.mark.parametrize("session_id", ["", "x" * 5000, FIRST.upper(), "*", SECOND])
async def test_name_of_no_session_is_unknown(url: SecretStr | None, session_id: str) -> None:
    async with running(url) as store:
        await store.add(session(FIRST))
        with pytest.raises(UnknownSessionError, match="is unknown"):
            async with store.held("hunter", session_id):
                pass


@pytest.mark.parametrize(
    ("owner", "asked", "told"),
    [
        ("hunter", "prey", r"begun for policy 'hunter' with POST /policies/hunter/sessions"),
        ("hunter", TEAM, r"is no session of the team: begin one with POST /sessions/agents"),
        (TEAM, "hunter", r"begun for the team with POST /sessions/agents"),
    ],
)
async def test_session_of_another_policy_is_a_conflict(
    url: SecretStr | None, owner: str, asked: str, told: str
) -> None:
    async with running(url) as store:
        await store.add(session(FIRST) if owner != TEAM else team_session(FIRST))
        with pytest.raises(SessionConflictError, match=told):
            async with store.held(asked, FIRST):
                pass
        # It is as it was.
        async with store.held(owner, FIRST) as held:
            assert held.record.steps == 0


async def test_request_waits_for_those_before_it_no_longer_than_it_may(
    url: SecretStr | None,
) -> None:
    async with running(url, request_timeout_s=0.5) as store:
        await store.add(session(FIRST))
        async with store.held("hunter", FIRST):
            with pytest.raises(OverloadedError, match=r"took longer than 0\.5 s"):
                async with store.held("hunter", FIRST):
                    pass
        async with store.held("hunter", FIRST) as held:
            assert held.record.session_id == FIRST


async def test_turns_are_taken_in_the_order_of_arrival_and_none_is_lost_by_cancelling(
    url: SecretStr | None,
) -> None:
    order: list[int] = []
    free = asyncio.Event()

    async def take(store: SessionStore, number: int) -> None:
        async with store.held("hunter", FIRST):
            order.append(number)
            await free.wait()

    async with running(url) as store:
        await store.add(session(FIRST))
        tasks = [asyncio.create_task(take(store, number)) for number in range(6)]
        await until(lambda: order == [0])
        for number in (0, 2, 3):
            tasks[number].cancel()
        free.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert order == [0, 1, 4, 5]


async def test_no_more_requests_wait_for_a_session_than_may(url: SecretStr | None) -> None:
    metrics = Metrics()
    made: list[int] = []

    async def take(store: SessionStore, number: int) -> None:
        async with store.held("hunter", FIRST):
            made.append(number)

    async with running(url, metrics) as store:
        await store.add(session(FIRST))
        async with store.held("hunter", FIRST):
            tasks = [asyncio.create_task(take(store, number)) for number in range(MOST_WAITING)]
            await turns()
            for _ in range(2):
                with pytest.raises(OverloadedError, match="64 requests wait for their turn"):
                    await take(store, -1)
            tasks[0].cancel()
            await turns()
            tasks.append(asyncio.create_task(take(store, MOST_WAITING)))
        await asyncio.gather(*tasks, return_exceptions=True)

    assert made == list(range(1, MOST_WAITING + 1))
    assert rendered(metrics)["rejected_total policy=hunter reason=session_queue"] == 2


async def test_name_in_redis_that_is_no_text_ends_no_counting() -> None:
    metrics = Metrics()
    with redis_server() as server:
        server.ask("SADD", GROUPS, b":\xff")
        store = RedisSessions(SecretStr(server.url), Settings(), metrics, swept_every_s=0.01)
        async with store.running():
            await store.add(session(FIRST))
            await until(lambda: rendered(metrics).get("sessions policy=hunter") == 1, timeout_s=10)
