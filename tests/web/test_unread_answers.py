"""Answers that their clients do not read: they are in flight, and their bytes have a bound."""

from __future__ import annotations

import io

import numpy as np
import orjson
import pytest

from policy_server.access_keys import AccessKey, KeyRing
from policy_server.errors import OverloadedError
from policy_server.http_server.limited_protocol import LimitedHttpProtocol
from policy_server.metrics import Metrics
from policy_server.web.unread_answers import UnreadAnswers
from tests.support.connections import Answer, Server, Transport, answers_in
from tests.support.fakes import integer_backend
from tests.support.waiting import turns, until
from tests.support.web import OBSERVATION, build, running

ROWS = 6_000


def ring() -> KeyRing:
    return KeyRing([AccessKey.of(name, name) for name in ("plant", "ops")])


def npy_of_ones() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((ROWS, 2), np.float32))
    return file.getvalue()


def request_of(name: str, path: str, body: bytes, content_type: str = "application/json") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\naccess-token: {name}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def batch(name: str) -> bytes:
    """Return a batch whose answer has some hundred kilobytes."""
    return request_of(name, "/distribution/batch", npy_of_ones(), "application/x-npy")


def one(name: str) -> bytes:
    return request_of(name, "/distribution", orjson.dumps(OBSERVATION))


ASKED = {"batch": batch, "one": one}


async def unread(server: Server, data: bytes) -> tuple[LimitedHttpProtocol, Transport]:
    """Ask by a client that reads nothing of the answer."""
    protocol, transport = server.connect()
    transport.unread_by = protocol
    protocol.data_received(data)
    await until(lambda: bool(transport.written))
    await turns(20)
    return protocol, transport


async def asked(server: Server, data: bytes) -> Answer:
    """Ask by a client that reads."""
    protocol, transport = server.connect()
    protocol.data_received(data)
    before = transport.written
    while not before or transport.written != before:
        before = transport.written
        await turns(20)
    protocol.connection_lost(None)
    return answers_in(transport.written)[0]


@pytest.mark.parametrize("end", ["read", "lost"])
@pytest.mark.parametrize(
    ("form", "is_hot"),
    [("batch", False), ("batch", True), ("one", True)],
    ids=["batch", "batch-hot", "one-hot"],
)
async def test_request_is_in_flight_until_its_client_reads_the_answer(
    form: str, end: str, *, is_hot: bool
) -> None:
    request = ASKED[form]
    app = build(keys=ring(), max_key_in_flight=1)
    async with running(app):
        server = Server(app, is_hot=is_hot)
        protocol, transport = await unread(server, request("plant"))
        beside = await asked(server, request("plant"))
        other = await asked(server, request("ops"))
        transport.unread_by = None
        if end == "read":
            protocol.resume_writing()
            await until(lambda: not server.state.tasks)
        else:
            protocol.connection_lost(None)
        await turns(20)
        after = await asked(server, request("plant"))

    assert [answer.status for answer in (beside, other, after)] == [429, 200, 200]
    if end == "read":
        assert answers_in(transport.written)[0].body == after.body


@pytest.mark.parametrize("query", ["", "?a=1"], ids=["fast-path", "FastAPI"])
async def test_long_answer_to_one_observation_is_in_flight_until_it_is_read(query: str) -> None:
    """It has the probabilities of 9,000 choices."""
    long = request_of("plant", f"/distribution_raw{query}", b'{"obs": [0, 1]}')
    app = build(
        integer_backend(tuple(choice % 7 / 10 for choice in range(9_000))),
        keys=ring(),
        max_key_in_flight=1,
    )
    async with running(app):
        server = Server(app)
        protocol, transport = await unread(server, long)
        beside = await asked(server, long)
        transport.unread_by = None
        protocol.resume_writing()
        await until(lambda: not server.state.tasks)
        after = await asked(server, long)

    assert (beside.status, after.status) == (429, 200), after.body[:200]
    assert answers_in(transport.written)[0].body == after.body
    assert len(after.body) > 65_536


async def test_answers_of_a_connection_are_in_flight_until_each_is_read() -> None:
    app = build(keys=ring(), max_key_in_flight=3)
    async with running(app):
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        transport.unread_by = protocol
        protocol.data_received(one("plant") * 3)
        await until(lambda: len(answers_in(transport.written)) == 3)
        beside = await asked(server, one("plant"))
        protocol.resume_writing()
        after = await asked(server, one("plant"))

    assert (beside.status, after.status) == (429, 200)


async def test_batch_is_refused_while_too_many_bytes_wait_to_be_read() -> None:
    metrics = Metrics()
    app = build(keys=ring(), metrics=metrics, max_batch_body_bytes=100_000)
    async with running(app):
        server = Server(app)
        protocol, _ = await unread(server, batch("plant"))
        refused = await asked(server, batch("plant"))
        lone = await asked(server, one("plant"))
        protocol.connection_lost(None)
        await turns(20)
        after = await asked(server, batch("plant"))

    assert [answer.status for answer in (refused, lone, after)] == [503, 200, 200]
    assert dict(refused.headers)[b"retry-after"] == b"1"
    assert b"wait to be read" in refused.body
    rejected = metrics.snapshot().numbers["rejected"]
    assert {reason: count for (reason, _), count in rejected.items()} == {"answers_unread": 1}


def test_client_may_have_as_many_bytes_as_are_left_free() -> None:
    answers = UnreadAnswers(100)
    answers.check("a")

    with answers.held("a", 49):
        answers.check("a")
        with answers.held("a", 1):
            with pytest.raises(OverloadedError, match="this client's batches"):
                answers.check("a")
            answers.check("b")
            with answers.held("b", 24):
                answers.check("b")
                with answers.held("b", 1), pytest.raises(OverloadedError):
                    answers.check("b")
        answers.check("a")


def test_answers_of_one_client_keep_no_other_waiting_however_long_they_are() -> None:
    answers = UnreadAnswers(100)

    with answers.held("a", 70), answers.held("a", 80):
        answers.check("b")
        with answers.held("b", 24):
            answers.check("b")
            with answers.held("c", 26):
                # Nothing is free any more: who has none there may have one.
                answers.check("d")
                for client in "abc":
                    with pytest.raises(
                        OverloadedError, match="of answers to this client's batches"
                    ):
                        answers.check(client)
    with answers.held("a", 49):
        answers.check("a")
