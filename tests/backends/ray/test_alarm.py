"""A timer that many set."""

from __future__ import annotations

import asyncio
import time

from policy_server.backends.ray.alarm import Alarm
from tests.support.waiting import until


async def test_alarm_rings_once_at_the_earliest_time() -> None:
    rung: list[float] = []
    alarm = Alarm(lambda: rung.append(time.monotonic()))
    now = time.monotonic()
    for seconds in (1000.0, 0.01, 500.0):
        alarm.ring_by(now + seconds)
    await until(lambda: rung)
    # It can be set again, though for later than before.
    alarm.ring_by(now + 0.02)
    await until(lambda: len(rung) == 2)
    alarm.ring_by(0.0)
    alarm.cancel()
    await asyncio.sleep(0.01)

    assert rung[0] >= now + 0.01
    assert len(rung) == 2
