"""Sessions in Redis: web processes share them, and no fault of Redis gives a wrong answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import msgpack
import pytest

from policy_server.serving.redis_sessions import turns
from policy_server.serving.session_store import MOST_WAITING
from policy_server.web import Application
from tests.fuzz.session_steps import begin, compare_sessions, step_of, steps_of
from tests.support.connections import Server
from tests.support.fakes import FakeBackend, gated, hold, opened, summing_backend
from tests.support.redis_servers import RedisServer, redis_server
from tests.support.shared_sessions import WebProcess, key_of, two, web_process
from tests.support.waiting import until
from tests.support.web import SCHEMA, assert_error

REQUESTS = 400


@pytest.fixture
def store() -> Iterator[RedisServer]:
    """Start a Redis."""
    with redis_server() as server:
        yield server


async def test_any_process_makes_the_next_step(store: RedisServer) -> None:
    async with two(store.url) as (first, second):
        session = await first.begin(seed=7, episode_id="lap")
        answers = [await process.step(session) for process in (first, second, second, first)]
        shown = (await second.client.get(session)).json()
        reset = (await second.client.post(f"{session}/reset")).json()
        after = await first.step(session, 2)
        deleted = await second.client.delete(session)
        gone = await first.step(session)

    assert [answer.json()["actions"] for answer in answers] == [[1], [2], [0], [1]]
    assert [answer.headers["x-step"] for answer in answers] == ["0", "1", "2", "3"]
    assert (shown["steps"], shown["seed"], shown["episode_id"]) == (4, 7, "lap")
    assert (reset["steps"], after.json()["actions"]) == (0, [2])
    assert deleted.status_code == 204
    assert_error(gone, 404, "is unknown")


async def test_step_that_was_answered_by_one_process_is_repeated_by_another(
    store: RedisServer,
) -> None:
    async with two(store.url) as (first, second):
        session = await first.begin()
        answer = await first.step(session, x_step="0")
        again = await second.step(session, x_step="0")
        other = await second.step(session, 2, x_step="0")
        late = await second.step(session, x_step="2")

    assert (again.content, again.headers["x-step"]) == (answer.content, "0")
    assert_error(other, 409, "x-step 0: was answered to another request")
    assert_error(late, 409, "x-step 2: expected 1")


async def test_step_takes_two_commands(store: RedisServer) -> None:
    async with web_process(store.url) as process:
        session = await process.begin()
        await process.step(session)
        before = store.commands("hmget")
        for _ in range(10):
            await process.step(session)
        after = store.commands("hmget")

    assert after - before == 20


async def test_hundreds_of_steps_get_the_same_bytes_three_ways(store: RedisServer) -> None:
    @asynccontextmanager
    async def serve(backend: FakeBackend, *, has_fast_path: bool) -> AsyncIterator[Application]:
        async with web_process(store.url, backend, has_fast_path=has_fast_path) as process:
            yield process.app

    statuses = await compare_sessions(REQUESTS, seed=27, backend=summing_backend, serve=serve)

    assert set(statuses) >= {200, 204, 400, 401, 404, 405, 409, 415, 422}


async def test_requests_of_many_processes_are_answered_in_the_order_of_arrival(
    store: RedisServer,
) -> None:
    async with two(store.url) as processes:
        session = await processes[0].begin()
        for process in processes:
            process.backend.gate = asyncio.Event()
        tasks = []
        for number in range(8):
            process = processes[number % 3 // 2]
            tasks.append(asyncio.create_task(process.step(session, number)))
            # Each has its place before the next one comes.
            await until(partial(_has_places, store, number))
        for process in processes:
            assert process.backend.gate is not None
            process.backend.gate.set()
        answers = await asyncio.gather(*tasks)

    assert [answer.headers["x-step"] for answer in answers] == [str(n) for n in range(8)]
    sums = [sum(range(number + 1)) % 3 for number in range(8)]
    assert [answer.json()["actions"] for answer in answers] == [[s] for s in sums]


def _has_places(store: RedisServer, number: int) -> bool:
    """Return whether the only session is held, and so many requests wait for it."""
    script = (
        "local s = redis.call('KEYS', 'policy-server:session:*')[1]; "
        "local o, q = unpack(redis.call('HMGET', s, 'owner', 'queue')); "
        "return not o and -1 or q and #cmsgpack.unpack(q) or 0"
    )
    return int(store.ask("EVAL", script, 0)) == number


async def test_cancelled_requests_leave_the_session_to_the_next(store: RedisServer) -> None:
    async with two(store.url) as (first, second):
        session = await first.begin()
        first.backend.gate = asyncio.Event()
        holding = asyncio.create_task(first.step(session, 1))
        await until(partial(_has_places, store, 0))
        waiting = asyncio.create_task(second.step(session, 1))
        await until(partial(_has_places, store, 1))
        last = asyncio.create_task(second.step(session, 2))
        await until(partial(_has_places, store, 2))
        waiting.cancel()
        holding.cancel()
        answer = await last
        first.backend.gate.set()

    assert (answer.json()["actions"], answer.headers["x-step"]) == ([2], "0")


async def test_step_whose_client_has_gone_before_its_turn_is_not_made(store: RedisServer) -> None:
    backend = gated(summing_backend())
    async with web_process(store.url, backend) as process:
        server = Server(process.app, is_hot=True)
        session = await begin(server)
        gate = hold(backend)
        (one, first), (two, _) = server.connect(), server.connect()
        one.data_received(step_of(session))
        await until(partial(_has_places, store, 0))
        two.data_received(step_of(session))
        await until(partial(_has_places, store, 1))
        # The one in its turn is made to its end.
        for protocol in (two, one):
            protocol.connection_lost(None)
        await until(partial(_has_places, store, 0))
        gate.set()
        await until(lambda: not server.state.tasks)
        steps = await steps_of(server, session)

    assert first.written == b""
    assert steps == 1


async def test_step_that_is_sent_again_while_it_is_answered_waits_for_its_answer(
    store: RedisServer,
) -> None:
    async with two(store.url) as (first, second):
        session = await first.begin()
        first.backend.gate = asyncio.Event()
        tasks = [asyncio.create_task(first.step(session, x_step="0"))]
        await until(partial(_has_places, store, 0))
        tasks.append(asyncio.create_task(second.step(session, x_step="0")))
        await until(partial(_has_places, store, 1))
        first.backend.gate.set()
        answers = await asyncio.gather(*tasks)

    assert answers[0].content == answers[1].content
    assert second.backend.batches[1:] == first.backend.batches[2:], "it was computed once"


async def test_deletion_waits_for_the_step_before_it(store: RedisServer) -> None:
    async with two(store.url) as (first, second):
        session = await first.begin()
        first.backend.gate = asyncio.Event()
        step = asyncio.create_task(first.step(session))
        await until(partial(_has_places, store, 0))
        deletion = asyncio.create_task(second.client.delete(session))
        await until(partial(_has_places, store, 1))
        behind = asyncio.create_task(second.step(session))
        await until(partial(_has_places, store, 2))
        first.backend.gate.set()

        assert (await step).status_code == 200
        assert (await deletion).status_code == 204
        assert_error(await behind, 404)
        await until(lambda: not store.ask("KEYS", "*"))


async def test_request_that_lost_its_turn_writes_nothing(store: RedisServer) -> None:
    async with two(store.url) as (first, second):
        session = await first.begin()
        first.backend.gate = asyncio.Event()
        late = asyncio.create_task(first.step(session, 2, x_step="0"))
        await until(partial(_has_places, store, 0))
        # As if it had not been heard of for longer than a turn lasts.
        store.ask("HSET", key_of(session), "until", 0)
        answer = await second.step(session, 2, x_step="0")
        first.backend.gate.set()
        lost = await late
        again = await first.step(session, 2, x_step="0")
        after = await second.step(session, 2, x_step="1")

    assert_error(lost, 503, "another one on its session has begun", "x-step")
    assert lost.headers["retry-after"]
    assert again.content == answer.content
    assert after.json()["actions"] == [1]


async def test_turn_goes_on_for_as_long_as_its_process_lives(
    store: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_RENEWED_AFTER_S", 0.01)
    async with web_process(store.url) as process:
        session = await process.begin()
        key = key_of(session)
        process.backend.gate = asyncio.Event()
        step = asyncio.create_task(process.step(session))
        await until(partial(_has_places, store, 0))
        before = int(store.ask("HGET", key, "until"))
        await until(lambda: int(store.ask("HGET", key, "until")) > before + 20)
        process.backend.gate.set()
        answer = await step

    assert answer.status_code == 200


async def test_request_waits_no_longer_than_others_do(store: RedisServer) -> None:
    async with (
        web_process(store.url) as first,
        web_process(store.url, request_timeout_s=0.2) as second,
    ):
        session = await first.begin()
        first.backend.gate = asyncio.Event()
        step = asyncio.create_task(first.step(session))
        await until(partial(_has_places, store, 0))
        refused = await second.step(session)
        first.backend.gate.set()
        await step

    assert_error(refused, 503, "longer than 0.2 s (POLICY_SERVER_REQUEST_TIMEOUT_S)")


_PACK = """
local queue = {}
for at = 1, ARGV[2] do queue[at] = {'dead' .. at, tonumber(ARGV[1])} end
return redis.call('HSET', KEYS[1], 'queue', cmsgpack.pack(queue))
"""


async def test_clock_of_redis_that_is_set_back_locks_no_session(
    store: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_LEASE_MS", 100)
    monkeypatch.setattr(turns, "_COUNTS_S", 0.1)
    async with web_process(store.url) as process:
        session = await process.begin()
        key, in_an_hour = key_of(session), int(store.ask("TIME")[0]) * 1000 + 3_600_000
        # As processes leave them that died an hour ago by the clock of now.
        store.ask("HSET", key, "owner", "dead", "until", in_an_hour)
        held = await process.step(session)
        store.ask("EVAL", _PACK, 1, key, in_an_hour, 1)
        queued = await process.step(session)
        store.ask("EVAL", _PACK, 1, key, in_an_hour, MOST_WAITING)
        async with asyncio.timeout(20):
            while (crowded := await process.step(session)).status_code == 503:
                assert "64 requests wait" in crowded.text

    assert [answer.status_code for answer in (held, queued)] == [200, 200]


async def test_clock_of_redis_that_is_set_back_takes_no_turn_from_a_process_that_lives(
    store: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_RENEWED_AFTER_S", 0.01)
    async with two(store.url) as (first, second):
        session = await first.begin()
        key, in_an_hour = key_of(session), int(store.ask("TIME")[0]) * 1000 + 3_600_000
        first.backend.gate = asyncio.Event()
        step = asyncio.create_task(first.step(session, 1))
        await until(partial(_has_places, store, 0))
        store.ask("HSET", key, "until", in_an_hour)
        later = asyncio.create_task(second.step(session, 1))
        await until(partial(_has_places, store, 1))
        first.backend.gate.set()
        answers = [await step, await later]

    assert [answer.headers["x-step"] for answer in answers] == ["0", "1"]


async def test_idle_sessions_expire_and_are_counted_once(store: RedisServer) -> None:
    async with two(store.url, session_idle_s=1.5) as (first, second):
        sessions = [await first.begin() for _ in range(3)]
        await until(lambda: second.figure("policy_server_sessions") == 3)
        await until(lambda: first.figure("policy_server_sessions") == 3)
        await until(lambda: second.figure("policy_server_sessions") == 0)
        await until(lambda: first.figure("policy_server_sessions") == 0)
        gone = await first.step(sessions[0])
        left = store.ask("KEYS", "*")
        changes = [
            process.figure('policy_server_session_changes_total{change="expired"')
            for process in (first, second)
        ]

    assert_error(gone, 404, "was idle for too long")
    assert sum(changes) == 3
    assert not left


async def test_session_does_not_expire_in_its_turn(store: RedisServer) -> None:
    async with web_process(store.url, session_idle_s=0.5) as process:
        session = await process.begin()
        process.backend.gate = asyncio.Event()
        step = asyncio.create_task(process.step(session))
        await until(partial(_has_places, store, 0))
        lasts = store.ask("PTTL", key_of(session))
        process.backend.gate.set()

        assert (await step).status_code == 200
    assert lasts > 1000


async def test_number_of_sessions_is_that_of_all_processes(store: RedisServer) -> None:
    async with two(store.url, max_sessions=2) as (first, second):
        sessions = [await process.begin() for process in (first, second)]
        refused = await second.client.post("/sessions")
        await second.client.delete(sessions[0])
        taken = await first.client.post("/sessions")

    assert_error(refused, 503, "2 sessions are open already (POLICY_SERVER_MAX_SESSIONS)")
    assert taken.status_code == 201


async def test_sessions_stay_on_their_version_in_every_process(store: RedisServer) -> None:
    async with two(store.url) as processes:
        first, second = processes
        session = await first.begin()
        old = (await first.step(session)).headers["x-policy-version"]
        for process in processes:
            await process.slot.add(lambda: opened(summing_backend()), name="v2")
            process.slot.route({"v2": 100.0})
        stepped = await second.step(session)
        held = [await process.slot.sessions_of(old) for process in processes]
        # Another version may get the name.
        second.slot.rename(old, "outgoing")
        under_another_name = await second.step(session), await second.slot.sessions_of("outgoing")
        await first.slot.remove(old)
        after = await first.step(session)
        begun = (await first.client.post(f"{session}/reset")).json()["version"]
        moved = await second.slot.sessions_of("v2"), await second.slot.sessions_of("outgoing")

    assert (stepped.json()["actions"], stepped.headers["x-policy-version"]) == ([2], old)
    assert held == [1, 1]
    assert (under_another_name[0].json()["actions"], under_another_name[1]) == ([0], 1)
    assert_error(after, 409, f"began with version {old}, which is not loaded any more")
    assert (begun, moved) == ("v2", (1, 0))


async def test_session_does_not_go_on_under_another_order_of_the_observations(
    store: RedisServer,
) -> None:
    lines = SCHEMA.splitlines(keepends=True)
    swapped = "".join([*lines[:2], lines[3], lines[2], *lines[4:]])
    async with web_process(store.url) as first, web_process(store.url, schema=swapped) as second:
        session = await first.begin()
        await first.step(session)
        other = await second.step(session)
        hot = await Server(second.app, is_hot=True).exchange(
            [step_of(session.rpartition("/")[2].encode())]
        )
        same = await first.step(session)
        await second.client.post(f"{session}/reset")
        after = await second.step(session, 2)

    assert_error(other, 409, "began with version", "schema.yaml", f"POST {session}/reset")
    assert b" 409 " in bytes(hot.written)
    assert same.json()["actions"] == [2]
    # Of the mouse, which comes first there.
    assert after.json()["actions"] == [1]


async def test_session_of_the_release_before_goes_on(store: RedisServer) -> None:
    async with web_process(store.url) as process:
        session = await process.begin()
        await process.step(session)
        form, *values = msgpack.unpackb(store.ask("HGET", key_of(session), "record"))
        # Without the digest of schema.yaml.
        store.ask("HSET", key_of(session), "record", msgpack.packb([form - 1, *values[:-1]]))
        answers = [await process.step(session) for _ in range(2)]

    assert [answer.json()["actions"] for answer in answers] == [[2], [0]]


async def test_session_of_a_version_that_is_about_to_be_loaded_is_asked_again_later(
    store: RedisServer,
) -> None:
    async def is_expected(label: str, _digest: str) -> bool:
        return label == "v2"

    async with two(store.url) as (first, second):
        await first.slot.add(lambda: opened(summing_backend()), name="v2")
        first.slot.route({"v2": 100.0})
        session = await first.begin()
        second.slot.is_expected = is_expected
        early = await second.step(session)
        reset = await second.client.post(f"{session}/reset")
        await second.slot.add(lambda: opened(summing_backend()), name="v2")
        answer = await second.step(session)

    assert_error(early, 503, "began with version v2, which this web process is about to load")
    assert early.headers["retry-after"]
    assert reset.status_code == 503
    assert answer.json()["actions"] == [1]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (b"\xff", "it is damaged"),
        (msgpack.packb([4, "default"]), "form 4, expected 3"),
        (msgpack.packb([1, "default"]), "it is damaged"),
        (msgpack.packb(7), "it is damaged"),
        (
            msgpack.packb([1, "default", "v1", "aa", b"", 0, 0, "", False, None, [[], []]]),
            "it is damaged",
        ),
    ],
    ids=["no MessagePack", "another form", "too short", "a number", "another kind of team"],
)
async def test_record_that_cannot_be_read_is_one_clear_error(
    store: RedisServer, record: bytes, says: str
) -> None:
    async with web_process(store.url) as process:
        session = await process.begin()
        store.ask(*("HSET", key_of(session), "record", record))
        answers = [await process.step(session) for _ in range(2)]

    for answer in answers:
        assert_error(answer, 409, "can't be read", says, "POST /sessions")


DAMAGED = (409, "can't be read (it is damaged)")
JUNK = b"\xff\x00junk"


async def answers_of(process: WebProcess, session: str) -> list[httpx.Response]:
    """Ask for a session in each way, and delete it in the end."""
    return [
        await process.client.get(session),
        await process.step(session),
        await process.client.post(f"{session}/reset"),
        await process.client.delete(session),
        await process.client.get(session),
    ]


def assert_damaged_and_removed(answers: list[httpx.Response]) -> None:
    """Hold the answers about a damaged session, which could be deleted."""
    for answer in answers[:3]:
        assert_error(answer, *DAMAGED)
    assert answers[3].is_success, answers[3].text
    assert answers[4].status_code == 404


# By its place in the list that a record is: wrong types, and what does not fit the rest.
WRONG_VALUES: dict[int, list[Any]] = {
    1: [7, None, "", "other"],
    2: [7, None],
    3: [7, None],
    4: [7, None, "text", b"abc"],
    5: ["1", None, 1.0, -1, True],
    6: ["1", 1.0, b"1"],
    7: [7, None, b"e"],
    8: [7, None, "yes"],
    9: [7, [], [b"a", "b"], ["a", b"b"], [b"a", b"b", b"c"]],
    10: [7, [], [{}, {}], [[], []]],
    11: [7, None],
    12: [7, None],
}


@pytest.mark.parametrize(
    ("place", "value"), [(place, it) for place, them in WRONG_VALUES.items() for it in them]
)
async def test_record_with_a_wrong_value_is_damaged(
    store: RedisServer, place: int, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with web_process(store.url) as process:
        session = await process.begin(seed=3)
        record = msgpack.unpackb(store.ask("HGET", key_of(session), "record"))
        record[place] = value
        store.ask("HSET", key_of(session), "record", msgpack.packb(record))

        assert_damaged_and_removed(await answers_of(process, session))

    assert "sessions_unreachable" not in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("policy", JUNK), ("record", JUNK), ("owner", JUNK), ("until", JUNK)),
        *(("until", b"nan"), ("queue", JUNK), ("queue", msgpack.packb(7))),
        *(("queue", msgpack.packb([7])), ("queue", msgpack.packb([["token", "soon"]]))),
        *(("record", None), ("policy", None), ("groups", None)),
    ],
)
async def test_session_with_a_damaged_field_is_damaged_and_can_be_deleted(
    store: RedisServer, field: str, value: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with web_process(store.url) as process:
        session, other = await process.begin(), await process.begin()
        if value is None:
            store.ask("HDEL", key_of(session), field)
        else:
            store.ask("HSET", key_of(session), field, value)

        assert_damaged_and_removed(await answers_of(process, session))
        assert (await process.step(other)).is_success
        assert store.ask("ZCARD", "policy-server:group::default") == 1

    assert "sessions_unreachable" not in caplog.text


@pytest.mark.parametrize("kind", ["SET", "RPUSH"])
async def test_key_of_another_type_is_a_damaged_session(
    store: RedisServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with web_process(store.url) as process:
        session = await process.begin()
        store.ask("DEL", key_of(session))
        store.ask(kind, key_of(session), "text")

        assert_damaged_and_removed(await answers_of(process, session))

    assert "sessions_unreachable" not in caplog.text


@pytest.mark.parametrize("field", ["groups", "done"])
async def test_field_that_no_answer_depends_on_may_hold_anything(
    store: RedisServer, field: str
) -> None:
    async with web_process(store.url) as process:
        session = await process.begin()
        store.ask("HSET", key_of(session), field, JUNK)

        assert all(answer.is_success for answer in (await answers_of(process, session))[:4])


async def test_memory_of_another_width_is_refused(store: RedisServer) -> None:
    async with web_process(store.url) as process:
        session = await process.begin()
        key = key_of(session)
        record = msgpack.unpackb(store.ask("HGET", key, "record"))
        record[4] *= 2
        store.ask("HSET", key, "record", msgpack.packb(record))
        answer = await process.step(session)

    assert_error(answer, 409, "holds 2 numbers of memory, the policy has 1")
