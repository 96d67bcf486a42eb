"""Requests whose bodies wait to be read: when they are read, refused or given up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from policy_server.errors import PolicyServerError
from policy_server.serving import BodyQueue
from tests.support.waiting import turns

READ_S = 0.002


@dataclass
class Bodies:
    """A queue whose bodies take 2 ms each by a clock that nothing else moves.

    Attributes:
        queue: the queue.
        now: the time.
        read: the names of the bodies that were read.
        refused: names, and the reasons of refusals.
    """

    max_wait_s: float = 0.1
    max_waiting: int = 1000
    now: float = 100.0
    read: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = BodyQueue(
            max_waiting=self.max_waiting, max_wait_s=self.max_wait_s, clock=lambda: self.now
        )

    def come(self, *names: str, deadline: float | None = None) -> list[Request]:
        """Let requests come, all in this turn of the event loop."""
        requests = []
        for name in names:
            requests.append(Request(self, name, own_deadline=deadline))
            self.queue.take(requests[-1])
        return requests

    async def overload(self, count: int) -> None:
        """Let so many requests come thirty times, 10 ms apart."""
        for moment in range(30):
            self.come(*(f"{moment}.{index}" for index in range(count)))
            await turns(3)
            self.now = max(self.now, 100.0 + 0.01 * (moment + 1))


class Request:
    """A request whose body takes 2 ms."""

    is_done = is_unread = has_waited = False

    def __init__(self, bodies: Bodies, name: str, own_deadline: float | None) -> None:
        self.body = b"1" * 1000
        self.name = name
        self.started = bodies.now
        self.own_deadline = own_deadline
        self._bodies = bodies

    def read_body(self) -> None:
        self._bodies.now += READ_S
        self._bodies.read.append(self.name)

    def refuse(self, reason: str, error: PolicyServerError) -> None:
        assert error.status in {503, 504}
        self.is_done = True
        self._bodies.refused.append((self.name, reason))


async def test_bodies_are_read_at_once_for_some_milliseconds() -> None:
    bodies = Bodies()

    bodies.come(*"abcdef")

    assert bodies.read == list("abc")
    assert bodies.refused == []


async def test_bodies_that_wait_are_read_in_their_order_a_few_a_turn() -> None:
    bodies = Bodies()
    bodies.come(*"abcdefghij")

    await turns(1)
    after_one = list(bodies.read)
    bodies.come("k")
    await asyncio.sleep(0)
    await turns(8)

    assert len(after_one) < len("abcdefghij")
    assert bodies.read == list("abcdefghijk")
    assert bodies.refused == []


async def test_body_that_comes_to_an_idle_queue_is_read_at_once_again() -> None:
    bodies = Bodies()
    bodies.come(*"abcdef")
    await turns(8)

    bodies.come("g")

    assert bodies.read == list("abcdefg")


async def test_bodies_that_are_read_at_once_cost_no_turn_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bodies = Bodies()
    scheduled: list[object] = []

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "call_soon", scheduled.append)
        for name in "abcdef":
            bodies.come(name)
            bodies.now += 0.01

    assert bodies.read == list("abcdef")
    assert scheduled == []


async def test_bodies_that_come_one_behind_the_other_let_the_sockets_be_looked_at() -> None:
    bodies = Bodies()

    for name in "abcdef":
        bodies.come(name)
        bodies.now += 0.0001
    at_once = list(bodies.read)
    await turns(8)

    assert at_once == list("abc")
    assert bodies.read == list("abcdef")


async def test_request_that_comes_while_the_last_body_is_read_is_read_behind_it() -> None:
    bodies = Bodies()
    *_, last = bodies.come(*"abcd")
    read_last = last.read_body

    def read_and_go_on() -> None:
        read_last()
        bodies.come("e")
        assert bodies.read == list("abcd")

    last.read_body = read_and_go_on  # type: ignore[method-assign]  # its answer lets another begin
    await turns(8)

    assert bodies.read == list("abcde")


async def test_request_that_would_wait_too_long_is_refused_when_it_comes() -> None:
    bodies = Bodies(max_wait_s=0.1)

    await bodies.overload(20)

    reasons = {reason for _, reason in bodies.refused}
    assert reasons == {"queue_slow"}
    assert len(bodies.read) > 60
    assert not {name for name, _ in bodies.refused} & set(bodies.read)


async def test_requests_beyond_the_most_are_refused() -> None:
    bodies = Bodies(max_waiting=2)

    bodies.come(*"abcdef")

    assert bodies.refused == [("f", "queue_full")]


async def test_body_whose_client_has_gone_is_not_read() -> None:
    bodies = Bodies()
    requests = bodies.come(*"abcdef")

    bodies.queue.forget(requests[4])
    await turns(8)

    assert bodies.read == list("abcdf")
    assert requests[4].body == b""


async def test_requests_whose_clients_have_gone_leave_the_queue() -> None:
    bodies = Bodies(max_waiting=1000)
    requests = bodies.come(*(str(number) for number in range(900)))

    for request in requests[3:]:
        bodies.queue.forget(request)
    last = bodies.come("last")
    await turns(3)

    assert bodies.read == ["0", "1", "2", "last"]
    assert last[0].has_waited


async def test_body_whose_own_deadline_has_passed_is_not_read() -> None:
    bodies = Bodies()

    bodies.come(*"abcdef", deadline=100.005)
    await turns(8)

    assert bodies.read == list("abc")
    assert bodies.refused == [(name, "deadline") for name in "def"]


async def test_answers_that_were_too_late_let_fewer_requests_wait() -> None:
    waiting = []
    for seconds in (0.05, 0.2):
        bodies = Bodies(max_wait_s=0.1)
        for _ in range(20):
            bodies.come(*"abcdefgh")
            bodies.queue.note_answer(seconds)
            await turns(10)
        before = len(bodies.refused)
        bodies.come(*(str(number) for number in range(200)))
        waiting.append(200 - (len(bodies.refused) - before))

    in_time, late = waiting
    assert late < in_time / 2


async def test_requests_that_were_refused_when_their_turn_came_let_fewer_wait() -> None:
    waiting = []
    for standing_still_s in (0.0, 0.2):
        bodies = Bodies(max_wait_s=0.1)
        for _ in range(5):
            await bodies.overload(20)
            # What waits is too late when its turn comes.
            bodies.now += standing_still_s
            await turns(100)
        before = len(bodies.refused)
        bodies.come(*(str(number) for number in range(200)))
        waiting.append(200 - (len(bodies.refused) - before))

    as_before, behind = waiting
    assert behind < as_before / 2


async def test_one_body_of_two_milliseconds_is_read_between_two_looks_at_the_sockets() -> None:
    bodies = Bodies()
    bodies.come(*"abcdefgh")
    read = []

    for _ in range(20):
        before = len(bodies.read)
        await asyncio.sleep(0)
        read.append(len(bodies.read) - before)

    assert set(read) == {0, 1}
    assert bodies.read == list("abcdefgh")
