"""A server that fetches its policy at the start, from an S3 server and a web server."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.support.folders import EXPORTS
from tests.support.server_processes import running_server, started_server
from tests.support.servers import Handler, answered_by

pytestmark = pytest.mark.service

EXPORT = EXPORTS / "ppo_discrete"
OBSERVATION = {
    "cart_position": 0.1,
    "cart_velocity": 0.2,
    "pole_angle": 0.05,
    "pole_velocity": -0.3,
}
MODEL, SCHEMA = "a/saved_model.zip", "a/schema.yaml"
LOCAL = {"POLICY_SERVER_BACKEND": "local", "POLICY_SERVER_LOG_FORMAT": "json"}


@pytest.fixture
def store() -> Iterator[tuple[ThreadedMotoServer, dict[str, str]]]:
    """An S3 server with a policy, and the variables that lead a server to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    session = boto3.session.Session("id", "hush", region_name="us-east-1")
    client = session.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="policies")
    for key in (MODEL, SCHEMA):
        client.put_object(
            Bucket="policies", Key=key, Body=(EXPORT / key.removeprefix("a/")).read_bytes()
        )
    yield (
        server,
        {
            **LOCAL,
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "POLICY_SERVER_MODEL_URI": f"s3://policies/{MODEL}",
            "POLICY_SERVER_SCHEMA_URI": f"s3://policies/{SCHEMA}",
        },
    )
    server.stop()


def test_server_starts_from_s3_and_again_without_it(
    store: tuple[ThreadedMotoServer, dict[str, str]], tmp_path: Path
) -> None:
    s3, environment = store

    with running_server(tmp_path, environment=environment) as server, server.client() as client:
        first = client.post("/distribution", json=OBSERVATION).raise_for_status().json()
        assert '"event": "fetched"' in server.output()
        assert "hush" not in server.output()
    s3.stop()

    with running_server(tmp_path, environment=environment) as server, server.client() as client:
        assert client.post("/distribution", json=OBSERVATION).json() == first
        assert "fetch_failed_and_copy_served" in server.output()


def test_wrong_digest_is_one_line_and_no_start(tmp_path: Path) -> None:
    address = EXPORT / "saved_model.zip"
    digest = hashlib.sha256(address.read_bytes()).hexdigest()
    wrong = "0" * 64
    environment = {**LOCAL, "POLICY_SERVER_MODEL_URI": f"file://{address}#sha256={wrong}"}

    with started_server(tmp_path, environment=environment) as server:
        status = server.process.wait(60)

    last = json.loads(server.output().splitlines()[-1])
    assert status != 0
    assert last["reason"].startswith(f"file://{address}: expected sha256 {wrong}, got {digest}")
    assert "Traceback" not in server.output()
    assert [path.name for path in tmp_path.iterdir()] == ["server.log"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_signal_ends_a_start_that_downloads(tmp_path: Path, number: signal.Signals) -> None:
    asked, is_over = threading.Event(), threading.Event()

    class Silent(Handler):
        def answer(self) -> None:
            asked.set()
            is_over.wait(30)

    with answered_by(Silent) as url:
        environment = {**LOCAL, "POLICY_SERVER_MODEL_URI": f"{url}/m"}
        with started_server(tmp_path, environment=environment) as server:
            assert asked.wait(60)
            server.process.send_signal(number)
            status = server.process.wait(60)
        is_over.set()

    assert status == 128 + number
    assert "Traceback" not in server.output()
    assert [path.name for path in tmp_path.iterdir()] == ["server.log"]
