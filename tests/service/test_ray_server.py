"""The whole thing: uvicorn, FastAPI, Ray Serve and TensorFlow, started as a user starts them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from websockets.sync.client import connect

from tests.support import asking
from tests.support.folders import EXPORTS
from tests.support.hand_built import V1Policy, picking
from tests.support.processes import command_line, descendants, is_running, listening_on
from tests.support.server_processes import (
    KEY,
    Server,
    compiled_home_of,
    home_of,
    running_server,
    started_server,
)
from tests.support.servers import free_port, status_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.service

CASES = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(home_of("ppo_discrete", tmp_path_factory.mktemp("home"))) as server:
        yield server


def test_distribution_through_ray_equals_rllibs(server: Server) -> None:
    with server.client() as client:
        for case in CASES:
            answer = client.post("/distribution", json=case["observation"]).json()

            [component] = answer["components"]
            assert component["kind"] == "categorical"
            assert component["probabilities"] == pytest.approx(
                case["expected"]["probabilities"], abs=TOLERANCE
            )


def test_deterministic_action_through_ray_equals_rllibs(server: Server) -> None:
    with server.client() as client:
        for case in CASES:
            answer = client.post("/predict_deterministic", json=case["observation"]).json()

            assert answer["actions"] == [case["expected"]["deterministic_action"]]


def test_raw_observation_gives_the_same_answer_as_a_named_one(server: Server) -> None:
    with server.client() as client:
        named = client.post("/distribution", json=CASES[0]["observation"]).json()
        raw = client.post("/distribution_raw", json={"obs": CASES[0]["raw"]}).json()

    assert named == raw


def test_batch_of_many_calls_equals_rllibs(server: Server) -> None:
    count = 5000
    chosen = [CASES[i % len(CASES)] for i in range(count)]
    expected = np.array([case["expected"]["probabilities"] for case in chosen])

    with server.client() as client:
        rows = client.post("/distribution/batch", json=[case["observation"] for case in chosen])
        actions = client.post(
            "/predict_deterministic_raw/batch", json={"obs": [case["raw"] for case in chosen]}
        )

    [component] = rows.json()["components"]
    assert np.allclose(component["probabilities"], expected, atol=TOLERANCE)
    assert actions.json()["actions"] == [
        [case["expected"]["deterministic_action"]] for case in chosen
    ]


def test_draws_follow_the_distribution(server: Server) -> None:
    draws = 1000
    expected = CASES[0]["expected"]["probabilities"]

    with server.client() as client, ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: client.post("/predict", json=CASES[0]["observation"]).json(), range(draws)
            )
        )

    share = np.mean([answer["actions"][0] for answer in answers])
    # Five standard errors: fails by chance once in two million runs.
    assert share == pytest.approx(expected[1], abs=5 * np.sqrt(expected[0] * expected[1] / draws))
    for answer in answers:
        assert answer["probability"] == pytest.approx(expected[answer["actions"][0]], abs=TOLERANCE)


def test_seed_makes_a_draw_reproducible(server: Server) -> None:
    with server.client() as client:
        answers = [
            client.post("/predict?seed=7", json=CASES[0]["observation"]).json() for _ in range(5)
        ]

    assert all(answer == answers[0] for answer in answers)


def maps_of(pid: int) -> str:
    """Return the files in a process's memory; nothing of one that has ended."""
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def test_no_process_that_serves_has_imported_tensorflow(server: Server) -> None:
    processes = [server.process.pid, *descendants(server.process.pid)]
    maps = {command_line(pid): maps_of(pid) for pid in processes}

    assert any("ServeReplica" in name for name in maps)
    assert [name for name, loaded in maps.items() if "tensorflow" in loaded] == []
    assert "policy_compiled" in server.output()


def test_no_process_that_serves_has_imported_pandas_or_pyarrow(server: Server) -> None:
    processes = [server.process.pid, *descendants(server.process.pid)]
    loaded = {
        library
        for pid in processes
        for library in re.findall(r"site-packages/(\w+)/", maps_of(pid))
    }

    assert "ray" in loaded
    assert not {"pandas", "pyarrow"} & loaded


def test_only_what_serving_needs_of_ray_runs(server: Server) -> None:
    lines = [command_line(pid) for pid in descendants(server.process.pid)]
    needed = (
        "ray_guard",
        "gcs_server",
        "raylet/raylet",
        "Agent",
        # Agents that have not given themselves a title yet.
        "ray/dashboard/agent.py",
        "ray/_private/runtime_env/agent/main.py",
        "ServeController",
        "ServeReplica",
    )

    # Of a process that has ended by now the line is empty.
    assert [line for line in lines if line and not any(name in line for name in needed)] == []


def test_ray_listens_on_this_machine_alone_but_for_one_port_of_a_replica(server: Server) -> None:
    ray = {pid: command_line(pid) for pid in descendants(server.process.pid)}
    # Its guard listens on nothing.
    elsewhere = {
        name: others
        for pid, name in ray.items()
        if (others := listening_on(pid) - {"127.0.0.1"}) and "guard" not in name
    }

    assert any(listening_on(pid) for pid in ray)
    # Ray Serve's own calls of a replica, which ask for the token.
    assert [name.partition(":policy")[0] for name in elsewhere] == ["ray::ServeReplica"], elsewhere


def test_replicas_get_as_much_of_the_processor_as_the_web_process(server: Server) -> None:
    workers = [pid for pid in descendants(server.process.pid) if "ray::Serve" in command_line(pid)]

    ours = os.getpriority(os.PRIO_PROCESS, server.process.pid)
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in workers] == [ours, ours]


@pytest.mark.parametrize("name", ["gcs_server", "raylet/raylet"])
def test_logs_of_ray_have_a_bound_and_few_statistics_of_ray(server: Server, name: str) -> None:
    [pid] = [pid for pid in descendants(server.process.pid) if name in command_line(pid)]
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    [log] = re.findall(r"stdout_filepath=(\S+)", command_line(pid))

    assert "RAY_ROTATION_MAX_BYTES=16777216" in variables
    assert "RAY_ROTATION_BACKUP_COUNT=1" in variables
    assert "RAY_event_stats_print_interval_ms=86400000" in variables
    assert 0 < Path(log).stat().st_size < 500_000


def test_scrape_has_our_metrics_only(server: Server) -> None:
    with server.client() as client:
        client.post("/predict", json=CASES[0]["observation"])

    page = server.metrics()
    assert "\npolicy_server_replicas 1.0\n" in page
    assert all(line.startswith(("policy_server_", "# ")) for line in page.splitlines())
    assert 'policy_server_requests_total{policy="default",route="/predict",status="200"}' in page
    assert 'policy_server_stage_seconds_count{policy="default",stage="policy"}' in page
    assert 'policy_server_actions_total{action="' in page
    assert 'family="categorical(2)"' in page


def test_ray_collects_no_metrics_that_nobody_asked_for(server: Server) -> None:
    lines = [command_line(pid) for pid in descendants(server.process.pid)]
    [raylet] = [each for each in lines if "raylet/raylet" in each]
    # Of the agent, which would listen there, and whose title is another one once it runs.
    found = re.search(r"--metrics-export-port=(\d+)", raylet)

    assert found is not None
    assert any("DashboardAgent" in each or "dashboard/agent.py" in each for each in lines)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(found[1])))
    assert server.metrics("/ray") == ""


def process_of(server: Server, title: str) -> int:
    """Return the process of Ray's that has a title."""
    [pid] = [pid for pid in descendants(server.process.pid) if title in command_line(pid)]
    return pid


def test_replica_that_dies_causes_no_error(server: Server) -> None:
    replica = process_of(server, "ServeReplica")
    with server.client() as client, ThreadPoolExecutor(4) as pool:
        answers = [
            pool.submit(client.post, "/predict", json=CASES[0]["observation"]) for _ in range(20)
        ]
        os.kill(replica, signal.SIGKILL)
        answers += [
            pool.submit(client.post, "/predict", json=CASES[0]["observation"]) for _ in range(20)
        ]

        statuses = {answer.result().status_code for answer in answers}

    assert statuses == {httpx.codes.OK}
    events = [json.loads(line)["event"] for line in server.output().splitlines()]
    assert events.count("replica_lost") == 1


def test_replica_that_dies_while_ray_serves_controller_is_stopped_is_replaced(
    server: Server,
) -> None:
    wait_until(lambda: status_of(f"{server.url}/readyz") == httpx.codes.OK, timeout_s=60)
    os.kill(process_of(server, "ServeController"), signal.SIGSTOP)
    os.kill(process_of(server, "ServeReplica"), signal.SIGKILL)

    with server.client() as client:
        wait_until(
            lambda: client.post("/predict", json=CASES[0]["observation"]).is_success,
            timeout_s=120,
            told=server.output,
        )

    assert '"ray_stands_still"' in server.output()


def test_sigterm_answers_what_is_in_flight_and_leaves_no_process(tmp_path: Path) -> None:
    with running_server(compiled_home_of("ppo_discrete", tmp_path)) as server:
        processes = [server.process.pid, *descendants(server.process.pid)]
        answers: list[tuple[float, int]] = []

        def ask(client: httpx.Client) -> None:
            """Ask until the server refuses."""
            with suppress(httpx.TransportError):
                while not answers or answers[-1][1] == httpx.codes.OK:
                    status = client.post("/predict", json=CASES[0]["observation"]).status_code
                    answers.append((time.monotonic(), status))

        with server.client() as client, ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask, client) for _ in range(8)]
            wait_until(lambda: len(answers) >= 80)
            stopped = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
        assert [future.result() for future in asking] == [None] * 8

        server.process.wait(60)

        # A connection that was never accepted may be refused; an accepted request is answered.
        statuses = {status for at, status in answers if at > stopped}
        assert httpx.codes.OK in statuses
        assert statuses <= {httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE}
        wait_until(lambda: not any(is_running(pid) for pid in processes))
        assert "Traceback" not in server.output()


@pytest.mark.parametrize("event", ["loading_policy", "compiling_policy", "ray_started"])
def test_sigterm_during_the_start_ends_it_and_leaves_nothing(tmp_path: Path, event: str) -> None:
    # Ray puts sockets there, whose paths may have 107 characters: pytest's folder is too long.
    folder = Path(tempfile.mkdtemp(prefix="ps-"))
    with started_server(
        home_of("ppo_discrete", tmp_path), environment={"TMPDIR": str(folder)}
    ) as server:
        wait_until(lambda: event in server.output(), timeout_s=60)
        processes = [server.process.pid, *descendants(server.process.pid)]
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(60)
        output = server.output()

        assert status != 0
        assert "the start was ended by SIGTERM" in output
        assert "Traceback" not in output
        wait_until(lambda: not any(is_running(pid) for pid in processes))
        # What was started since the list was made may still be on its way out.
        wait_until(lambda: not list(folder.iterdir()))
    folder.rmdir()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_dashboard_comes_after_the_policy_answers(tmp_path: Path) -> None:
    port = free_port()
    environment = {"POLICY_SERVER_DASHBOARD_PORT": str(port)}
    with running_server(
        compiled_home_of("ppo_discrete", tmp_path), environment=environment
    ) as server:
        processes = [server.process.pid, *descendants(server.process.pid)]
        with server.client() as client:
            assert client.post("/predict", json=CASES[0]["observation"]).status_code == 200

        wait_until(lambda: _accepts(port), timeout_s=60)
        dashboard = f"http://127.0.0.1:{port}"
        assert asking.get(f"{dashboard}/api/version", timeout=10).status_code == 401
        processes += descendants(server.process.pid)
        pages = {line for pid in processes if "-dashboard-" in (line := command_line(pid))}
        assert len(pages) == 4, "one process a page that has something to show"
        [token] = re.findall(r'"dashboard_token": "([^"]+)"', server.output())
        headers = {"Authorization": f"Bearer {Path(token).read_text()}"}
        shown = asking.get(f"{dashboard}/api/serve/applications/", headers=headers, timeout=60)
        assert [name.startswith("policy-") for name in shown.json()["applications"]] == [True]
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)

    wait_until(lambda: not any(is_running(pid) for pid in processes))


def test_proxy_in_the_environment_is_not_asked_for_this_machine(tmp_path: Path) -> None:
    proxy = "http://127.0.0.1:9"
    environment = {
        name: proxy
        for base in ("http_proxy", "https_proxy", "all_proxy")
        for name in (base, base.upper())
    }
    # It wins over the server's own choice.
    environment["RAY_enable_metrics_collection"] = "1"
    with running_server(
        compiled_home_of("ppo_discrete", tmp_path), environment=environment
    ) as server:
        with server.client() as client:
            answer = client.post("/predict", json=CASES[0]["observation"])
        # Ray's own page, which is on this machine.
        wait_until(lambda: "ray_serve_deployment_replica_healthy" in server.metrics("/ray"))
        lines = server.output().splitlines()

    assert answer.status_code == 200
    assert len(lines) < 50
    assert all(json.loads(line)["pid"] == server.process.pid for line in lines)


def test_policy_is_served_by_tensorflow_where_that_is_asked_for(tmp_path: Path) -> None:
    engine = {"POLICY_SERVER_ENGINE": "tensorflow"}
    with running_server(home_of("ppo_lstm", tmp_path), environment=engine) as server:
        replicas = [
            pid for pid in descendants(server.process.pid) if "ServeReplica" in command_line(pid)
        ]
        loaded = ["tensorflow" in maps_of(pid) for pid in replicas]
        web = maps_of(server.process.pid)

    assert loaded == [True]
    assert "tensorflow" not in web
    assert '"engine": "tensorflow: ' in server.output()


@pytest.mark.parametrize("calls", ["true", "false"], ids=["direct", "by Ray Serve"])
def test_observation_that_fails_in_a_replica_costs_its_neighbours_nothing(
    tmp_path: Path, calls: str
) -> None:
    built = V1Policy(network=picking).save(tmp_path / "model")
    shutil.make_archive(str(tmp_path / "saved_model"), "zip", built)
    (tmp_path / "schema.yaml").write_text(f"parameters: {{api_key: {KEY}}}\n")
    rows = [{"obs": [7 if index % 20 == 17 else index % 5, 0, 0, 0]} for index in range(200)]
    with (
        running_server(tmp_path, environment={"POLICY_SERVER_DIRECT_CALLS": calls}) as server,
        connect(
            f"{server.url.replace('http', 'ws')}/predict_raw/stream",
            additional_headers={"access-token": KEY},
            compression=None,
        ) as stream,
    ):
        for row in rows:
            stream.send(json.dumps(row))
        answers = [json.loads(stream.recv()) for _ in rows]
        with server.client() as client:
            batch = client.post("/predict_raw/batch", json=rows)

    statuses = [answer.get("status", 200) for answer in answers]
    assert statuses == [500 if row["obs"][0] == 7 else 200 for row in rows]
    assert batch.status_code == 500
    assert batch.json()["detail"].startswith("observation 17: the policy failed")
    # Once for each of them, with the replica's own reason.
    assert server.output().count('"event": "request_failed"') == 11
    assert server.output().count("IndexError: an index lies outside 0 to 4") == 11


def test_two_workers_share_one_ray_and_leave_no_process(tmp_path: Path) -> None:
    with running_server(home_of("ppo_discrete", tmp_path), "--workers", "2") as server:
        processes = [server.process.pid, *descendants(server.process.pid)]
        lines = [command_line(pid) for pid in processes]
        with server.client() as client:
            answers = [client.post("/predict", json=CASES[0]["observation"]) for _ in range(10)]

        assert {answer.status_code for answer in answers} == {httpx.codes.OK}
        counted = 'requests_total{policy="default",route="/predict",status="200"} 10.0'
        wait_until(lambda: counted in server.metrics())
        assert sum("gcs_server" in line for line in lines) == 1
        assert sum("ServeReplica" in line for line in lines) == 1
        assert server.output().count("policy_compiled") == 1

        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        wait_until(lambda: not any(is_running(pid) for pid in processes))


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]], ids=["alone", "workers"])
def test_policy_that_does_not_fit_the_schema_ends_the_start_in_one_line(
    workers: list[str], tmp_path: Path
) -> None:
    home = home_of("ppo_discrete", tmp_path)
    (home / "schema.yaml").write_text((EXPORTS / "ppo_tuple" / "schema.yaml").read_text())

    with started_server(home, *workers) as server:
        status = server.process.wait(120)

    assert status != 0
    assert "schema.yaml: gives 6 values, the policy expects 4" in server.output()
    assert "Traceback" not in server.output()


# What a Ray looks like whose insides have moved: Python runs this at the start of each process.
_MOVED = """
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder


class Moved(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "policy_server.backends.ray.lean_node":
            raise ImportError("cannot import name 'Node' from 'ray._private.node'")
        if name == "ray.serve.handle":
            sys.meta_path.remove(self)
            spec = PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                refuse(module.DeploymentHandle)

            spec.loader.exec_module = exec_module
            sys.meta_path.insert(0, self)
            return spec
        return None


def refuse(handle):
    init, options = handle._init, handle.options

    def public_init(self):
        init(self)

    def public_options(self, *, method_name):
        return options(self, method_name=method_name)

    handle._init, handle.options = public_init, public_options


sys.meta_path.insert(0, Moved())
"""


def test_ray_whose_private_parts_have_moved_is_started_the_public_way(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(_MOVED)
    environment = {"PYTHONPATH": str(hook), "POLICY_SERVER_DIRECT_CALLS": "false"}
    home = compiled_home_of("ppo_discrete", tmp_path / "home")

    with running_server(home, environment=environment) as server:
        processes = [server.process.pid, *descendants(server.process.pid)]
        with server.client() as client:
            for case in CASES:
                answer = client.post("/distribution", json=case["observation"])
                assert answer.json()["components"][0]["probabilities"] == pytest.approx(
                    case["expected"]["probabilities"], abs=TOLERANCE
                )
        events = [json.loads(line)["event"] for line in server.output().splitlines()]
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)

    assert [event for event in events if event in ("ray_started_whole", "ray_handle_plain")] == [
        "ray_started_whole",
        "ray_handle_plain",
    ]
    wait_until(lambda: not any(is_running(pid) for pid in processes))
