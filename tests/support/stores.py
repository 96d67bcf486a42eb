"""Stores of remote files on this machine, and what a fetch leaves on the disk."""

from __future__ import annotations

import hashlib
import http.server
import os
import zipfile
from dataclasses import dataclass, field
from email.message import Message
from io import BytesIO
from pathlib import Path
from typing import Protocol

import pytest

from policy_server.errors import PolicyServerError
from policy_server.remote_files import RemoteUri, fetch_files, parse_uri
from policy_server.settings import Settings

__all__ = [
    "BUCKET",
    "Reply",
    "S3Client",
    "WebServer",
    "assert_refused",
    "contents",
    "digest",
    "fetch",
    "pass_any",
    "policy",
    "put_old",
    "uri",
]

BUCKET = "policies"


def policy(content: str, *, padding: int = 0) -> bytes:
    """Return a zip that passes as a policy wherever TensorFlow is not asked."""
    written = BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("saved_model.pb", content)
        archive.writestr("variables/padding", os.urandom(padding))
    return written.getvalue()


def digest(content: bytes) -> str:
    """Return the SHA-256."""
    return hashlib.sha256(content).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file but the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def put_old(settings: Settings) -> dict[str, bytes]:
    """Put a pair in place by hand; return what lies there."""
    settings.home.mkdir()
    settings.schema_path.write_bytes(b"parameters: {api_key: old}\n")
    settings.zip_path.write_bytes(policy("old"))
    return contents(settings.home)


def pass_any(_model: Path, _schema: Path | None) -> None:
    """Stand in for the check that loads the policy."""


def uri(text: str) -> RemoteUri:
    return parse_uri(text, name="URI")


def fetch(settings: Settings, model: str, schema: str | None = None) -> list[str]:
    """Fetch; return the states."""
    files = fetch_files(
        settings,
        model=uri(model),
        schema=None if schema is None else uri(schema),
        check=pass_any,
    )
    return [file.state for file in files]


def assert_refused(settings: Settings, address: str, *says: str) -> str:
    """Hold that a fetch fails in one line, and that nothing has changed on the disk."""
    before = contents(settings.home) if settings.home.exists() else {}
    with pytest.raises(PolicyServerError) as caught:
        fetch(settings, address)
    assert (contents(settings.home) if settings.home.exists() else {}) == before
    message = caught.value.message
    assert "\n" not in message
    for words in says:
        assert words in message
    return message


class S3Client(Protocol):
    """The part of boto3's client that tests use; boto3 has no types."""

    def create_bucket(self, **arguments: str) -> object: ...

    def put_bucket_versioning(self, **arguments: object) -> object: ...

    def put_object(self, **arguments: object) -> dict[str, str]: ...


@dataclass
class Reply:
    """What a web server answers."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    is_sized: bool = True
    pause_s: float = 0.0
    has_ranges: bool = False

    def fitting(self, asked: Message[str, str]) -> Reply:
        """Return the answer to a request's If-None-Match and Range headers."""
        if "ETag" in self.headers and self.headers["ETag"] == asked.get("If-None-Match"):
            return Reply(status=304, is_sized=False)
        return self._part(asked["Range"]) if self.has_ranges and "Range" in asked else self

    def all_headers(self) -> dict[str, str]:
        size = len(self.body) if self.announced is None else self.announced
        sized = {"Content-Length": str(size)} if self.is_sized else {}
        return {**self.headers, **sized, "Connection": "close"}

    def _part(self, wanted: str) -> Reply:
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        body = self.body[int(first) : int(last) + 1]
        headers = {"Content-Range": f"bytes {first}-{int(first) + len(body) - 1}/{len(self.body)}"}
        return Reply(body, status=206, headers=headers)


@dataclass
class WebServer:
    """A web server that answers as it is told, and remembers what it was asked."""

    url: str
    replies: dict[str, list[Reply]]
    asked: list[tuple[str, dict[str, str]]]
    server: http.server.HTTPServer

    def answer(self, path: str, *replies: Reply) -> str:
        """Give these replies to the path, one after another, the last for ever; return its URL."""
        self.replies[path] = list(replies)
        return self.url + path
