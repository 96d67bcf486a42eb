"""Episodes that outlive a replica, a web process and Redis: no answer wrong, no session lost."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support import asking
from tests.support.library_policies import POLICIES, cases_of
from tests.support.processes import command_line, descendants, is_running
from tests.support.redis_servers import redis_server
from tests.support.server_processes import KEY, Server, running_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.service

POLICY = "sb3_recurrent_ppo"
CASES = cases_of(POLICY)
EPISODES = 6
TOLERANCE = 1e-5
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass
class Episodes:
    """Clients that step one session each, over and over, and send again what got no answer.

    Attributes:
        steps: how many steps were answered, and held against the library.
        retries: how often a request was sent again, by the reason.
        is_over: tells the clients to end.
    """

    url: str
    steps: Counter[int] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    is_over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[list[Future[None]]]:
        """Run the clients until the block ends."""
        with ThreadPoolExecutor(EPISODES) as pool:
            try:
                yield [pool.submit(self.run, number) for number in range(EPISODES)]
            finally:
                self.is_over.set()

    def run(self, number: int) -> None:
        """Step one episode after the other until told to end."""
        session = f"/sessions/{self.sent('/sessions').json()['session_id']}"
        while not self.is_over.is_set():
            for step, case in enumerate(CASES):
                if self.is_over.is_set():
                    return
                answer = self.sent(
                    f"{session}/distribution", case["observation"], {"x-step": str(step)}
                )
                assert answer.headers["x-step"] == str(step)
                [component] = answer.json()["components"]
                expected = case["expected"]["probabilities"]
                np.testing.assert_allclose(
                    component["probabilities"], expected, atol=TOLERANCE, rtol=0
                )
                self.steps[number] += 1
            self.sent(f"{session}/reset")

    def sent(
        self, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Send a request until it is answered, on a new connection each time."""

        def answer() -> httpx.Response | None:
            try:
                found = asking.post(
                    self.url + path,
                    json=body,
                    headers={"access-token": KEY, **(headers or {})},
                    timeout=60,
                )
            except httpx.TransportError as error:
                self.retries[type(error).__name__] += 1
                return None
            if found.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                self.retries[found.json()["detail"]] += 1
                return None
            assert found.is_success, f"{path}: {found.status_code} {found.text}"
            return found

        found = wait_until(answer, timeout_s=90, pause_s=0.1)
        assert found is not None
        return found

    def go_on(self) -> None:
        """Wait until each client has made some more steps."""
        before = Counter(self.steps)
        wait_until(
            lambda: all(self.steps[i] >= before[i] + 3 for i in range(EPISODES)),
            timeout_s=90,
            told=lambda: f"{self.steps} {self.retries}",
        )


def processes_of(server: Server, words: str) -> list[int]:
    """Return the processes below a server whose command lines have these words."""
    return [pid for pid in descendants(server.process.pid) if words in command_line(pid)]


def kill(pid: int) -> None:
    """Kill a process, and wait until it has ended."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))


def has_ray(pid: int) -> bool:
    """Return whether a worker has started Ray."""
    return any("gcs_server" in command_line(below) for below in descendants(pid))


def test_episodes_outlive_a_replica_a_web_process_and_redis(tmp_path: Path) -> None:
    home, data = tmp_path / "home", tmp_path / "redis"
    for folder in (home, data):
        folder.mkdir()
    for file in ("policy.zip", "schema.yaml"):
        shutil.copy(POLICIES / POLICY / file, home / file)
    with tempfile.TemporaryDirectory() as place:
        socket = Path(place) / "redis.sock"
        environment = {
            "POLICY_SERVER_SESSIONS_URL": f"unix://{socket}",
            "POLICY_SERVER_NUM_REPLICAS": "2",
        }
        with running_server(home, "--workers", "2", environment=environment) as server:
            episodes = Episodes(server.url)
            with episodes.running() as clients:
                with redis_server(*DURABLE, folder=data, socket=socket) as redis:
                    episodes.go_on()
                    kill(processes_of(server, "ServeReplica")[0])
                    episodes.go_on()
                    kill(
                        next(pid for pid in processes_of(server, "spawn_main") if not has_ray(pid))
                    )
                    episodes.go_on()
                    redis.kill()
                    wait_until(
                        lambda: any("their Redis" in reason for reason in [*episodes.retries])
                    )
                with redis_server(*DURABLE, folder=data, socket=socket) as redis:
                    episodes.go_on()
                    episodes.is_over.set()
                    for client in clients:
                        client.result(90)
                    kept = int(redis.ask("ZCARD", "policy-server:group::default"))

    assert kept == EPISODES
