"""Servers other than `uvicorn app:app`: the same application, by ASGI or by uvicorn's worker."""

from __future__ import annotations

import json
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from tests.support.folders import EXPORTS
from tests.support.processes import command_line, descendants, is_running
from tests.support.server_processes import KEY, Server, compiled_home_of, running_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.service

_BIN = Path(sys.executable).parent
CASE = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())[0]
# The start of a request whose rest never comes.
OPEN_HEAD = b"POST /predict HTTP/1.1\r\nhost: a\r\n"


class OtherServer(NamedTuple):
    """A program that serves the application.

    Attributes:
        command: its words.
        bind: the words for its port.
        is_uvicorn: whether uvicorn serves in it.
    """

    command: tuple[str, ...]
    bind: str
    is_uvicorn: bool = False


SERVERS = {
    "gunicorn": OtherServer(
        # It ends a worker whose start takes 30 s, as that of Ray may on a busy machine.
        ("gunicorn", "app:app", "-k", "uvicorn_worker.UvicornWorker", "--timeout", "150"),
        "-b 127.0.0.1:{port}",
        is_uvicorn=True,
    ),
    "hypercorn": OtherServer(("hypercorn", "app:app"), "-b 127.0.0.1:{port}"),
    "granian": OtherServer(("granian", "--interface", "asgi", "app:app"), "--port {port}"),
    "fastapi": OtherServer(("fastapi", "run", "app.py"), "--port {port}", is_uvicorn=True),
}


@contextmanager
def served_by(other: OtherServer, folder: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Serve a policy by another server."""
    program, *arguments = other.command
    with running_server(
        compiled_home_of("ppo_discrete", folder),
        environment=environment,
        command=(str(_BIN / program), *arguments),
        bind=other.bind,
    ) as server:
        yield server


def framed(server: Server) -> Any:  # noqa: ANN401 -- JSON
    """Return the answer to a frame of a stream."""
    stream = f"{server.url.replace('http', 'ws')}/predict/stream"
    with connect(stream, additional_headers={"access-token": KEY}) as web_socket:
        web_socket.send(json.dumps(CASE["observation"]))
        return json.loads(web_socket.recv())


def end(server: Server) -> None:
    """Stop a server, and wait for its end."""
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.process.poll() is not None, timeout_s=60, told=server.output)


@pytest.mark.parametrize("other", SERVERS.values(), ids=SERVERS)
def test_application_is_served_by(other: OtherServer, tmp_path: Path) -> None:
    with served_by(other, tmp_path, {"POLICY_SERVER_BACKEND": "local"}) as server:
        with server.client() as client:
            answers = [client.post("/distribution", json=CASE["observation"]) for _ in range(3)]
            refused = client.post("/predict", json={})
        frame = framed(server)
        end(server)

    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json()["components"][0]["probabilities"] == pytest.approx(
        CASE["expected"]["probabilities"], abs=1e-5
    )
    assert refused.status_code == 422
    assert "actions" in frame


@pytest.mark.parametrize("other", SERVERS.values(), ids=SERVERS)
def test_application_and_its_ray_are_served_and_ended_by(
    other: OtherServer, tmp_path: Path
) -> None:
    # Ray puts sockets there, whose paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ps-") as place:
        with served_by(other, tmp_path, {"TMPDIR": place}) as server:
            with server.client() as client:
                answer = client.post("/predict_deterministic", json=CASE["observation"])
            frame = framed(server)
            processes = [server.process.pid, *descendants(server.process.pid)]
            lines = [command_line(pid) for pid in processes]
            end(server)
            wait_until(lambda: not any(map(is_running, processes)))
        left = [path.name for path in Path(place).glob("ps-*")]

    assert any("ServeReplica" in line for line in lines)
    assert answer.json()["actions"] == [CASE["expected"]["deterministic_action"]]
    assert "actions" in frame
    assert left == []


@pytest.mark.parametrize(
    "other",
    [each for each in SERVERS.values() if each.is_uvicorn],
    ids=[name for name, each in SERVERS.items() if each.is_uvicorn],
)
def test_limits_of_connections_hold_where_uvicorn_serves_in(
    other: OtherServer, tmp_path: Path
) -> None:
    environment = {"POLICY_SERVER_BACKEND": "local", "POLICY_SERVER_HEADER_TIMEOUT_S": "0.5"}
    with served_by(other, tmp_path, environment) as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as link:
            link.sendall(OPEN_HEAD)
            answer = link.recv(65536)

    assert answer.startswith(b"HTTP/1.1 408 ")
