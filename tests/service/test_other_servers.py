"""Servers other than `uvicorn app:app`: the same application, by ASGI or by uvicorn's worker."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.support.folders import EXPORTS
from tests.support.server_processes import KEY, compiled_home_of, running_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.service

_BIN = Path(sys.executable).parent
SERVERS = {
    "gunicorn": (
        ["gunicorn", "app:app", "-k", "uvicorn_worker.UvicornWorker"],
        "-b 127.0.0.1:{port}",
    ),
    "hypercorn": (["hypercorn", "app:app"], "-b 127.0.0.1:{port}"),
    "granian": (["granian", "--interface", "asgi", "app:app"], "--port {port}"),
    "fastapi": (["fastapi", "run", "app.py"], "--port {port}"),
}


@pytest.mark.parametrize(("command", "bind"), SERVERS.values(), ids=SERVERS)
def test_application_is_served_by(command: Sequence[str], bind: str, tmp_path: Path) -> None:
    case = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())[0]
    home = compiled_home_of("ppo_discrete", tmp_path)
    with running_server(
        home,
        environment={"POLICY_SERVER_BACKEND": "local"},
        command=(str(_BIN / command[0]), *command[1:]),
        bind=bind,
    ) as server:
        with server.client() as client:
            answers = [client.post("/distribution", json=case["observation"]) for _ in range(3)]
            refused = client.post("/predict", json={})
        stream = f"{server.url.replace('http', 'ws')}/predict/stream"
        with connect(stream, additional_headers={"access-token": KEY}) as socket:
            socket.send(json.dumps(case["observation"]))
            frame = json.loads(socket.recv())
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.process.poll() is not None, told=server.output)

    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json()["components"][0]["probabilities"] == pytest.approx(
        case["expected"]["probabilities"], abs=1e-5
    )
    assert refused.status_code == 422
    assert "actions" in frame
