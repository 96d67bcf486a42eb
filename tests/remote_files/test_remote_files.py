"""Remote files: real stores on this machine, and what is left on the disk after each failure."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import ssl
import stat
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from pydantic import SecretStr

import generate
from policy_server.commands.fetch import fetch as fetch_command
from policy_server.errors import ModelError, SchemaError, SettingsError
from policy_server.remote_files import bring_files, fetch_files, parse_uri
from policy_server.remote_files.failures import RedirectError
from policy_server.remote_files.stores import http_session
from policy_server.settings import Settings
from tests.support.certificates import write_certificate
from tests.support.command_line import type_in
from tests.support.folders import ROOT
from tests.support.servers import Handler, answered_by
from tests.support.stores import (
    BUCKET,
    Reply,
    S3Client,
    WebServer,
    assert_refused,
    contents,
    digest,
    fetch,
    pass_any,
    policy,
    put_old,
    uri,
)

SCHEMA = b"parameters: {api_key: remote}\n"
NEW = policy("new")
EXAMPLES = ROOT / "examples"
SERVABLE = (EXAMPLES / "mouse_and_cheese" / "saved_model.zip").read_bytes()

# Addresses


@pytest.mark.parametrize(
    ("text", "scheme", "address", "public"),
    [
        ("s3://b/a/k.zip", "s3", "s3://b/a/k.zip", "s3://b/a/k.zip"),
        ("S3://b/K", "s3", "s3://b/K", "s3://b/K"),
        ("gs://b/k", "gs", "gs://b/k", "gs://b/k"),
        (
            "https://h/p?X-Amz-Signature=hush",
            "https",
            "https://h/p?X-Amz-Signature=hush",
            "https://h/p?...",
        ),
        ("http://127.0.0.1:80/p", "http", "http://127.0.0.1:80/p", "http://127.0.0.1:80/p"),
        ("http://[::1]/p", "http", "http://[::1]/p", "http://[::1]/p"),
        ("http://localhost/p", "http", "http://localhost/p", "http://localhost/p"),
        ("file:///a%20b.zip", "file", "/a b.zip", "file:///a%20b.zip"),
        ("a/b.zip", "file", "a/b.zip", "a/b.zip"),
    ],
)
def test_address_is_read(text: str, scheme: str, address: str, public: str) -> None:
    for pin in (None, "AB" * 32):
        found = uri(text if pin is None else f"{text}#sha256={pin}")

        assert (found.scheme, found.address, found.public) == (scheme, address, public)
        assert found.sha256 == (None if pin is None else pin.lower())
        assert "hush" not in repr(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://h/p", "expected s3://, gs://, https://, file:// or a path, got ftp://"),
        ("", "expected an address, got none"),
        ("s3://bucket", "expected s3://bucket/key, got s3://bucket"),
        ("gs:///key", "expected gs://bucket/key, got gs:///key"),
        ("file://host/p", "expected file:///path, got file://host/p"),
        ("https:///p", "expected https://host/path, got https:///p"),
        ("https://[h/p?hush", "can't be read as one"),
        ("http://store.example/p", "use https://, or pin the content with #sha256="),
        ("s3://b/k#sha256=12", "64 hexadecimal digits behind the address, got '#sha256=12'"),
        ("s3://b/k#md5=12", "expected #sha256= and 64 hexadecimal digits"),
        ("https://me:hush@h/p", "credentials come from ~/.netrc only"),
        ("https://hush@h/p", "holds a user or a password"),
        ("s3://id:hush@b/k", "credentials come from AWS's variables, profiles and roles only"),
        ("s3://id:hu/hush@b/k", "holds a user or a password"),
        ("gs://hush@b/k", "Google's application default credentials only"),
        ("gs://id:hu/hush@b/k", "holds a user or a password"),
        ("https://me:hu/hush@h/p", "an @ behind the port is written as %40"),
        ("https://me:12/hush@h/p", "holds a user or a password"),
        ("http://me:hush?hush@127.0.0.1/p", "holds a user or a password"),
        ("https://me:hu#hush@h/p", "64 hexadecimal digits behind the address, got other text"),
        (
            f"https://h/p#sha256={'a' * 64}?X-Amz-Signature=hush",
            "behind the address, got other text",
        ),
        ("https://h/p#sha256=12&X-Amz-Signature=hush", "behind the address, got other text"),
        ("https://me:hush/p", "expected a number from 0 to 65535 as the port behind the host"),
        ("https://h:65536/p", "expected a number from 0 to 65535 as the port behind the host"),
    ],
)
def test_address_that_cannot_be_used_is_one_line(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_uri(text, name="POLICY_SERVER_MODEL_URI")

    assert caught.value.message.startswith("POLICY_SERVER_MODEL_URI: ")
    assert message in caught.value.message
    assert "hush" not in caught.value.message


def test_plain_http_is_for_this_machine_or_for_pinned_content() -> None:
    assert uri(f"http://store.example/p#sha256={'0' * 64}").scheme == "http"


# From each store


def test_pair_is_fetched_from_s3_and_unzipped(s3: S3Client, settings: Settings) -> None:
    s3.put_object(Bucket=BUCKET, Key="a b/model.zip", Body=NEW)
    s3.put_object(Bucket=BUCKET, Key="schema.yaml", Body=SCHEMA)
    put_old(settings)

    states = fetch(settings, f"s3://{BUCKET}/a b/model.zip", f"s3://{BUCKET}/schema.yaml")

    assert states == ["fetched", "fetched"]
    assert settings.zip_path.read_bytes() == NEW
    assert settings.schema_path.read_bytes() == SCHEMA
    assert (settings.models_path / "saved_model.pb").read_text() == "new"
    assert not (settings.home / ".incoming").exists()


def test_s3_object_is_fetched_again_only_when_it_has_changed(
    s3: S3Client, settings: Settings
) -> None:
    address = f"s3://{BUCKET}/model.zip"
    s3.put_object(Bucket=BUCKET, Key="model.zip", Body=NEW)

    assert fetch(settings, address) == ["fetched"]
    assert fetch(settings, address) == ["unchanged"]
    settings.zip_path.write_bytes(policy("by hand"))
    assert fetch(settings, address) == ["fetched"]
    newer = policy("newer")
    s3.put_object(Bucket=BUCKET, Key="model.zip", Body=newer)
    assert fetch(settings, address) == ["fetched"]
    assert settings.zip_path.read_bytes() == newer


def test_version_of_an_s3_object_may_be_named(s3: S3Client, settings: Settings) -> None:
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket=BUCKET, Key="versions.zip", Body=NEW)["VersionId"]
    s3.put_object(Bucket=BUCKET, Key="versions.zip", Body=policy("newer"))

    fetch(settings, f"s3://{BUCKET}/versions.zip?versionId={first}")

    assert settings.zip_path.read_bytes() == NEW


@pytest.mark.usefixtures("s3")
def test_missing_s3_objects_are_one_line_and_not_tried_again(
    settings: Settings, waits: Callable[[], list[float]]
) -> None:
    assert_refused(settings, f"s3://{BUCKET}/none", f"s3://{BUCKET}/none: not found (404")
    assert_refused(settings, "s3://no-such-bucket/none", "not found (404")
    assert_refused(settings, "s3://B!/none", "can't be asked for: Parameter validation failed")
    assert waits() == []


@pytest.mark.usefixtures("s3")
def test_s3_without_credentials_says_where_they_come_from(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    assert_refused(settings, f"s3://{BUCKET}/k", "no credentials", "AWS_ACCESS_KEY_ID and")


@pytest.mark.usefixtures("s3")
def test_s3_that_is_down_is_tried_again(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    unused_tcp_port: int,
    waits: Callable[[], list[float]],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused_tcp_port}")

    assert_refused(settings, f"s3://{BUCKET}/k", "can't be reached; tried 4 times")

    assert len(waits()) == 3


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("endpoint", ["minio:9000", "minio.example"])
def test_endpoint_that_is_no_address_is_named(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str,
    waits: Callable[[], list[float]],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)

    assert_refused(settings, f"s3://{BUCKET}/k", f"s3://{BUCKET}/k: ", "AWS_ENDPOINT_URL")
    assert_refused(settings, f"s3://{BUCKET}/k/", f"s3://{BUCKET}/k/: ", "AWS_ENDPOINT_URL")
    assert waits() == []


@pytest.mark.parametrize("endpoint", ["store:9000", "http://store:port"])
def test_emulator_that_is_no_address_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)

    assert_refused(settings, f"gs://{BUCKET}/k", f"gs://{BUCKET}/k: ", "STORAGE_EMULATOR_HOST")


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "access denied (403 Forbidden)"), (503, "answered 503 Service Unavailable; tried 4")],
)
def test_s3_errors_pass_or_last(
    web: WebServer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    message: str,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    web.answer(f"/{BUCKET}/k", Reply(status=status))

    assert_refused(settings, f"s3://{BUCKET}/k", message)


def test_pair_is_fetched_from_google(
    google: Callable[[str, bytes], None], settings: Settings
) -> None:
    big = policy("new", padding=9 * 1024 * 1024)
    google("a/model.zip", big)
    google("schema.yaml", SCHEMA)
    addresses = f"gs://{BUCKET}/a/model.zip", f"gs://{BUCKET}/schema.yaml"

    assert fetch(settings, *addresses) == ["fetched", "fetched"]
    assert settings.zip_path.read_bytes() == big
    assert fetch(settings, *addresses) == ["unchanged", "unchanged"]
    google("a/model.zip", NEW)
    assert fetch(settings, *addresses) == ["unchanged", "fetched"]
    assert settings.zip_path.read_bytes() == NEW


@pytest.mark.usefixtures("google")
def test_google_errors_pass_or_last(
    web: WebServer,
    settings: Settings,
    waits: Callable[[], list[float]],
) -> None:
    assert_refused(settings, f"gs://{BUCKET}/none", f"gs://{BUCKET}/none: not found")
    web.answer(f"/storage/v1/b/{BUCKET}/o/none", Reply(status=403))
    assert_refused(settings, f"gs://{BUCKET}/none", "access denied (403 Forbidden)", "gcloud auth")
    assert waits() == []
    web.answer(f"/storage/v1/b/{BUCKET}/o/none", Reply(status=503))
    assert_refused(settings, f"gs://{BUCKET}/none", "answered 503 Service Unavailable; tried 4")


def test_google_object_that_is_overwritten_meanwhile_is_asked_for_again(
    google: Callable[[str, bytes], None], web: WebServer, settings: Settings
) -> None:
    google("model.zip", NEW)
    path = f"/download/storage/v1/b/{BUCKET}/o/model.zip"
    # The generation that was found is gone once another is there.
    web.answer(path, Reply(status=404), *web.replies[path])

    assert fetch(settings, f"gs://{BUCKET}/model.zip") == ["fetched"]


def test_google_object_that_is_overwritten_before_it_is_opened_is_asked_for_again(
    google: Callable[[str, bytes], None], web: WebServer, settings: Settings
) -> None:
    google("model.zip", NEW)
    path = f"/storage/v1/b/{BUCKET}/o/model.zip"
    found = web.replies[path][0]
    web.answer(path, found, Reply(status=404), found)

    assert fetch(settings, f"gs://{BUCKET}/model.zip") == ["fetched"]


def test_google_without_credentials_says_where_they_come_from(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))

    assert_refused(settings, f"gs://{BUCKET}/k", "no credentials", "GOOGLE_APPLICATION_CREDENTIALS")


@pytest.mark.parametrize("form", ["model.zip", "{}/model.zip", "file://{}/model.zip"])
def test_pair_is_fetched_from_files(settings: Settings, tmp_path: Path, form: str) -> None:
    (tmp_path / "model.zip").write_bytes(NEW)
    (tmp_path / "it.yaml").write_bytes(SCHEMA)

    fetch(settings, form.format(tmp_path), str(tmp_path / "it.yaml"))

    assert settings.zip_path.read_bytes() == NEW
    assert settings.schema_path.read_bytes() == SCHEMA


@pytest.mark.parametrize("policy_name", ["model.zip", "policy.onnx"])
def test_files_of_this_machine_stay_as_private_as_they_are(
    settings: Settings, tmp_path: Path, policy_name: str
) -> None:
    onnx = ROOT / "tests/data/policies/onnx_actor_logits_dynamic/policy.onnx"
    contents_of = {policy_name: NEW if policy_name == "model.zip" else onnx.read_bytes()}
    for name, content in {**contents_of, "it.yaml": SCHEMA}.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)

    fetch(settings, policy_name, "it.yaml")

    fetched = settings.zip_path, settings.schema_path
    assert [stat.S_IMODE(path.stat().st_mode) for path in fetched] == [0o600] * 2


def test_files_that_are_not_there_are_one_line(settings: Settings, tmp_path: Path) -> None:
    assert_refused(settings, "none.zip", "none.zip: not found")
    assert_refused(settings, str(tmp_path), "holds no files; check the address")
    assert_refused(settings, f"{__file__}/x", "can't be read: Not a directory")


# The web


def test_policy_that_is_one_file_is_zipped_and_pinned_by_itself(
    web: WebServer, settings: Settings
) -> None:
    content = (ROOT / "tests/data/policies/onnx_actor_logits_dynamic/policy.onnx").read_bytes()
    address = web.answer("/runs/walk%20er.onnx", Reply(content, headers={"ETag": '"1"'}))
    pinned = f"{address}#sha256={digest(content)}"
    put_old(settings)

    assert_refused(settings, f"{address}#sha256={'0' * 64}", f"got {digest(content)}; refused")
    assert fetch(settings, address) == ["fetched"]

    assert zipfile.ZipFile(settings.zip_path).namelist() == ["walk%20er.onnx"]
    assert (settings.models_path / "walk%20er.onnx").read_bytes() == content
    before = contents(settings.home)
    web.answer("/runs/walk%20er.onnx", Reply(status=404))
    assert fetch(settings, pinned) == ["unchanged"]
    assert contents(settings.home) == before


def test_zip_of_any_name_is_kept_as_it_is(web: WebServer, settings: Settings) -> None:
    content = (ROOT / "tests/data/policies/keras_actor_softmax/actor.keras").read_bytes()
    address = web.answer("/runs/actor.keras", Reply(content))

    assert fetch(settings, f"{address}#sha256={digest(content)}") == ["fetched"]

    assert settings.zip_path.read_bytes() == content
    assert (settings.models_path / "model.weights.h5").is_file()


def test_passing_errors_are_tried_again_with_growing_waits(
    web: WebServer,
    settings: Settings,
    waits: Callable[[], list[float]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "policy_server")
    address = web.answer("/m", Reply(status=500), Reply(status=500), Reply(NEW))

    assert fetch(settings, f"{address}?X-Amz-Signature=hush") == ["fetched"]

    assert settings.zip_path.read_bytes() == NEW
    first, second = waits()
    assert 0.005 <= first <= 0.0075
    assert 0.010 <= second <= 0.015
    events = [record.message for record in caplog.records if record.name.startswith("policy_")]
    assert events == [
        "fetch_started",
        "fetch_retried",
        "fetch_retried",
        "fetched",
        "model_unpacked",
        "model_unpacked",
    ]
    assert "hush" not in "".join(str(vars(record)) for record in caplog.records)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_lasting_errors_are_not_tried_again(
    web: WebServer, settings: Settings, status: int, waits: Callable[[], list[float]]
) -> None:
    address = web.answer("/m", Reply(status=status))

    message = assert_refused(settings, f"{address}?X-Amz-Signature=hush", f"{address}?...: ")

    assert str(status) in message
    assert "hush" not in message
    assert (len(web.asked), waits()) == (1, [])


def test_body_that_breaks_off_is_tried_again(web: WebServer, settings: Settings) -> None:
    address = web.answer("/m", Reply(NEW[:-5], announced=len(NEW)), Reply(NEW))

    assert fetch(settings, address) == ["fetched"]
    assert settings.zip_path.read_bytes() == NEW


def test_body_that_always_breaks_off_changes_nothing(web: WebServer, settings: Settings) -> None:
    put_old(settings)
    address = web.answer("/m", Reply(NEW[:-5], announced=len(NEW)))

    assert_refused(settings, address, "tried 4 times")


def test_redirects_are_followed_to_a_point(web: WebServer, settings: Settings) -> None:
    web.answer("/b", Reply(NEW))
    address = web.answer("/a", Reply(status=302, headers={"Location": "/b"}))
    assert fetch(settings, address) == ["fetched"]

    web.answer("/a", Reply(status=302, headers={"Location": "/a"}))
    assert_refused(settings, address, "redirects without end")


def test_redirect_from_https_to_an_open_address_is_refused(web: WebServer) -> None:
    session = http_session(is_open_allowed=False)
    with pytest.raises(RedirectError, match="not encrypted"):
        session.get("http://store.example/p", timeout=1)
    web.answer("/a", Reply(status=302, headers={"Location": "http://store.example/p"}))
    with pytest.raises(RedirectError, match="not encrypted"):
        session.get(f"{web.url}/a", timeout=1)


def test_credentials_come_from_netrc_and_go_nowhere_unencrypted(
    web: WebServer, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login me password hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch(settings, web.answer("/m", Reply(NEW)))
    # As a proxy, the web server sees what is sent to any other.
    monkeypatch.setenv("http_proxy", web.url)
    web.answer("http://store.example/m", Reply(policy("other")))
    other = web.replies["http://store.example/m"][0].body

    fetch(settings, f"http://store.example/m#sha256={digest(other)}")

    assert settings.zip_path.read_bytes() == other
    assert [path for path, _ in web.asked] == ["/m", "http://store.example/m"]
    assert ["authorization" in headers for _, headers in web.asked] == [True, False]


@pytest.mark.parametrize("is_pinned", [True, False], ids=["pinned", "unpinned"])
def test_redirect_to_an_open_address_is_followed_for_pinned_content_alone(
    web: WebServer, settings: Settings, monkeypatch: pytest.MonkeyPatch, *, is_pinned: bool
) -> None:
    # As a proxy, the web server sees what is sent to any other.
    monkeypatch.setenv("http_proxy", web.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    web.answer("http://store.example/m", Reply(NEW))
    there = {"Location": "http://store.example/m"}
    address = web.answer("/a", Reply(status=302, headers=there))

    if is_pinned:
        assert fetch(settings, f"{address}#sha256={digest(NEW)}") == ["fetched"]
    else:
        assert_refused(settings, address, "redirects to an address that is not encrypted; refused")
        assert [path for path, _ in web.asked] == ["/a"]


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("304 Not Modified\r\n", "answered 304 Not Modified, and no version was named"),
        ("302 Found\r\nLocation: /\xff\xfe\r\n", "the answer can't be read"),
        (f"200 OK\r\nContent-Length: {'9' * 5000}\r\n", "the answer can't be read"),
    ],
    ids=["not-modified", "location", "size"],
)
def test_answer_against_the_protocol_is_one_line(settings: Settings, head: str, says: str) -> None:
    class Wrong(Handler):
        def answer(self) -> None:
            self.wfile.write(f"HTTP/1.0 {head}\r\n".encode("latin-1"))

    with answered_by(Wrong) as url:
        assert_refused(settings, f"{url}/m?X-Amz-Signature=hush", f"{url}/m?...: ", says)


_OK = b"HTTP/1.1 200 OK\r\n"
_SHORT = b"Content-Length: 1\r\n\r\nx"
_MOVED = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n"
_TRIED = "; tried 4 times"
_NO_ADDRESS = "is no address that can be asked, or redirects to such a one"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "answered, but not in HTTP; is it a web server?" + _TRIED),
        (b"HTTP/1.1 abc OK\r\n\r\n", "answered, but not in HTTP; is it a web server?" + _TRIED),
        (b"HTTP/3.7 200 OK\r\n\r\n", "answered, but not in HTTP; is it a web server?" + _TRIED),
        (
            _OK + b"".join(b"X-%d: y\r\n" % number for number in range(300)) + _SHORT,
            "answered with more than 100 headers" + _TRIED,
        ),
        (
            _OK + b"X: " + b"y" * 100_000 + b"\r\n" + _SHORT,
            "answered with a line of more than 65536 bytes among its headers" + _TRIED,
        ),
        (
            b"HTTP/1.1 200 " + b"y" * 100_000 + b"\r\n" + _SHORT,
            "answered with a line of more than 65536 bytes among its headers" + _TRIED,
        ),
        (b"", "ended the connection without an answer" + _TRIED),
        (
            _OK + b"Content-Length: 2\r\n" + _SHORT,
            "answered with headers that contradict each other",
        ),
        (_MOVED % b"file:///etc/passwd", "redirects to an address without https://; refused"),
        (_MOVED % b"ftp://store.example/p", "redirects to an address without https://; refused"),
        (_MOVED % b"mailto:me@store.example", "redirects to an address without https://; refused"),
        (_MOVED % b"http://127.0.0.1:99999/", _NO_ADDRESS),
        (_MOVED % (b"https://" + b"a" * 70 + b".com/"), _NO_ADDRESS),
        (_MOVED % b"https://[::1/p", "the answer can't be read"),
    ],
    ids=[
        *("ssh", "status", "version", "many headers", "long header", "long status", "nothing"),
        *("two sizes", "file", "ftp", "mailto", "port", "host", "brackets"),
    ],
)
def test_answer_of_a_broken_web_server_is_told_as_it_is(
    settings: Settings, answer: bytes, says: str
) -> None:
    class Broken(Handler):
        def answer(self) -> None:
            self.wfile.write(answer)

    with answered_by(Broken) as url:
        message = assert_refused(settings, f"{url}/m?X-Amz-Signature=hush", f"{url}/m?...: {says}")

    assert "can't be reached" not in message


def test_server_that_speaks_no_tls_is_not_told_as_one_of_a_wrong_certificate(
    web: WebServer, settings: Settings
) -> None:
    address = web.answer("/m", Reply(NEW)).replace("http://", "https://")

    assert_refused(
        settings, address, "no encrypted connection can be made; does it serve https://?"
    )


@pytest.mark.parametrize("content", ["", "no certificate"])
def test_file_of_authorities_that_has_none_is_not_told_as_a_fault_of_the_server(
    content: str,
    web: WebServer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "authorities.pem").write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authorities.pem"))
    address = web.answer("/m", Reply(NEW)).replace("http://", "https://")

    assert_refused(
        settings, address, "expected certificates in PEM in the file that REQUESTS_CA_BUNDLE or"
    )


def test_https_needs_a_certificate_that_can_be_verified(
    web: WebServer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    waits: Callable[[], list[float]],
) -> None:
    write_certificate(tmp_path / "certificate.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem")
    web.server.socket = context.wrap_socket(web.server.socket, server_side=True)
    address = web.answer("/m", Reply(NEW)).replace("http://", "https://")

    assert_refused(settings, address, "its certificate can't be verified; REQUESTS_CA_BUNDLE")
    assert waits() == []

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
    assert fetch(settings, address) == ["fetched"]


def test_etag_keeps_what_has_not_changed(web: WebServer, settings: Settings) -> None:
    address = web.answer("/m", Reply(NEW, headers={"ETag": '"1"'}))

    assert fetch(settings, address) == ["fetched"]
    assert fetch(settings, address) == ["unchanged"]
    # Another address is another file, whatever its ETag.
    fetch(settings, f"{address}?other")
    assert [headers.get("if-none-match") for _, headers in web.asked] == [None, '"1"', None]


def test_the_same_content_does_not_replace_the_files(web: WebServer, settings: Settings) -> None:
    addresses = web.answer("/m", Reply(NEW)), web.answer("/s", Reply(SCHEMA))
    assert fetch(settings, *addresses) == ["fetched", "fetched"]
    before = settings.zip_path.stat()

    assert fetch(settings, *addresses) == ["unchanged", "unchanged"]

    assert len(web.asked) == 4
    assert settings.zip_path.stat().st_ino == before.st_ino


def test_longest_time_of_a_download_is_no_bound(web: WebServer, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", download_timeout_s=9e12)
    address = web.answer("/m", Reply(policy("new")))

    assert fetch(settings, address) == ["fetched"]


def test_silence_is_said(web: WebServer, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", download_timeout_s=0.2)
    address = web.answer("/m", Reply(NEW, pause_s=1))

    message = assert_refused(settings, address, "in 0.2 s")
    assert re.search(r"no answer|0 of \d+ bytes came", message)


def test_slow_store_is_given_up(web: WebServer, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", download_timeout_s=1)
    big = policy("new", padding=1 << 20)
    address = web.answer("/m", Reply(big, pause_s=0.2))

    assert_refused(
        settings, address, f"of {len(big)} bytes came in 1 s; raise POLICY_SERVER_DOWNLOAD_TIME"
    )


@contextlib.contextmanager
def trickling(start: bytes, piece: bytes) -> Iterator[str]:
    """Answer each request with `start`, then with a piece every 20 ms for a long while."""
    is_over = threading.Event()

    class Trickling(Handler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.recv(65536)
                self.request.sendall(start)
                while not is_over.wait(0.02):
                    self.request.sendall(piece)

    with answered_by(Trickling) as url:
        yield url
        is_over.set()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("start", "piece", "says"),
    [
        (b"", b"H", "no answer in 0.6 s; raise"),
        (OK, b"x-more: 1\r\n", "no answer in 0.6 s; raise"),
        (OK + b"content-length: 5000\r\n\r\n", b"x", r"\d\d? of 5000 bytes came in 0.6 s; raise"),
        (OK + b"\r\n", b"x", r"\d\d? bytes came in 0.6 s; raise"),
        (
            OK + b"transfer-encoding: chunked\r\n\r\n",
            b"1\r\nx\r\n",
            r"\d\d? bytes came in 0.6 s; raise",
        ),
    ],
    ids=["status", "headers", "body", "body without an end", "chunks"],
)
def test_store_that_trickles_is_given_up_at_the_deadline(
    start: bytes, piece: bytes, says: str, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path / "home", download_timeout_s=0.6)
    with trickling(start, piece) as url:
        started = time.monotonic()
        message = assert_refused(settings, f"{url}/m")

    # What is more than the deadline is this machine's.
    assert time.monotonic() - started < 3
    assert re.search(says, message)


def test_deadline_holds_for_s3_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    # Its libraries take a while to import.
    settings = Settings(home=tmp_path / "home", download_timeout_s=3)
    with trickling(OK + b"content-length: 5000\r\n\r\n", b"x") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        started = time.monotonic()
        assert_refused(settings, "s3://bucket/m", " in 3 s; raise")

    assert time.monotonic() - started < 6


@pytest.mark.parametrize("is_sized", [True, False], ids=["announced", "unannounced"])
def test_too_large_a_file_is_refused(web: WebServer, tmp_path: Path, *, is_sized: bool) -> None:
    settings = Settings(home=tmp_path / "home", max_unpacked_bytes=100_000)
    address = web.answer("/m", Reply(bytes(300_000), is_sized=is_sized))

    assert_refused(settings, address, "and POLICY_SERVER_MAX_UNPACKED_BYTES=100000 is the most")


def test_too_large_a_schema_is_refused(web: WebServer, settings: Settings) -> None:
    model, schema = web.answer("/m", Reply(NEW)), web.answer("/s", Reply(bytes(1 << 21)))

    with pytest.raises(ModelError, match=r"1048576 of a schema\.yaml is the most"):
        fetch(settings, model, schema)
    assert contents(settings.home) == {}


def test_progress_is_told_in_bytes(web: WebServer, settings: Settings) -> None:
    big = policy("new", padding=200_000)
    told: list[tuple[int, int]] = []

    fetch_files(
        settings,
        model=uri(web.answer("/m", Reply(big))),
        schema=None,
        check=pass_any,
        on_progress=lambda done, total: told.append((done, total)),
    )

    assert {total for _, total in told} == {len(big)}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len({done for done, _ in told}) > 2
    assert told[-1] == (len(big), len(big))


# Pins, soundness and the copy that is there


def test_pin_is_held_against_the_content(web: WebServer, settings: Settings) -> None:
    put_old(settings)
    address = web.answer("/m", Reply(NEW))
    wrong = "0" * 64

    assert_refused(
        settings,
        f"{address}#sha256={wrong}",
        f"expected sha256 {wrong}, got {digest(NEW)}; refused",
    )

    assert fetch(settings, f"{address}#sha256={digest(NEW).upper()}") == ["fetched"]


def test_pinned_files_that_are_there_need_no_store(settings: Settings) -> None:
    settings.home.mkdir()
    settings.zip_path.write_bytes(NEW)
    settings.schema_path.write_bytes(SCHEMA)

    states = fetch(
        settings,
        f"s3://{BUCKET}/m#sha256={digest(NEW)}",
        f"https://nowhere.invalid/s#sha256={digest(SCHEMA)}",
    )

    assert states == ["unchanged", "unchanged"]
    assert sorted(contents(settings.home)) == ["saved_model.zip", "schema.yaml"]


@pytest.mark.parametrize(
    ("model", "schema", "error", "message"),
    [
        (b"no zip", SCHEMA, ModelError, "/m: is no zip file or is damaged"),
        (NEW, b"parameters: {key: 1}", SchemaError, "/s: parameters.key"),
        (NEW, b"\xff", SchemaError, "expected text in UTF-8"),
    ],
    ids=["no-zip", "wrong-schema", "no-text"],
)
def test_files_that_are_not_sound_change_nothing(
    web: WebServer,
    settings: Settings,
    model: bytes,
    schema: bytes,
    error: type[Exception],
    message: str,
) -> None:
    before = put_old(settings)

    with pytest.raises(error, match=message) as caught:
        fetch(settings, web.answer("/m", Reply(model)), web.answer("/s", Reply(schema)))

    assert str(caught.value).startswith(web.url)
    assert contents(settings.home) == before


def test_record_that_can_not_be_written_changes_nothing(web: WebServer, settings: Settings) -> None:
    before = put_old(settings)
    # A folder in a file's place can't be replaced by a file.
    (settings.home / ".fetched.json").mkdir()

    with pytest.raises(ModelError, match=r"\.fetched\.json: can't be changed"):
        fetch(settings, web.answer("/m", Reply(NEW)), web.answer("/s", Reply(SCHEMA)))

    assert contents(settings.home) == before


@pytest.mark.parametrize("case", ["pair", "model", "schema"])
def test_what_can_not_be_served_changes_nothing(
    web: WebServer, settings: Settings, case: str
) -> None:
    before = put_old(settings)
    model = None if case == "schema" else uri(web.answer("/m", Reply(NEW)))
    schema = None if case == "model" else uri(web.answer("/s", Reply(SCHEMA)))
    asked: list[tuple[str, str]] = []

    def refuse(folder: Path, path: Path | None) -> None:
        assert path is not None
        asked.append(((folder / "saved_model.pb").read_text(), path.read_text()))
        raise ModelError("unservable")

    with pytest.raises(ModelError, match="unservable"):
        fetch_files(settings, model=model, schema=schema, check=refuse)

    held = ("old" if case == "schema" else "new", SCHEMA if model is None or schema else None)
    assert asked == [(held[0], (held[1] or before["schema.yaml"]).decode())]
    assert contents(settings.home) == before


def served_from(web: WebServer, home: Path) -> Settings:
    return Settings(
        home=home,
        model_uri=SecretStr(f"{web.url}/m?signature=hush"),
        schema_uri=SecretStr(f"{web.url}/s"),
    )


def test_store_that_is_down_leaves_the_fetched_pair(
    web: WebServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = served_from(web, tmp_path / "home")
    web.answer("/m", Reply(NEW))
    web.answer("/s", Reply(SCHEMA))
    bring_files(settings, check=pass_any)
    before = contents(settings.home)
    web.answer("/s", Reply(SCHEMA + b"# newer\n"))
    web.answer("/m", Reply(status=503))

    bring_files(settings, check=pass_any)

    # The new schema is not taken without its model.
    assert contents(settings.home) == before
    record = caplog.records[-1]
    assert record.levelname == "WARNING"
    assert record.message == "fetch_failed_and_copy_served"
    assert "answered 503 Service Unavailable; tried 4 times" in vars(record)["reason"]
    assert "hush" not in str(vars(record))


@pytest.mark.parametrize("case", ["never fetched", "other address", "by hand", "denied", "pinned"])
def test_copy_is_not_served_for_anything_else(web: WebServer, tmp_path: Path, case: str) -> None:
    settings = served_from(web, tmp_path / "home")
    web.answer("/m", Reply(NEW))
    web.answer("/s", Reply(SCHEMA))
    if case == "never fetched":
        put_old(settings)
    else:
        bring_files(settings, check=pass_any)
    web.answer("/m", Reply(status=403 if case == "denied" else 503))
    pins = {"other address": "/m?v=2", "pinned": f"/m?signature=hush#sha256={'0' * 64}"}
    if case in pins:
        settings = settings.model_copy(update={"model_uri": SecretStr(web.url + pins[case])})
    if case == "by hand":
        settings.zip_path.write_bytes(policy("by hand"))

    with pytest.raises(ModelError, match=r"answered 503|access denied"):
        bring_files(settings, check=pass_any)


def test_damaged_record_is_no_error(web: WebServer, settings: Settings) -> None:
    address = web.answer("/m", Reply(NEW, headers={"ETag": '"1"'}))
    for record in ("", "[]", "{}", '{"saved_model.zip": {"x": 1}}', '{"saved_model.zip": 1}'):
        settings.home.mkdir(exist_ok=True)
        (settings.home / ".fetched.json").write_text(record)
        fetch(settings, address)
    assert [headers.get("if-none-match") for _, headers in web.asked] == [None] * 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("etag", value) for value in (5, True, ["a"], {"a": 1}, "a\nb", "中", " a", "a\0")),
        *(("identity", value) for value in (None, 5, ["a"])),
        *(("sha256", value) for value in (None, 5, "", "0" * 63, "g" * 64, ["a"])),
        *(("file_sha256", value) for value in (None, 5, ["a"])),
        *(("size", value) for value in (None, "5", -1, 1.5, True, [5])),
    ],
)
def test_record_with_a_damaged_field_is_as_none(
    web: WebServer, settings: Settings, field: str, value: object
) -> None:
    address = web.answer("/m", Reply(NEW, headers={"ETag": '"1"'}))
    fetch(settings, address)
    path = settings.home / ".fetched.json"
    good = path.read_text()
    record = json.loads(good)
    record["saved_model.zip"][field] = value
    path.write_text(json.dumps(record))

    assert fetch(settings, address) == ["unchanged"]

    assert [headers.get("if-none-match") for _, headers in web.asked] == [None, None]
    assert path.read_text() == good


@pytest.mark.parametrize("etag", ['W/"1"', "é", "a b", "", "a\tb"])
def test_any_etag_that_can_be_sent_is(web: WebServer, settings: Settings, etag: str) -> None:
    address = web.answer("/m", Reply(NEW, headers={"ETag": etag}))

    fetch(settings, address)
    fetch(settings, address)

    assert [headers.get("if-none-match") for _, headers in web.asked] == [None, etag or None]


def test_etag_that_cant_be_sent_back_is_not_kept(web: WebServer, settings: Settings) -> None:
    address = web.answer("/m", Reply(NEW, headers={"ETag": "a\x01b"}))

    fetch(settings, address)
    fetch(settings, address)

    assert [headers.get("if-none-match") for _, headers in web.asked] == [None, None]


def test_only_one_of_two_may_come_from_afar(web: WebServer, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", model_uri=SecretStr(web.answer("/m", Reply(NEW))))
    before = put_old(settings)

    bring_files(settings, check=pass_any)

    assert settings.zip_path.read_bytes() == NEW
    assert settings.schema_path.read_bytes() == before["schema.yaml"]


def test_setting_that_is_no_address_is_named(tmp_path: Path) -> None:
    for field_name in ("model_uri", "schema_uri"):
        settings = Settings(home=tmp_path).model_copy(update={field_name: SecretStr("ftp://x")})
        with pytest.raises(SettingsError, match=f"^POLICY_SERVER_{field_name.upper()}: expected"):
            bring_files(settings, check=pass_any)


def test_addresses_do_not_show_in_the_settings_text() -> None:
    assert "hush" not in repr(Settings(model_uri=SecretStr("https://h/p?hush")))


def test_start_removes_the_new_file_of_one_that_was_killed_while_it_wrote(tmp_path: Path) -> None:
    left = tmp_path / ".unfinished-0123456789abcdef"
    left.touch()
    os.utime(left, (1e9, 1e9))

    bring_files(Settings(home=tmp_path), check=pass_any)

    assert not left.exists()


def test_without_addresses_nothing_is_made(tmp_path: Path) -> None:
    bring_files(Settings(home=tmp_path / "home"), check=pass_any)

    assert not (tmp_path / "home").exists()


def test_folder_that_cannot_be_written_is_one_line(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "home").touch()

    with pytest.raises(ModelError, match=r"home: can't be changed: File exists"):
        fetch(Settings(home=tmp_path / "home"), web.answer("/m", Reply(NEW)))


def test_servers_that_start_together_fetch_once(web: WebServer, settings: Settings) -> None:
    address = web.answer("/m", Reply(NEW, headers={"ETag": '"1"'}))
    with ThreadPoolExecutor(4) as executor:
        fetched = list(executor.map(lambda _: fetch(settings, address), range(4)))

    states = [state for states in fetched for state in states]
    assert sorted(states) == ["fetched", "unchanged", "unchanged", "unchanged"]


# The command


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    """The command configures logging for its process, which here is the tests'."""
    names = ("policy_server", "uvicorn", "uvicorn.access", "uvicorn.error")
    loggers = [logging.getLogger(name) for name in names]
    before = [(item.handlers, item.propagate, item.level) for item in loggers]
    yield
    for item, (handlers, propagate, level) in zip(loggers, before, strict=True):
        item.handlers, item.propagate = handlers, propagate
        item.setLevel(level)


@pytest.mark.usefixtures("_logging_as_it_was")
def test_command_fetches_pair_and_says_so(
    web: WebServer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("POLICY_SERVER_HOME", str(settings.home))
    model = web.answer("/m", Reply(SERVABLE, headers={"ETag": '"1"'}))
    schema = web.answer("/s", Reply(SCHEMA))

    code, out, err = type_in("fetch", f"{model}?hush", "--schema-uri", schema)

    assert code == 0
    assert out == (
        f"fetched {settings.schema_path}: {len(SCHEMA)} bytes, sha256 {digest(SCHEMA)}\n"
        f"  from {schema}\n"
        f"fetched {settings.zip_path}: {len(SERVABLE)} bytes, sha256 {digest(SERVABLE)}\n"
        f"  from {model}?...\n"
        "serve the policy:  uvicorn app:app\n"
    )
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert events[:2] == ["fetch_started", "fetched"]
    assert generate.main(["fetch", f"{model}?hush"]) == 0
    assert capsys.readouterr().out.startswith(f"has already {settings.zip_path}: ")


class _Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("_logging_as_it_was")
def test_command_draws_a_bar_on_a_terminal(web: WebServer, settings: Settings) -> None:
    terminal = _Terminal()
    written = BytesIO(SERVABLE)
    with zipfile.ZipFile(written, "a") as archive:
        archive.writestr("assets/padding", os.urandom(200_000))
    big = written.getvalue()
    address = web.answer("/m", Reply(big, announced=len(big) + 1), Reply(big))

    lines = list(fetch_command(address, None, settings, terminal=terminal))

    assert lines[0] == f"fetched {settings.zip_path}: {len(big)} bytes, sha256 {digest(big)}"
    assert re.search(rf"\] \d+ of {len(big)}", terminal.getvalue())
    assert terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.usefixtures("_logging_as_it_was")
def test_command_without_a_schema_says_how_to_get_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLICY_SERVER_HOME", str(settings.home))
    Path("it.zip").write_bytes(SERVABLE)

    assert generate.main(["fetch", "it.zip"]) == 0

    assert "generate.py schema --output schema.yaml" in capsys.readouterr().out


@pytest.mark.usefixtures("_logging_as_it_was")
def test_command_says_what_is_wrong(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLICY_SERVER_HOME", str(settings.home))

    assert generate.main(["fetch", "none.zip"]) == 1
    assert generate.main(["fetch", "ftp://x", "--schema-uri", "x"]) == 2
    assert generate.main(["fetch", "x", "--schema-uri", "s3://x"]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("generate.py: ")][-2:] == [
        "generate.py: URI: expected s3://, gs://, https://, file:// or a path, got ftp://",
        "generate.py: --schema-uri: expected s3://bucket/key, got s3://x",
    ]


@pytest.mark.usefixtures("_logging_as_it_was")
def test_command_does_not_replace_a_policy_by_one_that_the_schema_does_not_fit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLICY_SERVER_HOME", str(settings.home))
    put_old(settings)
    settings.schema_path.write_bytes((EXAMPLES / "mouse_and_cheese/schema.yaml").read_bytes())
    before = contents(settings.home)

    assert generate.main(["fetch", str(EXAMPLES / "lpoc/saved_model.zip")]) == 1

    assert "gives 6 values, the policy expects 11; fetch the policy's own schema.yaml" in (
        capsys.readouterr().err
    )
    assert contents(settings.home) == before


@pytest.mark.usefixtures("_logging_as_it_was")
def test_command_fetches_a_first_policy_beside_the_schema_that_the_project_ships(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLICY_SERVER_HOME", str(settings.home))
    settings.home.mkdir()
    settings.schema_path.write_bytes((EXAMPLES / "mouse_and_cheese/schema.yaml").read_bytes())

    assert generate.main(["fetch", str(EXAMPLES / "lpoc/saved_model.zip")]) == 0

    assert "schema.yaml is the example's (mouse_and_cheese); draft" in capsys.readouterr().out
    assert settings.zip_path.exists()
