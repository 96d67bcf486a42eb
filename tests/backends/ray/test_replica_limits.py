"""The limits of a replica: a call that hangs ends its process, one that takes too much fails."""

from __future__ import annotations

import asyncio
import faulthandler

import pytest

from policy_server.backends.call_limit import CallLimit
from policy_server.backends.ray.replica_limits import CallWatch
from tests.support.forked_programs import Ended, run_forked

# What a replica does, where no Ray runs: calls are computed in the event loop that is watched.
WATCHED = """
import asyncio, re, time
from policy_server.backends.call_limit import CallLimit
from policy_server.backends.ray.replica_limits import CallWatch

async def main():
    watch = CallWatch(CallLimit(1.5, shortest_s=0), look_every_s=0.5)
    watching = asyncio.create_task(watch.run())
    for _ in range(25):
        await asyncio.sleep(0.1)
    watch.begin(1)
    {call}
    await asyncio.sleep(0.2)
    print("it goes on")
    watching.cancel()

asyncio.run(main())
"""
HANGS = {
    "without the lock": "time.sleep(60)",
    # A pattern that backtracks keeps Python's lock until its end.
    "with the lock": "re.match('(a*)*b', 'a' * 64)",
}
BOUNDED = """
import numpy as np
from policy_server.backends.ray.replica_limits import bound_memory
{before}
bound_memory({most})
small = np.empty(10_000_000, np.uint8)
try:
    large = np.empty(1_000_000_000, np.uint8)
except MemoryError:
    print("a MemoryError")
print(len(np.empty(10_000_000, np.uint8)))
"""
MEMORY = {
    "more than allowed": (100_000_000, ""),
    # What the policy itself has is not counted.
    "beside a large policy": (100_000_000, "policy = np.empty(1_000_000_000, np.uint8)"),
    "allowed": (1_000_000_000, ""),
    "any amount": (0, ""),
}
REFUSED = {"more than allowed", "beside a large policy"}
PROGRAMS = {
    **{name: WATCHED.format(call=call) for name, call in HANGS.items()},
    "short": WATCHED.format(call="time.sleep(0.1)"),
    **{name: BOUNDED.format(most=most, before=before) for name, (most, before) in MEMORY.items()},
}


@pytest.fixture(scope="module")
def ended() -> dict[str, Ended]:
    """Each of `PROGRAMS`, ended, by its name."""
    imports = "import numpy, policy_server.backends.ray.replica_limits"
    return run_forked(PROGRAMS, imports=imports)


@pytest.mark.parametrize("name", HANGS)
def test_process_whose_event_loop_is_held_up_ends_and_tells_where(
    name: str, ended: dict[str, Ended]
) -> None:
    assert ended[name].status == 1
    assert "it goes on" not in ended[name].stdout
    assert "Timeout" in ended[name].stderr
    assert "main" in ended[name].stderr


def test_call_that_is_asked_again_may_take_less_and_the_next_one_as_much_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends_after: list[float] = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda seconds, **_: ends_after.append(seconds)
    )
    watch = CallWatch(CallLimit(24.0, usual_s=0.001), look_every_s=1.0)

    watch.begin(1, is_apart=True)
    watch.end_apart()
    watch.begin(1)

    assert ends_after == [4.0, 11.0]


def test_process_whose_calls_are_short_goes_on(ended: dict[str, Ended]) -> None:
    assert ended["short"] == Ended(0, "it goes on\n", "")


@pytest.mark.parametrize(
    ("calls", "rows", "allowed_s"),
    [
        ([], 1, 24.0),
        ([(0, 0.5)], 1, 24.0),
        ([(1, 0.001)], 1, 10.0),
        ([(1, 0.001), (64, 0.002)], 100, 10.0),
        ([(1, 0.001)], 400, 20.0),
        ([(1, 0.001), (2, 0.2)], 1, 10.0),
        ([(1, 0.001), (2, 0.2)], 4, 20.0),
        ([(1, 0.001)], 10_000, 24.0),
        ([(1, 1.0)], 1, 24.0),
        ([(1, 1.0), *[(1, 0.001)] * 10], 1, 24.0),
        # What was slow once is forgotten.
        ([(1, 1.0), *[(1, 0.001)] * 300], 1, 10.0),
        # One of many rows doesn't seem shorter for those of a few that follow.
        ([(1024, 0.4), *[(1, 0.001)] * 30], 1024, 20.0),
    ],
)
async def test_call_may_take_fifty_times_as_long_as_its_rows_usually_do(
    calls: list[tuple[int, float]],
    rows: int,
    allowed_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    armed: list[float] = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda seconds, **_: armed.append(seconds)
    )
    watch = CallWatch(CallLimit(24.0), look_every_s=1.0)
    for some, seconds in calls:
        watch.observe(some, seconds)

    watching = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    watch.begin(rows)
    watching.cancel()

    assert armed[-1] == pytest.approx(allowed_s + 1.0)


def test_limit_of_the_first_call_is_that_of_the_usual_time_where_it_is_known() -> None:
    limit = CallLimit(24.0, usual_s=0.3)

    assert [limit.least_s, limit.allowed_s(1), limit.allowed_s(4)] == [10.0, 15.0, 24.0]


@pytest.mark.parametrize("name", MEMORY)
def test_memory_of_calls_is_bounded(name: str, ended: dict[str, Ended]) -> None:
    refused = "a MemoryError\n" if name in REFUSED else ""

    assert (ended[name].status, ended[name].stdout) == (0, f"{refused}10000000\n")
