"""A Ray cluster of two nodes, as two machines would form it, and servers that join it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support import asking
from tests.support.folders import EXPORTS
from tests.support.processes import command_line, descendants
from tests.support.ray_nodes import OPEN, end_node, running_node
from tests.support.server_processes import (
    Server,
    compiled_home_of,
    home_of,
    running_server,
    started_server,
)
from tests.support.servers import free_port, status_of
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]

CASES = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())
TOLERANCE = 1e-5
# Every address of 127.0.0.0/8 is this machine: each node has one, as if it were another machine.
HEAD, OTHER = "127.0.0.1", "127.0.0.2"


@dataclass(frozen=True)
class Cluster:
    """Nodes with one core each.

    Attributes:
        address: what `RAY_ADDRESS` is set to.
        nodes: their processes, that of the head first.
    """

    address: str
    nodes: tuple[subprocess.Popen[str], ...]

    @property
    def environment(self) -> Mapping[str, str]:
        """Return what a server needs to join."""
        return {**OPEN, "RAY_ADDRESS": self.address, "POLICY_SERVER_NUM_REPLICAS": "2"}


@contextmanager
def running_cluster(
    logs: Path, *, others: Sequence[str] = (), is_disk_full: bool = False
) -> Iterator[Cluster]:
    """Start a cluster, and end it.

    Args:
        logs: a folder for what the nodes print.
        others: the addresses of the nodes besides the head.
        is_disk_full: have Ray find the disk too full for objects.
    """
    port = free_port()
    address = f"{HEAD}:{port}"
    node = partial(running_node, is_disk_full=is_disk_full)
    # Ray puts sockets there, whose paths may have 107 characters: pytest's folder is too long.
    folder = tempfile.mkdtemp(prefix="ray-")
    # Nothing here starts more machines.
    lean = ("--include-dashboard=false", "--no-monitor")
    first = (f"--port={port}", f"--temp-dir={folder}", *lean)
    try:
        with ExitStack() as stack:
            nodes = [stack.enter_context(node(HEAD, logs / "head.log", "--head", *first))]
            for other in others:
                joining = node(other, logs / f"{other}.log", f"--address={address}")
                nodes.append(stack.enter_context(joining))
            yield Cluster(address, tuple(nodes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Give a cluster that a test may harm."""
    with running_cluster(tmp_path, others=[OTHER]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give one cluster to the tests that leave it as it is, but for deployments."""
    with running_cluster(tmp_path_factory.mktemp("steady"), others=[OTHER]) as cluster:
        yield cluster


def replicas_below(node: subprocess.Popen[str], application: str = "policy") -> set[int]:
    """Return the processes of a node's replicas of an application, or of all policies."""
    return {
        pid for pid in descendants(node.pid) if f"ServeReplica:{application}" in command_line(pid)
    }


def pids_below(cluster: Cluster, application: str = "policy") -> set[int]:
    """Return the processes of replicas of an application, or of all policies."""
    return set().union(*(replicas_below(node, application) for node in cluster.nodes))


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
    home = compiled_home_of("ppo_discrete", tmp_path / "home")

    with running_server(home, environment=cluster.environment) as server, server.client() as client:
        # It is ready when the first replica is.
        wait_until(lambda: [len(replicas_below(node)) for node in cluster.nodes] == [1, 1])
        ask(client, 200)
        end_node(cluster.nodes[1])
        ask(client, 200)


def light(cluster: Cluster, **settings: str) -> dict[str, str]:
    """Return what a server needs to join with replicas that find room beside others."""
    given = {f"POLICY_SERVER_{name}": value for name, value in settings.items()}
    return {**cluster.environment, "POLICY_SERVER_REPLICA_CPUS": "0.1", **given}


def application_of(server: Server) -> str:
    """Return the name of the application that a server has deployed or found."""
    [deployed] = [line for line in server.output().splitlines() if "policy_deployed" in line]
    name: str = json.loads(deployed)["application"]
    return name


def test_three_servers_that_join_at_once_restart_nobodys_replicas(
    steady: Cluster, tmp_path: Path
) -> None:
    # Replicas that take seconds to come up, in which the other servers find them.
    environment = light(steady, ENGINE="tensorflow")
    homes = [home_of("ppo_discrete", tmp_path / name) for name in "abc"]
    seen: set[int] = set()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(started_server(home, environment=environment)) for home in homes
        ]

        def is_served(server: Server) -> bool:
            seen.update(pids_below(steady))
            assert server.process.poll() is None, server.output()
            return status_of(f"{server.url}/readyz") == httpx.codes.OK

        for server in servers:
            wait_until(partial(is_served, server), timeout_s=120)
        # They are ready when the first replica is.
        wait_until(lambda: len(pids_below(steady)) >= 2)
        seen.update(pids_below(steady))
        names = {application_of(server) for server in servers}
        for server in servers:
            with server.client() as client:
                ask(client, 20)

    assert len(names) == 1
    assert len(seen) == 2
    assert pids_below(steady) == seen


def refusal_of(home: Path, environment: Mapping[str, str]) -> str:
    """Return what a server prints that can't start, which is no traceback."""
    with started_server(home, environment=environment) as server:
        status = server.process.wait(120)
        output = server.output()
    assert status != 0
    assert "Traceback" not in output
    return output


def large_home(folder: Path) -> Path:
    """Return a home whose model is larger than the machines' object stores."""
    home = home_of("ppo_discrete", folder)
    with zipfile.ZipFile(home / "saved_model.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets.extra/padding", bytes(250_000_000))
    return home


def test_model_that_finds_no_room_in_the_object_store_is_one_line(tmp_path: Path) -> None:
    with running_cluster(tmp_path, is_disk_full=True) as full:
        environment = light(full, ENGINE="tensorflow", NUM_REPLICAS="1")
        output = refusal_of(large_home(tmp_path / "large"), environment)

    assert "its files could not be stored for the replicas: Local disk is full" in output
    assert "free disk space on Ray's machines" in output
    # What is still being deployed is not sent a second time.
    assert output.count('"compiling_policy"') == 1


def test_replicas_come_back_when_the_server_that_deployed_them_has_gone(
    steady: Cluster, tmp_path: Path
) -> None:
    home = large_home(tmp_path / "large")
    environment = light(steady, ENGINE="tensorflow", NUM_REPLICAS="1")
    with running_server(home, environment=environment) as first:
        application = application_of(first)
    died = pids_below(steady, application)
    for pid in died:
        os.kill(pid, signal.SIGKILL)

    assert len(died) == 1
    wait_until(lambda: pids_below(steady, application) - died, timeout_s=60)
    with running_server(home, environment=environment) as second, second.client() as client:
        ask(client, 20)
        assert application_of(second) == application
    assert not pids_below(steady, application) & died


def test_version_that_is_replaced_goes_when_its_last_server_has(
    steady: Cluster, tmp_path: Path
) -> None:
    environment = light(steady, NUM_REPLICAS="1")
    old_home = compiled_home_of("ppo_discrete", tmp_path / "old")
    with running_server(home_of("ppo_box", tmp_path / "new"), environment=environment) as new:
        with running_server(old_home, environment=environment) as old, old.client() as client:
            replaced = application_of(old)
            used = pids_below(steady, replaced)
            # Longer than servers take to tell what they use.
            time.sleep(6.5)
            ask(client, 20)
            assert len(used) == 1
            assert pids_below(steady, replaced) == used

        wait_until(lambda: not pids_below(steady, replaced))
        assert len(pids_below(steady, application_of(new))) == 1


def test_version_that_finds_no_room_says_what_it_needs(steady: Cluster, tmp_path: Path) -> None:
    environment = light(steady, REPLICA_CPUS="1.5", START_TIMEOUT_S="15")

    output = refusal_of(compiled_home_of("ppo_discrete", tmp_path), environment)

    assert "no replica was ready within 15 s: a replica needs 1.5 CPUs on one machine" in output
    assert "at most 1 on one machine" in output


def test_servers_share_the_deployment_and_leave_the_cluster_running(
    steady: Cluster, tmp_path: Path
) -> None:
    homes = [compiled_home_of("ppo_discrete", tmp_path / name) for name in "ab"]
    environment = light(steady)

    def served(server: Server) -> set[int]:
        with server.client() as client:
            ask(client, 50)
        return pids_below(steady, application)

    with running_server(homes[0], environment=environment) as first:
        application = application_of(first)
        # It is ready when the first replica is.
        wait_until(lambda: len(pids_below(steady, application)) == 2)
        alone = served(first)
        with running_server(homes[1], environment=environment) as second:
            shared = served(second)

    assert alone == shared == pids_below(steady, application)
    assert [node.poll() for node in steady.nodes] == [None, None]


def test_version_that_one_server_was_given_is_served_by_all(
    steady: Cluster, tmp_path: Path
) -> None:
    homes = [home_of("ppo_discrete", tmp_path / name) for name in "ab"]
    environment = {**light(steady, NUM_REPLICAS="1"), "POLICY_SERVER_ADMIN_KEY": "admin"}
    routes = "/admin/policies/default"

    def is_live(server: Server, version: str) -> bool:
        """Return whether each of a server's processes has the version."""
        return all(
            asking.get(
                f"{server.url}{routes}", headers={"access-token": "admin"}, timeout=30
            ).json()["live"]
            == version
            for _ in range(8)
        )

    with (
        running_server(homes[0], environment=environment) as first,
        running_server(homes[1], "--workers", "2", environment=environment) as second,
    ):
        with zipfile.ZipFile(homes[0] / "saved_model.zip", "a") as archive:
            archive.writestr("assets.extra/other", b"another version")
        answer = asking.post(
            f"{first.url}{routes}/versions",
            content=(homes[0] / "saved_model.zip").read_bytes(),
            headers={"access-token": "admin"},
            timeout=120,
        )
        wait_until(partial(is_live, second, "v2"), timeout_s=60)
        with second.client() as client:
            ask(client, 20)
        back = asking.post(
            f"{second.url}{routes}/rollback", headers={"access-token": "admin"}, timeout=60
        )
        former = back.json()["live"]
        wait_until(partial(is_live, first, former), timeout_s=60)

    assert answer.status_code == httpx.codes.CREATED, answer.text
    assert back.status_code == httpx.codes.OK, back.text
    assert former != "v2"
