"""Debian's redis-server for tests: on a socket of its own, to be stopped, killed and asked."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.support.processes import Child, child, program

__all__ = ["RedisServer", "redis_server"]


@dataclass(frozen=True)
class RedisServer:
    """A running redis-server.

    Attributes:
        child: its process.
        url: its address, as the setting takes it.
    """

    child: Child
    url: str

    def ask(self, *command: str | int | bytes) -> Any:  # noqa: ANN401 -- as Redis answers
        """Run a command of Redis."""
        with redis.Redis.from_url(self.url, socket_timeout=10) as client:
            return client.execute_command(*command)

    def commands(self, name: str) -> int:
        """Return how often a command was called so far, in scripts too."""
        with redis.Redis.from_url(self.url, socket_timeout=10) as client:
            return int(client.info("commandstats").get(f"cmdstat_{name}", {}).get("calls", 0))

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Let it answer nothing while the block runs."""
        os.kill(self.child.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.child.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it as a lack of memory would."""
        self.child.process.kill()
        self.child.process.wait()


@contextmanager
def redis_server(
    *options: str | int, folder: Path | None = None, socket: Path | None = None
) -> Iterator[RedisServer]:
    """Start a redis-server, which is ended with the block.

    Args:
        *options: those of its command line; without any, nothing is kept on disk.
        folder: where it keeps its data; None for one that is removed.
        socket: where it listens; None for a place in a folder that is removed.
    """
    with tempfile.TemporaryDirectory() as place:
        path = socket or Path(place) / "redis.sock"
        command = (
            *(
                program("redis-server", package="redis-server"),
                "--port",
                "0",
                "--unixsocket",
                str(path),
            ),
            *("--dir", str(folder or place), "--save", "", "--daemonize", "no"),
            *map(str, options),
        )
        with child(*command, log=Path(place) / "redis.log", folder=Path(place)) as started:
            server = RedisServer(started, f"unix://{path}")
            started.wait_until(lambda: _answers(server), timeout_s=20)
            yield server


def _answers(server: RedisServer) -> bool:
    try:
        return bool(server.ask("PING"))
    except redis.AuthenticationError:
        return True
    except redis.RedisError:
        return False
