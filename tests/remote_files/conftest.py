"""Stores to fetch from, without the credentials of whoever runs the tests."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from urllib.parse import parse_qs, quote

import boto3
import botocore.session
import pytest
from moto.server import ThreadedMotoServer

from policy_server.settings import Settings
from tests.support.servers import Handler, in_thread
from tests.support.stores import BUCKET, Reply, S3Client, WebServer, digest


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith(("AWS_", "GOOGLE_", "STORAGE_", "POLICY_SERVER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[[], list[float]]:
    """Shorten the waits between attempts a hundredfold; return what gives them."""
    monkeypatch.setattr("policy_server.remote_files.download._FIRST_WAIT_S", 0.005)
    return lambda: [vars(item)["wait_s"] for item in caplog.records if "wait_s" in vars(item)]


@pytest.fixture(scope="package", autouse=True)
def _descriptions_read_once() -> Iterator[None]:
    """Have the clients of S3 share its description: to read it anew takes each of them 0.3 s."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A server on loopback, which speaks what https:// carries."""
    replies: dict[str, list[Reply]] = {}
    asked: list[tuple[str, dict[str, str]]] = []

    class Web(Handler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            asked.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
            path, _, query = self.path.partition("?")
            page = parse_qs(query).get("pageToken", [""])[0]
            queue = replies.get(path + page, [Reply(status=404)])
            reply = queue.pop(0) if len(queue) > 1 else queue[0]
            reply = reply.fitting(self.headers)
            self.send_response(reply.status)
            for key, value in reply.all_headers().items():
                self.send_header(key, value)
            self.end_headers()
            self.close_connection = True
            if self.command == "HEAD":
                return
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(reply.body), 65536):
                    time.sleep(reply.pause_s)
                    self.wfile.write(reply.body[start : start + 65536])

    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server,
        in_thread(partial(server.serve_forever, 0.01), server.shutdown),
    ):
        yield WebServer(f"http://127.0.0.1:{server.server_port}", replies, asked, server)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_client(s3_url: str) -> S3Client:
    """A client of a server with an empty bucket."""
    session = boto3.session.Session("id", "hush", region_name="us-east-1")
    client: S3Client = session.client("s3", endpoint_url=s3_url)
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture
def s3(s3_url: str, s3_client: S3Client, monkeypatch: pytest.MonkeyPatch) -> S3Client:
    """A client, and its server's address and credentials in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    return s3_client


@pytest.fixture
def google(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], None]:
    """A part of Google Cloud Storage's JSON API: objects' metadata and content, and their list."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", web.url)
    objects: dict[str, dict[str, str]] = {}
    is_json = {"Content-Type": "application/json"}

    def put(key: str, content: bytes) -> None:
        objects[key] = {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": key,
            "size": str(len(content)),
            "generation": str(len(web.asked) + 1),
            "etag": digest(content)[:8],
        }
        path = f"storage/v1/b/{BUCKET}/o"
        quoted = quote(key, safe="")
        web.answer(f"/{path}/{quoted}", Reply(json.dumps(objects[key]).encode(), headers=is_json))
        web.answer(f"/download/{path}/{quoted}", Reply(content, has_ranges=True))
        items = list(objects.values())
        pages = [items[at : at + 2] for at in range(0, len(items), 2)]
        for number, page in enumerate(pages):
            listing: dict[str, object] = {"kind": "storage#objects", "items": page}
            if number + 1 < len(pages):
                listing["nextPageToken"] = f"#{number + 1}"
            number_in_path = f"#{number}" if number else ""
            reply = Reply(json.dumps(listing).encode(), headers=is_json)
            web.answer(f"/{path}{number_in_path}", reply)

    return put
