"""Calls straight to a replica: in order, behind a secret, and lost ones are told."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from policy_server.backends.ray.direct_calls import (
    CallServer,
    ConnectionLostError,
    DirectCalls,
    ReplicaAddress,
    answer_or_error,
)
from policy_server.errors import ModelError, ObservationError, PolicyFailedError
from policy_server.policy import Float32Array, Int64Array, PolicyOutputs
from tests.support.waiting import until

HOST = "127.0.0.1"
Infer = Callable[..., Awaitable[PolicyOutputs]]


def outputs_of(number: float, rows: int = 1) -> PolicyOutputs:
    """Return answers that tell calls apart."""
    return PolicyOutputs(np.full((rows, 1), number), np.ones(rows), None)


async def doubled(number: float) -> PolicyOutputs:
    """Answer as a policy would."""
    return outputs_of(2 * number)


class Replicas:
    """Replicas that come and go, found one after another as Ray Serve's router finds them."""

    def __init__(self, *infers: Infer) -> None:
        self.servers = [self._server(index, infer) for index, infer in enumerate(infers)]
        self.asked = 0
        self.lost: list[str] = []

    @staticmethod
    def _server(index: int, infer: Infer) -> CallServer:
        return CallServer(infer, HOST, replica=f"replica {index}")

    def calls(self, count: int = 1) -> DirectCalls:
        """Return calls to as many of them."""
        return DirectCalls(self.find, replicas=count, on_lost=self.lost.append)

    async def find(self) -> ReplicaAddress:
        self.asked += 1
        if not self.servers:
            raise RuntimeError("no replica is alive")
        return await self.servers[self.asked % len(self.servers)].address()

    async def end(self, index: int) -> None:
        """End a replica, with its connections."""
        await self.servers.pop(index).aclose()


@asynccontextmanager
async def opened(calls: DirectCalls) -> AsyncIterator[DirectCalls]:
    """Have calls connect, and end their connections."""
    await calls.open()
    try:
        yield calls
    finally:
        await calls.aclose()


@asynccontextmanager
async def connected(replicas: Replicas, *, count: int = 1) -> AsyncIterator[DirectCalls]:
    """Connect to replicas, and wait until all are found."""
    try:
        async with opened(replicas.calls(count)) as calls:
            await until(lambda: len(calls) == count)
            yield calls
    finally:
        for server in replicas.servers:
            await server.aclose()


async def test_calls_in_flight_get_their_own_answers() -> None:
    async with connected(Replicas(doubled)) as calls:
        answers = await asyncio.gather(*(calls.infer(number) for number in range(50)))

    assert [answer.actions[0, 0] for answer in answers] == [2 * n for n in range(50)]


async def test_arrays_of_any_size_cross_unchanged() -> None:
    async def echo(rows: Float32Array, seeds: Int64Array) -> PolicyOutputs:
        return PolicyOutputs(rows.astype(np.float64), seeds.astype(np.float64), rows)

    rows = np.random.default_rng(0).random((50_000, 7)).astype(np.float32)
    async with connected(Replicas(echo)) as calls:
        answer = await calls.infer(rows, np.arange(50_000))

    assert answer.distribution is not None
    assert (answer.distribution == rows).all()
    assert (answer.log_probability == np.arange(50_000)).all()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (PolicyFailedError("is wrong"), "is wrong"),
        (ObservationError([{"type": "t", "loc": ["body"], "msg": "odd"}]), "body: odd"),
        (ZeroDivisionError("secret"), "the policy failed; the server's log has the reason"),
    ],
    ids=["ours", "with problems", "foreign"],
)
async def test_error_of_a_replica_is_raised_and_the_connection_stays(
    raised: Exception, expected: str
) -> None:
    async def failing(number: float) -> PolicyOutputs:
        if number < 0:
            raise raised
        return outputs_of(number)

    async with connected(Replicas(failing)) as calls:
        results = await asyncio.gather(
            calls.infer(1), calls.infer(-1), calls.infer(2), return_exceptions=True
        )

    error = results[1]
    assert isinstance(error, type(raised) if raised.args[0] != "secret" else PolicyFailedError)
    assert str(error) == expected
    # The process that asked logs it.
    assert ("secret" in "".join(traceback.format_exception(error))) == (expected not in str(raised))
    assert [r.actions[0, 0] for r in results if isinstance(r, PolicyOutputs)] == [1, 2]


async def test_cancelled_call_does_not_shift_the_answers_of_others() -> None:
    release = asyncio.Event()

    async def waiting(number: float) -> PolicyOutputs:
        await release.wait()
        return outputs_of(number)

    async with connected(Replicas(waiting)) as calls:
        first, second, third = (asyncio.create_task(calls.infer(n)) for n in range(3))
        await asyncio.sleep(0.01)
        second.cancel()
        release.set()
        answers = await asyncio.gather(first, third)

    assert [answer.actions[0, 0] for answer in answers] == [0, 2]
    assert second.cancelled()


async def test_every_replica_is_found_and_the_one_with_least_to_do_is_asked() -> None:
    release = asyncio.Event()
    counts = [0, 0, 0]

    def replica(index: int) -> Infer:
        async def infer(number: float) -> PolicyOutputs:
            counts[index] += 1
            await release.wait()
            return outputs_of(number)

        return infer

    async with connected(Replicas(*map(replica, range(3))), count=3) as calls:
        tasks = [asyncio.create_task(calls.infer(number)) for number in range(9)]
        await asyncio.sleep(0.05)
        release.set()
        await asyncio.gather(*tasks)

    assert counts == [3, 3, 3]


async def test_calls_in_flight_are_told_when_their_replica_dies() -> None:
    async def never(_: float) -> PolicyOutputs:
        await asyncio.Event().wait()
        return outputs_of(0)

    replicas = Replicas(never)
    async with connected(replicas) as calls:
        tasks = [asyncio.create_task(calls.infer(number)) for number in range(3)]
        await asyncio.sleep(0.05)
        await replicas.end(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)

        is_connected = calls.is_connected

    assert all(isinstance(result, ConnectionLostError) for result in results)
    assert not is_connected
    # Once, however many calls it had.
    assert replicas.lost == ["replica 0"]


async def test_connection_that_is_closed_here_is_no_lost_replica() -> None:
    replicas = Replicas(doubled, doubled)

    async with connected(replicas, count=2) as calls:
        await calls.infer(1)

    assert replicas.lost == []


async def test_replica_that_takes_its_place_is_found() -> None:
    replicas = Replicas(doubled)
    async with connected(replicas) as calls:
        await replicas.end(0)
        await until(lambda: not calls.is_connected)
        await asyncio.sleep(0.2)
        replicas.servers.append(CallServer(doubled, HOST, replica="another"))
        await until(lambda: calls.is_connected)

        assert (await calls.infer(4)).actions[0, 0] == 8


async def test_replica_that_can_not_be_reached_is_no_error() -> None:
    class Unreachable(Replicas):
        async def find(self) -> ReplicaAddress:
            return replace(await super().find(), port=1)

    replicas = Unreachable(doubled)
    async with opened(replicas.calls()) as calls:
        await asyncio.sleep(0.1)

        assert not calls.is_connected
    await replicas.end(0)


@pytest.mark.parametrize("given", [b"x" * 32, b"", b"GET / HTTP/1.1\r\n\r\n" * 4], ids=len)
async def test_who_does_not_know_the_secret_is_shown_the_door(given: bytes) -> None:
    async def untouched(*_: object) -> PolicyOutputs:
        raise AssertionError("nothing of it may be read")

    server = CallServer(untouched, HOST, replica="untouched")
    address = await server.address()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(given)
    writer.write_eof()
    try:
        answer = await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        answer = b""
    writer.close()
    await server.aclose()

    assert answer == b""


async def test_wrong_secret_of_ours_is_not_connected() -> None:
    class Stranger(Replicas):
        async def find(self) -> ReplicaAddress:
            return replace(await super().find(), secret=b"y" * 32)

    replicas = Stranger(doubled)
    async with opened(replicas.calls()) as calls:
        assert not calls.is_connected
    await replicas.end(0)


async def test_error_that_a_replica_raises_again_and_again_is_told_once_each_time() -> None:
    cause = ModelError("no weights")
    kept = PolicyFailedError("the policy can't be loaded")
    kept.__cause__ = cause

    async def failing() -> PolicyOutputs:
        raise kept

    for _ in range(3):
        answer = await answer_or_error(failing)

    assert answer is kept
    assert "".join(kept.__notes__).count("no weights") == 1
