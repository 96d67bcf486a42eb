"""The store of sessions that dies or stands still: only requests of sessions may wait for it."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.faults.expectations import Expectation, Limits
from tests.faults.load import RECURRENT, Episodes, Load, first_steps, steps
from tests.faults.measuring import Fault, Scene, temporary
from tests.support.library_policies import POLICIES
from tests.support.redis_servers import RedisServer, redis_server
from tests.support.server_processes import running_server

__all__ = ["FAULTS", "recurrent_home"]

_AWAY_S = 6.0
# Redis starts, and each process finds it.
_BACK_S = 3.0
# No request waits for Redis longer than two seconds (docs/memory.md); a busy machine adds to it.
_SLOWEST_S = 3.0
_EPISODES = 8
_DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def recurrent_home(folder: Path) -> Path:
    """Make a home folder that serves a policy with memory."""
    folder.mkdir()
    for file in ("policy.zip", "schema.yaml"):
        shutil.copy(POLICIES / RECURRENT / file, folder / file)
    return folder


@contextmanager
def _with_redis(
    folder: Path,
    happen: Callable[[RedisServer, Callable[[], RedisServer]], None],
    *,
    backend: str,
) -> Iterator[Scene]:
    """Serve sessions that a Redis keeps, beside requests without a session."""
    data, socket = folder / "data", folder / "redis.sock"
    data.mkdir()
    environment = {
        "TMPDIR": str(temporary(folder)),
        "POLICY_SERVER_BACKEND": backend,
        "POLICY_SERVER_SESSIONS_URL": f"unix://{socket}",
    }
    with ExitStack() as running:

        def start() -> RedisServer:
            return running.enter_context(redis_server(*_DURABLE, folder=data, socket=socket))

        redis = start()
        home = recurrent_home(folder / "home")
        with running_server(home, environment=environment) as server:
            loads = {
                "plain requests": Load(server.url, first_steps()),
                "sessions": Episodes(server.url, steps(), _EPISODES),
            }
            yield Scene(server, loads, partial(happen, redis, start))


def _killed(redis: RedisServer, start: Callable[[], RedisServer]) -> None:
    redis.kill()
    time.sleep(_AWAY_S)
    start()


def _still(redis: RedisServer, _: Callable[[], RedisServer]) -> None:
    os.kill(redis.child.process.pid, signal.SIGSTOP)
    time.sleep(_AWAY_S)
    os.kill(redis.child.process.pid, signal.SIGCONT)


_KILLED, _STILL = (
    f"Redis killed, started again after {_AWAY_S:g} s",
    f"Redis stopped for {_AWAY_S:g} s",
)


def _fault(told: str, happen: Callable[..., None], backend: str) -> Fault:
    staged = partial(_with_redis, happen=happen, backend=backend)
    limits = {
        "plain requests": Limits(slowest_s=_SLOWEST_S),
        "sessions": Limits(refused=math.inf, slowest_s=_SLOWEST_S, trouble_s=_AWAY_S + _BACK_S),
    }
    return Fault(told, staged, Expectation(limits))


FAULTS = {
    "redis": _fault(_KILLED, _killed, "ray"),
    "redis-still": _fault(_STILL, _still, "ray"),
    "redis-local": _fault(f"{_KILLED}, BACKEND=local", _killed, "local"),
    "redis-still-local": _fault(f"{_STILL}, BACKEND=local", _still, "local"),
}
