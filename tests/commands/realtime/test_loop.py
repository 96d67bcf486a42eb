"""The command `realtime`, against servers in this process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from policy_server.commands.command_line import run
from policy_server.commands.program import Commands
from policy_server.http_server.http_protocol import HttpProtocol
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.metrics import Metrics
from tests.support.fakes import FakeBackend, integer_backend, summing_backend
from tests.support.pages import rendered
from tests.support.servers import Handler, answered_by, served_app
from tests.support.teams import build_team
from tests.support.web import KEY, build


class Places(NamedTuple):
    """The places where one server listens."""

    url: str
    uds: Path
    metrics: Metrics


def serving(folder: Path, backend: FakeBackend) -> Iterator[Places]:
    """Serve a policy on TCP and on a UNIX socket."""
    uds, metrics = folder / "socket", Metrics()
    app = build(backend, metrics=metrics)
    with served_app(app, uds=uds, http=HttpProtocol, ws=WebSocketProtocol) as port:
        yield Places(f"http://127.0.0.1:{port}", uds, metrics)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    yield from serving(tmp_path_factory.mktemp("plain"), integer_backend())


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    yield from serving(tmp_path_factory.mktemp("recurrent"), summing_backend())


def typed(*arguments: str) -> int:
    """Run the command with the key; return its exit code."""
    words = ["realtime", "--hz", "400", "--seconds", "0.1", "--key", KEY, *arguments]
    return run(Commands, words, program="python generate.py")


@pytest.mark.parametrize("transport", ["http", "stream"])
@pytest.mark.parametrize("way", ["TCP", "UNIX socket"])
def test_server_is_driven_by_each_way(
    places: Places, way: str, transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--url", places.url] if way == "TCP" else ["--uds", str(places.uds)]

    code = typed(*where, "--transport", transport, "--json", "--observation", "random")

    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["transport"] == f"{transport} over {way}"
    assert report["ticks"] == report["planned"] == 40
    policy = report["policies"][0]
    assert (policy["answers"], policy["errors"]) == (40, {})
    assert 0 < policy["round_trip_ms"]["p50"] <= policy["round_trip_ms"]["worst"]
    assert sum(bar["count"] for bar in policy["histogram"]) == 40


@pytest.mark.parametrize("transport", ["http", "stream"])
def test_policy_with_memory_is_asked_in_an_episode_that_is_ended(
    recurrent: Places, transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = "requests_total policy=default route=/sessions/{session_id} status=204"
    before = rendered(recurrent.metrics).get(ended, 0)

    assert typed("--url", recurrent.url, "--transport", transport, "--deterministic") == 0

    assert "40 of 40 ticks" in capsys.readouterr().out
    is_session = transport == "http"
    assert rendered(recurrent.metrics).get(ended, 0) - before == is_session


def test_several_policies_are_asked_at_each_tick(capsys: pytest.CaptureFixture[str]) -> None:
    app, _, _ = build_team()
    with served_app(app, http=HttpProtocol, ws=WebSocketProtocol) as port:
        code = typed("--url", f"http://127.0.0.1:{port}", "--policy", "prey,drone", "--json")

    policies = json.loads(capsys.readouterr().out)["policies"]
    assert code == 0
    assert [policy["policy"] for policy in policies] == ["prey", "drone"]
    assert [policy["answers"] for policy in policies] == [40, 40]


def test_picture_is_written_whole(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "loop.svg"

    assert typed("--url", places.url, "--picture", str(picture)) == 0

    assert ElementTree.parse(picture).getroot().tag.endswith("svg")  # noqa: S314 -- our own picture
    assert f"wrote {picture}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--observation", '{"cat": 1}'], "mouse: Field required"),
        (["--key", "wrong"], "wrong access key"),
        (["--policy", "nobody"], "/policies/nobody/schema: answered 404"),
        (["--uds", "nowhere"], "nowhere: no server answers there"),
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1: no server answers there"),
        (["--url", "http://["], "--url: expected an address such as"),
        (["--transport", "udp"], "--transport: expected one of http, stream, got 'udp'"),
        (["--hz", "0"], "--hz: expected more than 0"),
        (["--hz", "nan"], "--hz: expected more than 0"),
        (["--seconds", "-1"], "--seconds: expected more than 0"),
        (["--deadline-ms", "0"], "--deadline-ms: expected more than 0"),
        (["--spin-us", "-1"], "--spin-us: expected 0 or more"),
        (["--picture", "nowhere/loop.svg"], "--picture: there is no folder"),
    ],
    ids=lambda item: item[0] if isinstance(item, list) else "",
)
def test_mistake_is_said_in_a_line(
    places: Places, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = typed("--url", places.url, *arguments)

    caught = capsys.readouterr()
    assert code in (1, 2)
    assert says in caught.err
    assert caught.out == ""


class _Ends(Handler):
    """A server that answers 30 questions of the connection that it is driven by."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def answer(self) -> None:
        if self.command == "GET":
            self.reply(200, json.dumps({"policy": {"memory_width": 0}}).encode())
            return
        self.rfile.read(int(self.headers["content-length"]))
        self.asked += 1
        if self.asked == 30:
            self.end()
        else:
            self.reply(200, b"{}")

    def end(self) -> None:
        self.close_connection = True


class _Interrupts(_Ends):
    """A server whose user presses Ctrl-C in the middle."""

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        self.reply(200, b"{}")


@pytest.mark.parametrize(("handler", "code"), [(_Ends, 1), (_Interrupts, 130)])
def test_loop_that_ends_early_reports_what_was_measured(
    handler: type[_Ends], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with answered_by(handler) as url:
        assert typed("--url", url, "--observation", "[1]", "--seconds", "5") == code

    caught = capsys.readouterr()
    assert "9 of 2000 ticks" in caught.out
    assert ("closed the connection; 9 ticks were answered before" in caught.err) == (code == 1)


@pytest.mark.parametrize("transport", ["http", "stream"])
def test_user_and_password_of_the_address_are_sent_and_not_shown(
    transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, str]] = []

    class Proxy(_Ends):
        """A server that answers a question or two, and refuses streams."""

        def answer(self) -> None:
            seen.append((self.headers["host"], self.headers["authorization"]))
            if self.headers["upgrade"]:
                self.reply(403)
            else:
                super().answer()

    with answered_by(Proxy) as url:
        address = url.replace("http://", "http://me:hush@")
        code = typed("--url", address, "--observation", "[1]", "--transport", transport)

    caught = capsys.readouterr()
    assert code == 1
    assert url in caught.err
    assert "hush" not in caught.err
    assert len(seen) > 2
    assert set(seen) == {(url.removeprefix("http://"), "Basic bWU6aHVzaA==")}
