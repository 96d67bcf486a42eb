"""Turns of requests: those that come at once take several turns of the event loop."""

from __future__ import annotations

import asyncio

import pytest

from policy_server.web.request_turns import RequestTurns
from tests.support.connections import Server, answers_in
from tests.support.waiting import turns as loop_turns
from tests.support.web import build, running


class Clock:
    """A clock that each request moves on by the time that it takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def worked_off(
    turns: RequestTurns, clock: Clock, *, requests: int, seconds: float
) -> list[int]:
    """Begin many requests at once, and return how many were done in each turn of the loop."""
    done = 0

    async def request() -> None:
        nonlocal done
        await turns.begin(clock())
        clock.now += seconds
        done += 1

    tasks = [asyncio.create_task(request()) for _ in range(requests)]
    counts = []
    while done < requests:
        before = done
        await asyncio.sleep(0)
        counts.append(done - before)
    await asyncio.gather(*tasks)
    return counts


async def test_slow_requests_begin_one_a_turn() -> None:
    clock = Clock()

    counts = await worked_off(RequestTurns(clock=clock), clock, requests=20, seconds=0.004)

    assert max(counts) == 1


async def test_quick_requests_begin_in_as_few_turns_as_fit() -> None:
    clock = Clock()

    counts = await worked_off(RequestTurns(clock=clock), clock, requests=300, seconds=0.0001)

    assert max(counts) <= 15
    assert len(counts) < 80


async def test_lone_requests_wait_for_nothing() -> None:
    clock = Clock()
    turns = RequestTurns(clock=clock)

    for _ in range(3):
        await turns.begin(clock())
        clock.now += 0.01
        assert len(turns) == 0
        await loop_turns(2)


async def test_requests_begin_in_their_order_and_those_given_up_not_at_all() -> None:
    clock, began = Clock(), []
    turns = RequestTurns(clock=clock)

    async def request(number: int) -> None:
        await turns.begin(clock())
        clock.now += 0.01
        began.append(number)

    tasks = [asyncio.create_task(request(number)) for number in range(6)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop_turns(2)

    assert began == [0, 1, 3, 4, 5]
    assert len(turns) == 0


def test_event_loop_that_ended_within_a_turn_keeps_nobody_waiting() -> None:
    turns = RequestTurns(clock=Clock())
    ended = asyncio.new_event_loop()
    first = turns.begin(0.0)

    def begin_and_end() -> None:
        with pytest.raises(StopIteration):
            first.send(None)
        ended.stop()

    ended.call_soon(begin_and_end)
    ended.run_forever()
    ended.close()

    async def second() -> None:
        async with asyncio.timeout(10):
            await turns.begin(1.0)

    asyncio.run(second())


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("GET /openapi.json", 200), ("GET /livez", 200), ("POST /predict", 401), ("GET /none", 401)],
)
async def test_requests_of_many_connections_are_not_answered_in_one_turn(
    request_line: str, status: int
) -> None:
    """They take some ten milliseconds in all, and a turn of the event loop one."""
    app = build()
    async with running(app):
        server = Server(app)
        opened = [server.connect() for _ in range(400)]
        for protocol, _ in opened:
            protocol.data_received(f"{request_line} HTTP/1.1\r\nhost: x\r\n\r\n".encode())

        def answered() -> int:
            return sum(bool(transport.written) for _, transport in opened)

        counts = [0]
        while counts[-1] < len(opened):
            await asyncio.sleep(0)
            counts.append(answered())

        assert len({*counts}) > 4
        assert {answers_in(transport.written)[0].status for _, transport in opened} == {status}
