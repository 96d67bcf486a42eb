"""A Ray cluster of two nodes, as two machines would form it, and servers that join it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.service.servers import (
    EXPORTS,
    Server,
    descendants,
    free_port,
    home_of,
    is_running,
    running_server,
)

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]

CASES = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())
OPEN = {"RAY_AUTH_MODE": "disabled"}
TOLERANCE = 1e-5
_NODE_TIMEOUT_S = 60.0
# Every address of 127.0.0.0/8 is this machine: each node has one, as if it were another machine.
HEAD, OTHER = "127.0.0.1", "127.0.0.2"


@dataclass(frozen=True)
class Cluster:
    """Two nodes with one core each.

    Attributes:
        address: what `RAY_ADDRESS` is set to.
        head: the process of the first node.
        other: that of the second.
    """

    address: str
    head: subprocess.Popen[bytes]
    other: subprocess.Popen[bytes]

    @property
    def environment(self) -> Mapping[str, str]:
        """Return what a server needs to join."""
        return {**OPEN, "RAY_ADDRESS": self.address, "POLICY_SERVER_NUM_REPLICAS": "2"}


def start_node(address: str, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a node with one core as `ray start` does, and wait until it runs."""
    command = (
        f"-m ray.scripts.scripts start --block --num-cpus=1 --node-ip-address={address} "
        "--object-store-memory=100000000 --disable-usage-stats"
    )
    with log.open("wb") as output:
        node = subprocess.Popen(
            [sys.executable, *command.split(), *arguments],
            env={**os.environ, **OPEN},
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + _NODE_TIMEOUT_S
    while b"Ray runtime started" not in log.read_bytes():
        assert node.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return node


def end_node(node: subprocess.Popen[bytes]) -> None:
    """End a node as a power failure would."""
    below = descendants(node.pid)
    node.kill()
    node.wait(30)
    for pid in filter(is_running, below):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    port = free_port()
    # Ray puts sockets there, whose paths may have 107 characters: pytest's folder is too long.
    folder = tempfile.mkdtemp(prefix="ray-")
    address = f"{HEAD}:{port}"
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        first = (f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        nodes.append(start_node(HEAD, tmp_path / "head.log", "--head", *first))
        nodes.append(start_node(OTHER, tmp_path / "other.log", f"--address={address}"))
        yield Cluster(address, *nodes)
    finally:
        for node in nodes:
            if node.poll() is None:
                end_node(node)
        shutil.rmtree(folder, ignore_errors=True)


def replicas_below(node: subprocess.Popen[bytes]) -> int:
    """Return how many replicas of the policy a node runs."""
    return sum("ServeReplica:policy" in command_line(pid) for pid in descendants(node.pid))


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def ask(client: httpx.Client, count: int) -> None:
    """Ask with many connections, and hold every answer against RLlib's."""

    def one(index: int) -> None:
        case = CASES[index % len(CASES)]
        answer = client.post("/distribution", json=case["observation"])
        assert answer.status_code == httpx.codes.OK, answer.text
        assert answer.json()["components"][0]["probabilities"] == pytest.approx(
            case["expected"]["probabilities"], abs=TOLERANCE
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(count)))


def test_replicas_are_spread_over_two_nodes_and_one_node_may_die(
    cluster: Cluster, tmp_path: Path
) -> None:
    home = home_of("ppo_discrete", tmp_path / "home")

    with running_server(home, environment=cluster.environment) as server, server.client() as client:
        spread = [replicas_below(cluster.head), replicas_below(cluster.other)]
        ask(client, 200)
        end_node(cluster.other)
        ask(client, 200)

    assert spread == [1, 1]


def test_servers_share_the_deployment_and_leave_the_cluster_running(
    cluster: Cluster, tmp_path: Path
) -> None:
    homes = [home_of("ppo_discrete", tmp_path / name) for name in "ab"]

    def served(server: Server) -> int:
        with server.client() as client:
            ask(client, 50)
        return replicas_below(cluster.head) + replicas_below(cluster.other)

    with running_server(homes[0], environment=cluster.environment) as first:
        alone = served(first)
        with running_server(homes[1], environment=cluster.environment) as second:
            shared = served(second)
    afterwards = replicas_below(cluster.head) + replicas_below(cluster.other)

    assert (alone, shared, afterwards) == (2, 2, 2)
    assert cluster.head.poll() is None
    assert cluster.other.poll() is None
