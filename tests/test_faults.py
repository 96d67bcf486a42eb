"""The faults' parts: what they count, and what they expect."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from websockets.protocol import State
from websockets.sync.server import ServerConnection, serve

from tests.faults.__main__ import FAULTS, main
from tests.faults.crowd import Crowd, Group
from tests.faults.expectations import (
    TARGET,
    Counts,
    Course,
    Expectation,
    Limits,
    connections_lost,
)
from tests.faults.hostile import Held, Visit
from tests.faults.load import OK, Asked, Client, Load, Question, Streams, modes
from tests.faults.measuring import Fault, Scene, left_in, measure, running_in, temporary
from tests.faults.policies import never, question_of
from tests.faults.versions import Changes
from tests.support.processes import Child, child
from tests.support.server_processes import Server
from tests.support.servers import Handler, answered_by, free_port, status_of
from tests.support.waiting import wait_until

HELD = Counts(100, 100, 0, 0, 0, 0, 0.2, None)
COURSE = Course(1000.0, ready_s=2.0, stop_s=0.7)


def test_requests_are_counted_by_status() -> None:
    sent = [
        Asked(999.0, 200, 0.1, is_right=True),
        Asked(1000.0, 201, 0.5, is_right=False),
        Asked(1001.0, 503, 0.25, is_right=True),
        Asked(1002.0, 0, 0.25, is_right=True),
        Asked(1000.5, 404, 0.1, is_right=True),
    ]

    counts = Counts.of(sent, 1000.0)

    assert counts == Counts(5, 2, 1, 1, 1, 1, 0.5, 2.25)


def test_load_without_trouble_has_none() -> None:
    assert Counts.of([Asked(1000.0, 200, 0.1, is_right=True)], 1000.0).last_trouble_s is None


@contextmanager
def holding(*, closes: bool, after_s: float = 0.6, code: int = 1012) -> Iterator[str]:
    """Serve streams that take a frame, and answer none: they are closed, or stay as they are."""

    def take(stream: ServerConnection) -> None:
        stream.recv()
        if closes:
            time.sleep(after_s)
            stream.close(code)
        else:
            wait_until(lambda: stream.protocol.state is not State.OPEN)

    with serve(take, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("closes", [True, False])
def test_frame_that_a_server_took_and_never_answered_is_lost(
    monkeypatch: pytest.MonkeyPatch,
    *,
    closes: bool,
) -> None:
    monkeypatch.setattr("tests.faults.load._TIMEOUT_S", 0.5 if not closes else 60.0)
    with holding(closes=closes) as url:
        load = Streams(url, [Question("/predict", "{}", bool)], clients=1)
        with load.running():
            wait_until(lambda: bool(load.sent))

    assert load.sent[0].status == 0
    assert Counts.of(load.sent, load.sent[0].at).lost


def test_stream_that_is_closed_by_another_code_than_that_of_a_stop_loses_its_frame() -> None:
    with holding(closes=True, after_s=0.0, code=1011) as url:
        load = Streams(url, [Question("/predict", "{}", bool)], clients=1)
        with load.running():
            wait_until(lambda: bool(load.sent))

    assert load.sent[0].status == 0


def test_load_that_sent_nothing_is_an_error() -> None:
    with pytest.raises(AssertionError, match="the clients sent nothing"):
        Counts.of([], 1000.0)


def test_fault_without_trouble_holds() -> None:
    assert list(TARGET.broken_by({"": HELD}, COURSE)) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"wrong": 1}, "wrong answers: expected 0 at the most, got 1"),
        ({"refused": 3}, "answers 503: expected 0 at the most, got 3"),
        ({"failed": 1}, "failed requests: expected 0 at the most, got 1"),
        ({"lost": 2}, "lost requests: expected 0 at the most, got 2"),
        ({"slowest_s": 15.5}, "the slowest request: expected 15 s at the most, got 15.5 s"),
    ],
    ids=["wrong", "503", "failed", "lost", "slow"],
)
def test_target_that_a_load_misses_is_told(changes: dict[str, float], told: str) -> None:
    counts = Counts(**{**vars(HELD), **changes})

    assert list(TARGET.broken_by({"": counts}, COURSE)) == [told]


@pytest.mark.parametrize(
    ("course", "told"),
    [
        (Course(0.0, ready_s=24.9), "ready again: expected 15 s at the most, got 24.9 s"),
        (Course(0.0, stop_s=60.0), "the stop: expected 10 s at the most, got 60 s"),
        (
            Course(0.0, left=["raylet", "ps-ray-1"]),
            "left behind: expected nothing, got raylet, ps-ray-1",
        ),
    ],
    ids=["not ready", "late stop", "left behind"],
)
def test_course_that_misses_the_target_is_told(course: Course, told: str) -> None:
    assert list(TARGET.broken_by({"": HELD}, course)) == [told]


def test_limit_of_one_load_is_not_that_of_the_others() -> None:
    refused = Counts(100, 90, 10, 0, 0, 0, 0.2, 6.5)
    expected = Expectation({"sessions": Limits(refused=math.inf, trouble_s=9.0)})

    broken = list(expected.broken_by({"plain": refused, "sessions": refused}, COURSE))

    assert broken == ["plain: answers 503: expected 0 at the most, got 10"]


def test_trouble_that_lasts_beyond_its_limit_is_told() -> None:
    refused = Counts(100, 90, 10, 0, 0, 0, 0.2, 20.0)
    expected = Expectation({"": Limits(refused=math.inf, trouble_s=9.0)})

    assert list(expected.broken_by({"": refused}, COURSE)) == [
        "the last trouble: expected 9 s at the most, got 20 s"
    ]


@pytest.mark.parametrize(
    ("lost", "last_trouble_s", "count"),
    [(64, 0.1, 0), (65, 0.1, 1), (1, 4.0, 1)],
    ids=["two of each client", "one more", "after the end of the process"],
)
def test_killed_process_costs_its_connections_alone(
    lost: int, last_trouble_s: float, count: int
) -> None:
    counts = Counts(1000, 1000 - lost, 0, 0, 0, lost, 0.2, last_trouble_s)
    expected = Expectation({"": connections_lost(clients=32)})

    assert len(list(expected.broken_by({"": counts}, COURSE))) == count


@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_may_give_wrong_answers_or_leave_something_behind(name: str) -> None:
    wrong = Counts(**{**vars(HELD), "wrong": 1})

    broken = FAULTS[name].expected.broken_by({"": wrong}, Course(0.0, left=["raylet"]))

    assert len(list(broken)) == 2


@pytest.mark.parametrize("name", [name for name in FAULTS if name.startswith("redis")])
@pytest.mark.parametrize("load", ["plain requests", "sessions"])
def test_request_that_waits_for_a_dead_redis_is_told(name: str, load: str) -> None:
    slow = Counts(**{**vars(HELD), "slowest_s": 4.8})

    [broken] = FAULTS[name].expected.broken_by({load: slow}, COURSE)

    assert broken == f"{load}: the slowest request: expected 3 s at the most, got 4.8 s"


class _Unavailable(Handler):
    """Refuses: with `Retry-After` at one address, without at the other."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/told":
            self.reply(503, retry_after="1")
        else:
            self.reply(503)


@pytest.mark.parametrize(("path", "is_right"), [("/told", True), ("/silent", False)])
def test_answer_503_without_retry_after_is_wrong(path: str, *, is_right: bool) -> None:
    with answered_by(_Unavailable) as url:
        load = Load(url, [Question(path, "{}", bool)])
        client = Client(load)
        client.ask(load.questions[0])
        client.close()

    assert [(asked.status, asked.is_right) for asked in load.sent] == [(503, is_right)]


@pytest.mark.parametrize("text", [b"no JSON", b"{}", b"[]", b'{"actions": null}', b"null"])
def test_answer_200_that_can_not_be_read_is_wrong_and_counted(text: bytes) -> None:
    class Broken(Handler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.reply(200, text)

    with answered_by(Broken) as url:
        load = Load(url, modes()[:1])
        client = Client(load)
        client.ask(load.questions[0])
        client.close()

    assert [(asked.status, asked.is_right) for asked in load.sent] == [(200, False)]


def test_answer_that_is_no_http_is_wrong_not_lost_alone() -> None:
    class Broken(Handler):
        def answer(self) -> None:
            self.wfile.write(b"garbage\r\n\r\n")
            self.close_connection = True

    with answered_by(Broken) as url:
        load = Load(url, [Question("/", "{}", bool)])
        client = Client(load)
        client.ask(load.questions[0])
        client.close()

    assert [(asked.status, asked.is_right) for asked in load.sent] == [(0, False)]


@pytest.mark.parametrize(("status", "is_right"), [(500, True), (503, True), (422, False)])
def test_failure_has_to_have_the_status_that_is_expected(status: int, *, is_right: bool) -> None:
    question = Question("/", "{}", bool, failure=500)

    assert question.may_fail(status, {"retry-after": "1"}) is is_right


def test_success_where_a_policy_has_to_fail_is_wrong() -> None:
    question = question_of([0.0], never)

    assert not question.is_answered_by('{"actions": [1]}')


def test_server_that_ends_with_another_status_than_0_is_told() -> None:
    assert list(TARGET.broken_by({"": HELD}, Course(0.0, status=1))) == [
        "the stop: expected status 0 or the signal's, got 1"
    ]
    assert not list(TARGET.broken_by({"": HELD}, Course(0.0, status=-signal.SIGTERM)))


@pytest.mark.parametrize("is_told", [True, False], ids=["TMPDIR", "an open file"])
def test_processes_of_a_folder_are_found_whatever_is_above_them(
    tmp_path: Path, *, is_told: bool
) -> None:
    temporary(tmp_path).mkdir()
    (temporary(tmp_path) / "socket").touch()
    words = "import sys, time; sys.stdin = open(sys.argv[1]); time.sleep(60)"
    opened = os.devnull if is_told else str(temporary(tmp_path) / "socket")
    told = {"TMPDIR": str(temporary(tmp_path))} if is_told else {}

    with child(
        *(sys.executable, "-c", words, opened),
        log=tmp_path / "log",
        environment={**os.environ, **told},
    ) as started:
        wait_until(lambda: running_in(tmp_path) == [started.process.pid])

    assert running_in(tmp_path) == []


@pytest.mark.parametrize("place", ["t/ray", "t/x.sock", "t/a.lock", "home/.half-written"])
def test_file_that_a_server_leaves_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("tests.faults.measuring._LEFT_AFTER_S", 0.01)
    monkeypatch.setattr("tests.faults.measuring._SHARED_MEMORY", tmp_path / "none")
    for name in ("t", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / place).touch()

    assert left_in(tmp_path, set(), set(), set()) == [place]


def test_file_that_was_there_before_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.faults.measuring._SHARED_MEMORY", tmp_path / "none")
    for name in ("t", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "home" / "server.log").touch()
    before = {tmp_path / "home" / "server.log"}

    assert left_in(tmp_path, {2**22 + 1}, before, set()) == []


def test_shared_memory_that_no_process_has_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.faults.measuring._LEFT_AFTER_S", 0.01)
    shared = tmp_path / "shared"
    monkeypatch.setattr("tests.faults.measuring._SHARED_MEMORY", shared)
    for path in (shared, tmp_path / "t"):
        path.mkdir()
    for name in ("before", "left", "used"):
        (shared / name).write_bytes(b"1")

    with (shared / "used").open():
        left = left_in(tmp_path, set(), set(), {"before"})

    assert left == [str(shared / "left")]


def _group(**changes: Any) -> Group:  # noqa: ANN401 -- those of `Group`
    return Group(2, 2, {"408": 2}, (1.0, 2.0), (1.0, 2.0), 0)._replace(**changes)


@pytest.mark.parametrize(
    ("group", "files", "told"),
    [
        ({}, 24, None),
        ({"connected": 1, "answers": {"408": 1}}, 24, "slow: expected 2 connected, got 1"),
        ({"left": 1}, 24, "slow: expected all connections ended, got 1 open"),
        ({"answers": {"200": 2}}, 24, "slow: expected 408 for each request, got {'200': 2}"),
        ({"answers": {}}, 24, "slow: expected 408 for each request, got {}"),
        ({}, 500, "open files: expected 27 at the most after the crowd, got 500"),
    ],
    ids=["none", "not connected", "open", "another answer", "no answer", "files"],
)
def test_harm_of_a_crowd_is_told(group: dict[str, Any], files: int, told: str | None) -> None:
    started = cast("Child", None)
    crowd = Crowd(started, groups={"slow": _group(**group)})
    held = {"before": Held(50.0, 24), "after": Held(50.0, files)}
    visit = Visit(Server(started, "", ""), crowd, {}, held=held)

    assert visit.broken() == ([] if told is None else [told])


class _Unhurried(Load):
    """Clients that wait between two questions: each is answered alike, and costs time."""

    def go_on(self, client: Client) -> None:
        super().go_on(client)
        self.is_over.wait(0.05)


@contextmanager
def _asked_in_vain(folder: Path) -> Iterator[Scene]:
    """Serve files only, so that each POST is answered 501; `/readyz` is one of them."""
    (folder / "readyz").touch()
    port = free_port()
    words = (sys.executable, "-m", "http.server", str(port), "--directory", str(folder))
    with child(*words, log=folder / "log") as started:
        url = f"http://127.0.0.1:{port}"
        started.wait_until(lambda: status_of(f"{url}/readyz") == OK)
        loads = {"": _Unhurried(url, [Question("/", "{}", bool)], 2)}
        yield Scene(Server(started, url, url), loads, lambda: None, after_s=0.3)


@contextmanager
def _stopped(folder: Path) -> Iterator[Scene]:
    """Stop the server of `_asked_in_vain`."""
    with _asked_in_vain(folder) as scene:
        yield replace(scene, happen=scene.server.process.terminate, is_last=True)


def test_search_for_processes_before_a_stop_is_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches = 0

    def search(_: Path) -> list[int]:
        nonlocal searches
        searches += 1
        if searches == 1:
            time.sleep(5)
        return []

    monkeypatch.setattr("tests.faults.measuring.running_in", search)
    allowed = Limits(failed=math.inf, lost=math.inf)

    measured = measure(Fault("stopped", _stopped, Expectation({"": allowed}, stop_s=4.0)))

    assert measured.broken == []


def test_server_is_watched_for_as_long_as_its_fault_takes() -> None:
    @contextmanager
    def take_long(folder: Path) -> Iterator[Scene]:
        with _asked_in_vain(folder) as scene:

            def happen() -> None:
                time.sleep(1)
                (folder / "readyz").unlink()
                wait_until(lambda: status_of(f"{scene.server.url}/readyz") != OK)
                # It is looked at ten times a second.
                time.sleep(1)

            yield replace(scene, happen=happen, after_s=0.0)

    allowed = Limits(failed=math.inf)

    measured = measure(Fault("long", take_long, Expectation({"": allowed}, ready_s=0.5)))

    [broken] = measured.broken
    assert broken.startswith("long: ready again: expected 0.5 s at the most, got")


@pytest.mark.parametrize(
    ("version", "is_right"),
    [("other-1", True), ("first-1", False), ("", False)],
    ids=["its policy", "another policy", "no version"],
)
def test_answer_is_held_against_the_policy_of_the_version_that_gave_it(
    version: str, *, is_right: bool
) -> None:
    by_policy = {"other": lambda answer: answer == "other"}
    question = Question("/", "{}", lambda answer: answer == "first", by_policy=by_policy)

    assert question.is_answered_by('"other"', version) is is_right


@pytest.mark.parametrize(
    ("status", "text", "kept", "told"),
    [
        (503, "try again", "before", []),
        (500, "Internal", "before", ["deploy: 500 Internal"]),
        (503, "a\nb", "before", ["deploy: 503 a\nb"]),
        (503, "try again", "after", ["deploy: was refused, and is kept all the same"]),
    ],
    ids=["one line", "another status", "two lines", "half done"],
)
def test_refused_change_of_versions_is_one_line_and_changes_nothing(
    status: int, text: str, kept: str, told: list[str], tmp_path: Path
) -> None:
    (tmp_path / "versions.json").write_text(json.dumps({"default": {"deployment": kept}}))
    server = Server(cast("Child", None), "", "")
    changes = Changes(server, tmp_path, {}, "raylet", times=1, replicas=1)

    changes.hold_refusal("deploy", httpx.Response(status, text=text), "before")

    assert changes.broken == told


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """Give the tests' process its own end by SIGTERM back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_own_signals")
def test_program_tells_what_did_not_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = Expectation({"": Limits(failed=math.inf)})
    monkeypatch.setitem(FAULTS, "allowed", Fault("allowed", _asked_in_vain, allowed))
    monkeypatch.setitem(FAULTS, "missed", Fault("missed", _asked_in_vain))
    monkeypatch.setattr(sys, "argv", ["faults", "allowed", "missed"])

    with pytest.raises(SystemExit, match=r"^faults: missed: failed requests: expected 0") as ended:
        main()

    assert "\n" not in str(ended.value)
    assert "| allowed |" in capsys.readouterr().out


@pytest.mark.usefixtures("_own_signals")
def test_program_without_anything_broken_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = Expectation({"": Limits(failed=math.inf)})
    monkeypatch.setitem(FAULTS, "allowed", Fault("allowed", _asked_in_vain, allowed))
    monkeypatch.setattr(sys, "argv", ["faults", "allowed"])

    main()
