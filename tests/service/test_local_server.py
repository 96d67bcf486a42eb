"""The server without Ray, and the ways a start fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import write_certificate
from tests.support.folders import EXPORTS
from tests.support.library_policies import POLICIES, cases_of
from tests.support.processes import descendants, is_running, run
from tests.support.server_processes import (
    KEY,
    compiled_home_of,
    home_of,
    running_server,
    started_server,
)
from tests.support.servers import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.service

LOCAL = {"POLICY_SERVER_BACKEND": "local"}


def test_local_server_answers_without_ray(tmp_path: Path) -> None:
    case = json.loads((EXPORTS / "ppo_tuple" / "cases.json").read_text())[0]

    with running_server(home_of("ppo_tuple", tmp_path), environment=LOCAL) as server:
        with server.client() as client:
            answer = client.post("/distribution", json=case["observation"]).json()
        loaded = Path(f"/proc/{server.process.pid}/maps").read_text()

    assert len(answer["components"]) == len(case["expected"]["components"])
    assert answer["components"][10]["probabilities"] == pytest.approx(
        case["expected"]["components"][10]["probabilities"], abs=1e-5
    )
    assert "tensorflow" not in loaded
    assert "_raylet" not in loaded


@pytest.mark.parametrize("is_folder", [False, True], ids=["zip", "folder"])
def test_policy_of_any_name_is_served(tmp_path: Path, *, is_folder: bool) -> None:
    case = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())[0]
    home = home_of("ppo_discrete", tmp_path)
    if is_folder:
        shutil.unpack_archive(home / "saved_model.zip", home / "run 7")
        (home / "saved_model.zip").unlink()
    else:
        (home / "saved_model.zip").rename(home / "run 7.zip")

    with running_server(home, environment=LOCAL) as server, server.client() as client:
        answer = client.post("/distribution", json=case["observation"]).json()

    assert answer["components"][0]["probabilities"] == pytest.approx(
        case["expected"]["probabilities"], abs=1e-5
    )


def test_rllib_checkpoint_answers_without_its_library(tmp_path: Path) -> None:
    case = cases_of("rllib_ppo_box")[0]
    for name in ("checkpoint.zip", "schema.yaml"):
        shutil.copy(POLICIES / "rllib_ppo_box" / name, tmp_path / name)

    with running_server(tmp_path, environment=LOCAL) as server:
        with server.client() as client:
            part = client.post("/distribution", json=case["observation"]).json()["components"][0]
            decided = client.post("/predict_deterministic", json=case["observation"]).json()
        loaded = Path(f"/proc/{server.process.pid}/maps").read_text()

    assert part["kind"] == "normal"
    assert decided["actions"] == pytest.approx(
        case["expected"]["deterministic_action_env_space"], abs=1e-5
    )
    assert "tensorflow" not in loaded
    assert "_raylet" not in loaded


def test_two_servers_run_side_by_side(tmp_path: Path) -> None:
    first_home, second_home = (
        compiled_home_of("ppo_discrete", tmp_path / "a"),
        home_of("sac_box", tmp_path / "b"),
    )

    with (
        running_server(first_home, environment=LOCAL) as first,
        running_server(second_home, environment=LOCAL) as second,
        first.client() as discrete,
        second.client() as continuous,
    ):
        kinds = [
            client.post("/distribution_raw", json={"obs": [0.1] * width}).json()["components"][0][
                "kind"
            ]
            for client, width in ((discrete, 4), (continuous, 3))
        ]

    assert kinds == ["categorical", "squashed_normal"]


def test_upload_that_is_under_way_ends_with_a_stop_and_leaves_nothing(tmp_path: Path) -> None:
    """The client goes on sending nothing, so that its body's own time would be the longest wait."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(POLICIES / "sb3_v18_ppo_discrete" / "policy.zip", home)
    (home / "schema.yaml").write_text(f"parameters: {{api_key: {KEY}}}")
    settings = {**LOCAL, "POLICY_SERVER_ADMIN_KEY": "admin", "POLICY_SERVER_BODY_TIMEOUT_S": "600"}
    with running_server(home, environment=settings) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(
                b"POST /admin/policies/default/versions HTTP/1.1\r\nhost: a\r\n"
                b"access-token: admin\r\n"
                b"content-type: application/zip\r\ncontent-length: 1000000\r\n\r\nPK"
            )
            versions = home / "versions" / "default"
            wait_until(lambda: list(versions.glob(".incoming-*")))
            server.process.send_signal(signal.SIGTERM)
            client.settimeout(60)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
            server.process.wait(60)

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"the server is ending, and nothing is deployed" in answer
    assert list(versions.iterdir()) == []


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        pytest.param(
            "observations: {a: {type: str}}",
            "observations.a.type: expected one of",
            id="unknown type",
        ),
        pytest.param("", "is empty", id="empty schema"),
        pytest.param("parameters: {discrete: true}", "POLICY_SERVER_API_KEY", id="no key"),
        pytest.param(None, "schema.yaml: not found", id="no schema"),
    ],
)
def test_schema_mistake_is_one_line_and_no_start(
    tmp_path: Path, schema: str | None, expected: str
) -> None:
    home = home_of("ppo_discrete", tmp_path)
    (home / "schema.yaml").unlink() if schema is None else (home / "schema.yaml").write_text(schema)

    with started_server(home, environment=LOCAL) as server:
        status = server.process.wait(60)

    lines = server.output().strip().splitlines()
    assert status != 0
    assert len(lines) == 1
    assert expected in lines[0]


def test_missing_model_is_one_line_and_no_start(tmp_path: Path) -> None:
    home = home_of("ppo_discrete", tmp_path)
    (home / "saved_model.zip").unlink()

    with started_server(home, environment=LOCAL) as server:
        status = server.process.wait(60)

    assert status != 0
    assert "saved_model.zip: not found" in server.output()
    assert "Traceback" not in server.output()


def test_damaged_zip_leaves_the_served_policy_as_it_was(tmp_path: Path) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path)
    with running_server(home, environment=LOCAL):
        pass
    served = (home / "models" / "saved_model.pb").read_bytes()
    (home / "saved_model.zip").write_bytes(b"no zip")

    with started_server(home, environment=LOCAL) as server:
        status = server.process.wait(60)

    assert status != 0
    assert "is no zip file or is damaged" in server.output()
    assert (home / "models" / "saved_model.pb").read_bytes() == served


OFFER = (
    b"POST /predict_raw HTTP/1.1\r\nhost: a\r\naccess-token: %b\r\nconnection: upgrade\r\n"
    b"upgrade: h2c\r\ncontent-length: 30\r\n\r\n"
)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--workers", "2"],
        ["--http", "policy_server.http_server.http_protocol:HttpProtocol"],
        ["--http", "h11"],
    ],
    ids=["alone", "workers", "named", "h11"],
)
def test_offer_of_http2_is_answered_with_its_body_read(
    arguments: list[str], tmp_path: Path
) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path)
    with running_server(home, *arguments, environment=LOCAL) as server:
        url = httpx.URL(server.url)
        assert url.port is not None
        with socket.create_connection(("127.0.0.1", url.port), timeout=10) as connection:
            connection.sendall(OFFER % KEY.encode() + b'{"obs": "POST / HTTP/1.1\\r\\n"}')
            answer = b""
            while not answer.endswith(b"}") and (piece := connection.recv(65536)):
                answer += piece

    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b'"obs"' in answer
    assert "uvicorns_own_protocol" not in server.output()


def _is_kept(url: httpx.URL, idle_s: float) -> bool:
    """Return whether a connection still answers after it was idle."""
    assert url.port is not None
    ask = b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n"
    with socket.create_connection(("127.0.0.1", url.port), timeout=10) as connection:
        connection.sendall(ask)
        assert _is_answered(connection)
        time.sleep(idle_s)
        try:
            connection.sendall(ask)
            return _is_answered(connection)
        except OSError:
            return False


def _is_answered(connection: socket.socket) -> bool:
    answer = b""
    while not answer.endswith(b'"ok"') and (piece := connection.recv(65536)):
        answer += piece
    return bool(answer)


@pytest.mark.parametrize(
    ("setting", "arguments", "idle_s", "is_kept"),
    [
        ({}, [], 5.5, True),
        ({}, ["--workers", "2"], 5.5, True),
        ({}, ["--http", "h11"], 5.5, True),
        ({"POLICY_SERVER_KEEP_ALIVE_S": "0.3"}, [], 1.0, False),
        ({}, ["--timeout-keep-alive", "1"], 2.0, False),
        ({"POLICY_SERVER_KEEP_ALIVE_S": "1"}, ["--timeout-keep-alive=5"], 2.0, True),
    ],
    ids=["default", "workers", "h11", "setting", "option", "option wins"],
)
def test_idle_connection_is_kept_as_long_as_is_said(
    setting: dict[str, str],
    arguments: list[str],
    idle_s: float,
    is_kept: bool,  # noqa: FBT001 -- a parameter
    tmp_path: Path,
) -> None:
    environment = {**LOCAL, **setting}
    home = compiled_home_of("ppo_discrete", tmp_path)
    with running_server(home, *arguments, environment=environment) as server:
        assert _is_kept(httpx.URL(server.url), idle_s) == is_kept


@pytest.mark.parametrize("fault", ["no policy", "schema that doesn't fit", "port taken"])
def test_failing_start_of_workers_ends_with_a_status_and_leaves_nothing(
    fault: str, tmp_path: Path
) -> None:
    home = home_of("ppo_discrete", tmp_path)
    if fault == "no policy":
        (home / "saved_model.zip").unlink()
    if fault == "schema that doesn't fit":
        shutil.copy(EXPORTS / "ppo_tuple" / "schema.yaml", home)
    reason = {
        "no policy": "saved_model.zip: not found",
        "schema that doesn't fit": "gives 6 values, the policy expects 4",
        "port taken": "POLICY_SERVER_METRICS_PORT: port",
    }[fault]
    with socket.create_server(("", 0)) as taken:
        ports = {"POLICY_SERVER_METRICS_PORT": str(taken.getsockname()[1])}
        environment = {**LOCAL, "TMPDIR": str(tmp_path), **(ports if "port" in fault else {})}
        with started_server(home, "--workers", "3", environment=environment) as server:
            processes: set[int] = set()

            def is_over() -> bool:
                processes.update(descendants(server.process.pid))
                return server.process.poll() is not None

            wait_until(is_over, timeout_s=60, told=server.output)

    assert len(processes) >= 3
    assert server.process.returncode != 0
    assert reason in server.output()
    assert "Traceback" not in server.output()
    wait_until(lambda: not any(is_running(pid) for pid in processes))
    assert not list(tmp_path.glob("ps-*"))


def test_figures_outlive_the_worker_that_shows_them(tmp_path: Path) -> None:
    case = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())[0]
    environment = {**LOCAL, "TMPDIR": str(tmp_path)}
    home = compiled_home_of("ppo_discrete", tmp_path / "home")
    answered = 'policy_server_requests_total{policy="default",route="/predict",status="200"}'

    def wait_for(name: str, expected: float) -> None:
        def is_reached() -> bool:
            found = server.figure(name)
            # A counter that goes up again is a restart for Prometheus.
            assert name != answered or found is None or found <= expected
            return found == expected

        server.child.wait_until(is_reached)

    arguments = ["--workers", "2", "--log-config", "policy_server/log_config.json"]
    with running_server(home, *arguments, environment=environment) as server:
        for _ in range(20):
            with server.client() as client:
                client.post("/predict", json=case["observation"]).raise_for_status()
        wait_for(answered, 20)
        # Each worker tells where it serves, the second one after the first has answered.
        server.child.wait_until(lambda: server.output().count('"policy_served"') == 2)
        events = [json.loads(line) for line in server.output().splitlines()]
        [holder] = [
            event["pid"]
            for event in events
            if event["event"] == "policy_served" and "metrics" in event["places"]
        ]
        os.kill(holder, signal.SIGKILL)

        seen: list[float] = []

        def is_seen() -> bool:
            if (figure := server.figure(answered)) is not None:
                seen.append(figure)
            return len(seen) >= 40

        server.child.wait_until(is_seen)
        assert seen == [20.0] * 40
        wait_for("policy_server_model_info{", 1)
        (folder,) = tmp_path.glob("ps-metrics-*")
        assert (folder / "departed.json").exists()

    assert not list(tmp_path.glob("ps-*"))


def test_workers_log_json_too_where_uvicorn_is_given_the_file(tmp_path: Path) -> None:
    arguments = ["--workers", "2", "--log-config", "policy_server/log_config.json"]
    with running_server(
        compiled_home_of("ppo_discrete", tmp_path), *arguments, environment=LOCAL
    ) as server:
        parent = server.process.pid

    events = [json.loads(line) for line in server.output().splitlines()]
    assert {event["pid"] == parent for event in events} == {True, False}


UVICORN = (sys.executable, "-m", "uvicorn", "app:app", "--port", "0")
SERVE = (sys.executable, "generate.py", "serve", "--port", "0", "--workers", "2")
RUN = """
import sys, uvicorn
uvicorn.run("app:app", port=0, ssl_certfile=sys.argv[2], ssl_keyfile=sys.argv[4])
"""


@pytest.mark.parametrize(
    ("command", "status"),
    [(UVICORN, 3), (SERVE, 1), ((sys.executable, "-c", RUN), 3)],
    ids=["uvicorn", "serve", "uvicorn.run"],
)
@pytest.mark.parametrize(
    ("key", "fault"),
    [("none", "expected a file that can be read"), ("other.pem", "expected the key of the cert")],
    ids=["missing", "another's"],
)
def test_wrong_key_of_tls_is_one_line(
    command: Sequence[str], status: int, key: str, fault: str, tmp_path: Path
) -> None:
    certificate, other = tmp_path / "own.pem", tmp_path / "other.pem"
    write_certificate(certificate)
    write_certificate(other)
    environment = {**os.environ, **LOCAL, "POLICY_SERVER_LOG_FORMAT": "text"}
    files: list[str | Path] = ["--ssl-certfile", certificate, "--ssl-keyfile", tmp_path / key]

    ended = run(*command, *files, environment=environment, timeout_s=150, status=status)

    (line,) = (ended.stdout + ended.stderr).splitlines()
    assert f": --ssl-keyfile: {tmp_path / key}: {fault}" in line


@pytest.mark.parametrize(
    "command",
    [UVICORN[:4], (sys.executable, "generate.py", "serve")],
    ids=["uvicorn", "serve"],
)
def test_certificate_and_key_may_be_pipes(command: Sequence[str], tmp_path: Path) -> None:
    write_certificate(tmp_path / "own.pem")
    content = (tmp_path / "own.pem").read_bytes()
    key = content.index(b"-----BEGIN PRIVATE KEY-----")
    files: list[str] = []
    with ExitStack() as open_ends:
        for option, part in (("--ssl-certfile", content[:key]), ("--ssl-keyfile", content[key:])):
            reading, writing = os.pipe()
            open_ends.callback(os.close, reading)
            os.write(writing, part)
            os.close(writing)
            files += [option, f"/dev/fd/{reading}"]
        descriptors = [int(path.rpartition("/")[2]) for path in files[1::2]]
        home = compiled_home_of("ppo_discrete", tmp_path / "home")

        with started_server(
            home, *files, environment=LOCAL, command=command, descriptors=descriptors
        ) as server:
            server.child.wait_until(lambda: "Uvicorn running" in server.output(), timeout_s=150.0)
            url = server.url.replace("http:", "https:")
            trusted = ssl.create_default_context(cafile=tmp_path / "own.pem")
            with httpx.Client(verify=trusted, trust_env=False) as client:
                answer = client.get(f"{url}/livez")

    assert answer.status_code == 200


@pytest.mark.parametrize("way", ["--uds", "--ssl", "--port"])
def test_place_that_the_log_names_is_the_real_one(way: str, tmp_path: Path) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path)
    path, key, certificate = (str(tmp_path / name) for name in ("s", "key", "certificate"))
    if way == "--ssl":
        request = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate}"
        subprocess.run([*request.split(), "-subj", "/CN=localhost"], check=True, timeout=60)
    arguments = {
        "--uds": ["--uds", path],
        "--ssl": ["--ssl-keyfile", key, "--ssl-certfile", certificate],
        "--port": [],
    }[way]

    with started_server(home, *arguments, environment=LOCAL, port=free_port()) as server:
        server.child.wait_until(lambda: "Uvicorn running" in server.output())
        events = [json.loads(line) for line in server.output().splitlines()]
        [docs] = [e["places"]["docs"] for e in events if e["event"] == "policy_served"]
        transport = httpx.HTTPTransport(verify=False, uds=path if way == "--uds" else None)
        with httpx.Client(transport=transport) as client:
            answer = client.get(docs.split(" ")[0])

    assert answer.status_code == 200
    assert docs.startswith("https://" if way == "--ssl" else "http://")
    assert (path in docs) == (way == "--uds")
