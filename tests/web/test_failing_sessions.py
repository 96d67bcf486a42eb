"""A Redis that is away, slow, full or closed: sessions say so, and everything else goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from policy_server.serving.redis_sessions import turns
from tests.support.certificates import write_certificate
from tests.support.fakes import summing_backend
from tests.support.redis_servers import redis_server
from tests.support.servers import free_port
from tests.support.shared_sessions import WebProcess, key_of, two, web_process
from tests.support.waiting import until
from tests.support.web import assert_error

OBSERVATION = {"cat": 1, "mouse": 1.0}


async def refused(process: WebProcess, session: str, *says: str) -> None:
    """Check that sessions are refused in words and in time, while plain questions are answered."""
    started = time.monotonic()
    answers = await asyncio.gather(
        process.step(session),
        process.client.post("/sessions"),
        process.client.get(session),
        process.client.delete(session),
    )
    seconds = time.monotonic() - started
    plain = await process.client.post("/predict_deterministic", json=OBSERVATION)

    for answer in answers:
        assert_error(answer, 503, "sessions can't be reached", "POLICY_SERVER_SESSIONS_URL", *says)
        assert answer.headers["retry-after"]
    assert plain.json()["actions"] == [1]
    assert (await process.client.get("/readyz")).status_code == 200
    assert seconds < 10


async def answered(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Send a request until Redis answers again."""
    async with asyncio.timeout(20):
        while (answer := await ask()).status_code == 503:
            await asyncio.sleep(float(answer.headers["retry-after"]) / 10)
    return answer


async def begun(process: WebProcess) -> str:
    """Begin a session once Redis answers."""
    answer = await answered(lambda: process.client.post("/sessions"))
    return f"/sessions/{answer.json()['session_id']}"


async def stepped(process: WebProcess, session: str, *, x_step: str | None = None) -> list[int]:
    """Make a step once Redis answers, and return its action."""
    headers = {} if x_step is None else {"x_step": x_step}
    answer = await answered(lambda: process.step(session, 1, **headers))
    return list(answer.json()["actions"])


async def test_redis_that_is_away_at_the_start_keeps_nothing_but_sessions_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    socket = tmp_path / "redis.sock"
    async with web_process(f"unix://{socket}") as process:
        await refused(process, f"/sessions/{'a' * 32}", "does not answer")
        with redis_server(socket=socket):
            await until(lambda: "sessions_reachable" in caplog.messages)
            session = await process.begin()
            action = await stepped(process, session)
            # Before this Redis ends, which is told too.
            told = caplog.messages.count("sessions_unreachable")

    assert action == [1]
    assert told == 1


async def test_redis_that_hangs_is_waited_for_briefly(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A turn that Redis gives when it goes on, and that nobody waits for any more, is given back: it
    # is not its end that lets the next step begin.
    monkeypatch.setattr(turns, "_LEASE_MS", 600_000)
    caplog.set_level(logging.INFO)
    with redis_server() as store:
        async with two(store.url) as (first, second):
            session = await first.begin()
            await first.step(session)
            with store.held_up():
                await refused(first, session, "does not answer within 1 s")
            actions = [await stepped(process, session) for process in (first, second)]

    assert actions == [[2], [0]]
    assert "sessions_reachable" in caplog.messages


async def test_step_whose_writing_hangs_is_answered_when_it_is_sent_again() -> None:
    with redis_server() as store:
        async with two(store.url) as (first, second):
            session = await first.begin()
            first.backend.gate = asyncio.Event()
            step = asyncio.create_task(first.step(session, x_step="0"))
            await until(lambda: len(first.backend.calls) > 1)
            with store.held_up():
                first.backend.gate.set()
                lost = await step
            again = await stepped(second, session, x_step="0")
            after = await stepped(second, session, x_step="1")

    assert_error(lost, 503, "does not answer within 1 s")
    assert (again, after) == ([1], [2])


async def test_sessions_outlive_a_redis_that_is_killed_where_it_keeps_them_on_disk(
    tmp_path: Path,
) -> None:
    socket = tmp_path / "redis.sock"
    options = ("--appendonly", "yes", "--appendfsync", "always")
    async with web_process(f"unix://{socket}") as process:
        with redis_server(*options, socket=socket, folder=tmp_path) as store:
            session = await begun(process)
            await process.step(session)
            store.kill()
            await refused(process, session, "does not answer")
        with redis_server(*options, socket=socket, folder=tmp_path):
            action = await stepped(process, session)

    assert action == [2]


async def test_redis_that_starts_empty_has_forgotten_sessions_and_takes_new_ones(
    tmp_path: Path,
) -> None:
    socket = tmp_path / "redis.sock"
    async with web_process(f"unix://{socket}") as process:
        with redis_server(socket=socket) as store:
            session = await begun(process)
            process.backend.gate = asyncio.Event()
            step = asyncio.create_task(process.step(session))
            await until(lambda: len(process.backend.calls) > 1)
            store.kill()
        with redis_server(socket=socket):
            assert process.backend.gate is not None
            process.backend.gate.set()
            lost = await step
            new = await stepped(process, await begun(process))

    assert_error(lost, 404, "is unknown")
    assert new == [1]


async def test_redis_that_is_full_says_so_until_there_is_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with redis_server() as store:
        async with web_process(store.url) as process:
            session, other = await process.begin(), await process.begin()
            await process.step(session)
            store.ask("CONFIG", "SET", "maxmemory", "1mb")
            answers = [
                *[await process.step(session) for _ in range(10)],
                await process.client.post("/sessions"),
            ]
            deleted = await process.client.delete(other)
            gone, told = await process.client.delete(other), caplog.messages.copy()
            plain = await process.client.post("/predict_deterministic", json=OBSERVATION)
            store.ask("CONFIG", "SET", "maxmemory", "0")
            action = await stepped(process, session)

    for answer in answers:
        assert_error(answer, 503, "is full (maxmemory)")
        assert answer.headers["retry-after"]
    assert plain.status_code == 200
    assert (deleted.status_code, gone.status_code) == (204, 404)
    assert told.count("sessions_unreachable") == 1
    assert "sessions_reachable" not in told
    assert action == [2]


async def test_full_redis_deletes_no_session_that_another_request_has() -> None:
    with redis_server() as store:
        async with two(store.url) as (first, second):
            session = await first.begin()
            first.backend.gate = asyncio.Event()
            step = asyncio.create_task(first.step(session))
            await until(lambda: store.ask("HGET", key_of(session), "owner"))
            store.ask("CONFIG", "SET", "maxmemory", "1mb")
            refused = await second.client.delete(session)
            store.ask("CONFIG", "SET", "maxmemory", "0")
            first.backend.gate.set()
            answer = await step

    assert_error(refused, 503, "is full (maxmemory)")
    assert answer.json()["actions"] == [1]


async def test_replica_that_takes_no_writes_says_so_until_it_is_the_primary() -> None:
    with redis_server() as primary, redis_server() as store:
        async with web_process(store.url) as process:
            session = await process.begin()
            await process.step(session)
            store.ask("CONFIG", "SET", "replica-serve-stale-data", "yes")
            store.ask("REPLICAOF", "127.0.0.1", 1)
            await refused(process, session, "is a replica, which takes no writes")
            store.ask("REPLICAOF", "NO", "ONE")
            action = await stepped(process, session)
        assert primary.child.process.poll() is None

    assert action == [2]


@pytest.mark.parametrize(
    ("user", "says"),
    [(":wrong%2Fpass@", "refuses the user or password"), ("", "asks for a password")],
    ids=["wrong", "none"],
)
async def test_wrong_password_is_told_and_never_shown(
    user: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with redis_server("--requirepass", "the secret") as store:
        async with web_process(store.url.replace("unix://", f"unix://{user}")) as process:
            await refused(process, f"/sessions/{'a' * 32}", says)
        right = store.url.replace("unix://", "unix://:the%20secret@")
        async with web_process(right) as process:
            answer = await process.step(await process.begin())

    assert answer.json()["actions"] == [1]
    everything = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "wrong" not in everything.replace("WRONGPASS", "")
    assert "secret" not in everything


async def test_redis_by_tls_has_to_show_a_certificate_that_can_be_verified(tmp_path: Path) -> None:
    file, port = tmp_path / "certificate.pem", free_port()
    write_certificate(file)
    options = ("--tls-port", port, "--tls-auth-clients", "no")
    files = [
        word for name in ("cert", "key", "ca-cert") for word in (f"--tls-{name}-file", str(file))
    ]
    url = f"rediss://127.0.0.1:{port}/1"
    with redis_server(*options, *files) as store:
        async with web_process(url) as process:
            await refused(process, f"/sessions/{'a' * 32}", "certificate that can't be verified")
        async with web_process(f"{url}?ssl_ca_certs={file}") as process:
            answer = await process.step(await process.begin())
        plain = f"redis://127.0.0.1:{port}"
        async with web_process(plain) as process:
            await refused(process, f"/sessions/{'a' * 32}", "does not answer")
        kept = store.ask("INFO", "keyspace")

    assert answer.json()["actions"] == [1]
    assert list(kept) == ["db1"]


async def test_database_that_is_not_there_is_told() -> None:
    with redis_server() as store:
        async with web_process(f"{store.url}?db=99") as process:
            await refused(process, f"/sessions/{'a' * 32}", "refuses what it is asked for")


async def test_group_of_another_kind_is_told() -> None:
    with redis_server() as store:
        async with web_process(store.url) as process:
            session = await process.begin()
            store.ask("SET", "policy-server:group::default", "a text")
            answer = await process.step(session)

    assert_error(answer, 503, "refuses what it is asked for")


async def test_many_sessions_share_round_trips() -> None:
    with redis_server() as store:
        async with web_process(store.url, summing_backend()) as process:
            sessions = [await process.begin() for _ in range(64)]
            for expected in (1, 2, 0):
                answers = await asyncio.gather(*(process.step(item) for item in sessions))
                assert [answer.json()["actions"] for answer in answers] == [[expected]] * 64
