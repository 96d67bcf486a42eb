"""Logs: one event a line, with its fields."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from policy_server.settings import LogFormat
from policy_server.telemetry import (
    NUMBER_PLACE,
    TEXT_PLACE,
    HoldingHandler,
    adopt_loggers,
    configure_logging,
    flush_log,
    handler_of,
    line_form,
)
from tests.support.waiting import until

NAMES = (
    "",
    "policy_server",
    "policy_server.access",
    "uvicorn",
    "uvicorn.access",
    "uvicorn.error",
    "ray",
    "ray.serve",
)


@pytest.fixture(autouse=True)
def _keep_the_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(list(item.handlers), item.propagate, item.level) for item in loggers]
    for name in ("ray", "ray.serve"):
        # Where Ray is imported already, its handlers write to what was standard error then.
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    yield
    for item, (handlers, propagate, level) in zip(loggers, before, strict=True):
        item.handlers, item.propagate = handlers, propagate
        item.setLevel(level)


def test_json_log_is_one_document_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", log_format="json")

    logging.getLogger("policy_server.web").info("policy_loaded", extra={"width": 4})

    document = json.loads(capsys.readouterr().err)
    # RFC 3339, in UTC.
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document.pop("time"))
    assert document.pop("pid") == os.getpid()
    assert document == {
        "level": "INFO",
        "logger": "policy_server.web",
        "event": "policy_loaded",
        "width": 4,
    }


def test_json_log_of_an_error_has_its_traceback_on_the_same_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(level="INFO", log_format="json")

    try:
        int("no")
    except ValueError:
        logging.getLogger("policy_server").exception("request_failed")

    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exc_info"]


def test_text_log_has_the_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", log_format="text")

    logging.getLogger("policy_server").warning("no_example", extra={"kind": "predict", "n": 2})

    assert capsys.readouterr().err.endswith(" WARNING no_example kind=predict n=2\n")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_uvicorns_logs_appear_once_and_without_its_colours(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(level="INFO", log_format=log_format)  # type: ignore[arg-type]  # a parameter

    logging.getLogger("uvicorn.error").info("up %s", 1, extra={"color_message": "\x1b[1mup"})
    logging.getLogger("uvicorn.access").info("GET /")

    lines = capsys.readouterr().err.splitlines()
    # Requests have a line of our own.
    assert len(lines) == 1
    assert "up 1" in lines[0]
    assert "\x1b" not in lines[0]


def test_level_holds_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ray", "ray.serve"):
        # As Ray does at its import.
        logging.getLogger(name).setLevel("INFO")

    configure_logging(level="ERROR", log_format="text")

    for name in NAMES:
        logging.getLogger(name).warning("quiet")

    assert capsys.readouterr().err == ""


def test_auto_is_json_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", log_format="auto")

    logging.getLogger("policy_server").info("ready")

    assert json.loads(capsys.readouterr().err)["event"] == "ready"


def test_field_with_a_line_break_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", log_format="text")

    logging.getLogger("policy_server").info("seen", extra={"path": "/x\n12:00:00 INFO fake"})

    assert len(capsys.readouterr().err.splitlines()) == 1


def test_rays_own_field_stays_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", log_format="json")

    logger = logging.getLogger("policy_server")
    record = logger.makeRecord(logger.name, logging.INFO, "f", 1, "up", (), None)
    vars(record)["_ray_timestamp_ns"] = 1
    logger.handle(record)

    assert "_ray_timestamp_ns" not in json.loads(capsys.readouterr().err)


def test_access_log_stays_off_where_uvicorn_was_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], False

    configure_logging(level="INFO", log_format="json")
    logging.getLogger("policy_server.access").info("request")

    assert not capsys.readouterr().err


def test_block_of_fields_stands_below_each_other_in_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(level="INFO", log_format="text")

    places = {"docs": "http://127.0.0.1:8000/docs", "metrics": "a\nb"}
    logging.getLogger("policy_server").info("policy_served", extra={"places": places})

    first, *others = capsys.readouterr().err.splitlines()
    assert first.endswith("policy_served")
    assert [line.split() for line in others] == [
        ["docs", "http://127.0.0.1:8000/docs"],
        ["metrics", r"'a\nb'"],
    ]


def test_debug_does_not_log_the_headers_of_web_sockets(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="DEBUG", log_format="text")

    logging.getLogger("policy_server").debug("ours")
    logging.getLogger("uvicorn.error").debug("< access-token: secret")

    assert "ours" in (printed := capsys.readouterr().err)
    assert "secret" not in printed


def hold(logger: logging.Logger, **fields: object) -> None:
    """Log a line that is held back."""
    handler = handler_of(logger)
    assert handler is not None
    form = line_form(logger.name, "request", {**fields, "id": TEXT_PLACE, "ms": NUMBER_PLACE})
    handler.hold((time.time(), form, "a:b", 0.25))


async def test_held_line_is_the_librarys(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", log_format="json")
    logger = logging.getLogger("policy_server.access")
    fields = {"client": 'a"\u00e9%s', "status": 200, "duration_ms": 0.25, "as%d": None}

    hold(logger, **fields)
    logger.info("request", extra={**fields, "id": "a:b", "ms": 0.25})
    held, librarys = (json.loads(line) for line in capsys.readouterr().err.splitlines())

    assert list(held) == list(librarys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", held["time"])
    assert abs(datetime.fromisoformat(held["time"]).timestamp() - time.time()) < 60
    assert {**held, "time": ""} == {**librarys, "time": ""}


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_held_lines_come_before_every_later_one(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(level="INFO", log_format=log_format)
    logger = logging.getLogger("policy_server.access")

    for number in range(3):
        hold(logger, number=f"no{number}")
    before = capsys.readouterr().err
    logging.getLogger("policy_server.other").warning("later")

    *lines, last = capsys.readouterr().err.splitlines()
    assert before == ""
    assert "later" in last
    assert [f"no{number}" in line for number, line in enumerate(lines)] == [True] * 3


async def test_held_lines_are_written_soon_at_the_end_and_when_there_are_many(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(level="INFO", log_format="json")
    logger = logging.getLogger("policy_server.access")
    written: list[str] = []

    def count() -> int:
        written.extend(capsys.readouterr().err.splitlines())
        return len(written)

    hold(logger)
    await until(lambda: count() == 1)
    hold(logger)
    flush_log()
    assert count() == 2
    for _ in range(512):
        hold(logger)
    assert count() == 514


async def test_line_is_not_held_back_from_anybody_else_who_listens() -> None:
    configure_logging(level="INFO", log_format="json")
    logger = logging.getLogger("policy_server.access")
    listening = logging.NullHandler()
    logger.addHandler(listening)
    try:
        assert handler_of(logger) is None
    finally:
        logger.removeHandler(listening)


def test_logs_of_other_libraries_are_json_without_colours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve = logging.getLogger("ray.serve")
    serve.addHandler(logging.StreamHandler(sys.stderr))
    serve.propagate = False
    configure_logging(level="INFO", log_format="json")
    # As Ray does when it starts.
    serve.addHandler(logging.StreamHandler(sys.stderr))
    adopt_loggers()

    serve.warning("\x1b[33m(raylet)\x1b[0m a worker\ndied: %s", "7")

    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "(raylet) a worker\ndied: 7"


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_malformed_log_call_of_a_library_is_told_in_one_line_and_does_not_raise_in_it(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(level="INFO", log_format=log_format)

    # pytest's own handler raises what a record can't be formatted for.
    [handler] = [item for item in logging.getLogger().handlers if isinstance(item, HoldingHandler)]
    handler.handle(
        logging.makeLogRecord(
            {
                "name": "somelib",
                "msg": "%d items",
                "args": ("x",),
                "pathname": "somelib.py",
                "lineno": 7,
            }
        )
    )

    [line] = capsys.readouterr().err.splitlines()
    for told in ("line_not_formatted", "%d items", "somelib.py:7", "TypeError: %d format"):
        assert told in line


class Untold:
    """Gives no text."""

    def __str__(self) -> str:
        raise ValueError("no text")


def test_line_of_which_nothing_can_be_told_is_counted_as_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(level="INFO", log_format="json")
    [handler] = [item for item in logging.getLogger().handlers if isinstance(item, HoldingHandler)]

    handler.handle(logging.makeLogRecord({"name": "somelib", "msg": Untold()}))
    handler.handle(logging.makeLogRecord({"name": "somelib", "msg": "next"}))

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line]
    assert [(line["event"], line.get("lines")) for line in lines] == [
        ("log_lines_lost", 1),
        ("next", None),
    ]


def test_destructor_that_logs_while_a_line_is_compared_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(level="INFO", log_format="json")
    [handler] = [item for item in logging.getLogger().handlers if isinstance(item, HoldingHandler)]
    inner = logging.makeLogRecord({"name": "somelib", "msg": "from a destructor"})
    logged: list[bool] = []

    def collect() -> float:
        # The first look at the clock has the lock: as if garbage were collected there.
        if not logged:
            logged.append(True)
            handler.handle(inner)
        return 1000.0

    monkeypatch.setattr("policy_server.telemetry.time.monotonic", collect)
    thread = threading.Thread(
        target=handler.handle,
        args=(logging.makeLogRecord({"name": "somelib", "msg": "first"}),),
        daemon=True,
    )
    thread.start()
    thread.join(30)

    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["from a destructor", "first"]


def test_line_that_others_repeat_is_logged_once_in_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("policy_server.telemetry.time.monotonic", lambda: now)
    configure_logging(level="INFO", log_format="json")
    serve = logging.getLogger("ray.serve")

    for number in range(600):
        serve.warning("Replica(id='zoqb%d') is temporarily unavailable.", number)
    serve.warning("another")
    now += 11
    serve.warning("Replica(id='zoqb9') is temporarily unavailable.")

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"].split("(")[0] for line in lines] == ["Replica", "another", "Replica"]
    assert [line.get("repeated") for line in lines] == [None, None, 599]


def test_lines_of_others_are_few_even_where_each_is_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(level="INFO", log_format="json")

    for letters in itertools.product("abcdefgh", repeat=3):
        logging.getLogger("ray.serve").warning("".join(letters))

    assert len(capsys.readouterr().err.splitlines()) == 200


def test_no_line_of_ours_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", log_format="json")

    for name, level in (("policy_server.web", logging.WARNING), ("uvicorn.error", logging.ERROR)):
        for _ in range(300):
            logging.getLogger(name).log(level, "the same")

    assert len(capsys.readouterr().err.splitlines()) == 600


def test_warning_of_uvicorn_about_each_broken_request_is_logged_once_in_a_while(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(level="INFO", log_format="json")

    for _ in range(300):
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")

    assert len(capsys.readouterr().err.splitlines()) == 1


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """Let files grow to a size at the most, as on a disk that fills up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_lines_that_a_full_disk_loses_are_counted_when_it_has_room_again(
    tmp_path: Path, log_format: LogFormat, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log"
    with file.open("w") as stream:
        configure_logging(level="INFO", log_format=log_format, stream=stream)
        logger = logging.getLogger("policy_server.access")
        with full_after(40):
            # The first one is cut off, the next ones are lost.
            logger.info("begun" * 9)
            logger.info("lost")
            for _ in range(3):
                hold(logger, status=200)
            flush_log()

        logger.info("written")
        logger.info("written too")

    cut_off, *lines = file.read_text().splitlines()
    assert len(cut_off) == 40
    found = [json.loads(line) for line in lines] if log_format == "json" else lines
    assert len(found) == 3
    assert all(
        event in str(line)
        for event, line in zip(["log_lines_lost", "written", "written too"], found, strict=True)
    )
    assert re.search(r"\blines\W+5\b", str(found[0]))
    assert capfd.readouterr().err == ""


async def test_full_disk_loses_of_lines_that_are_written_together_the_last_ones_alone(
    tmp_path: Path,
) -> None:
    file = tmp_path / "log"
    with file.open("w") as stream:
        configure_logging(level="INFO", log_format="json", stream=stream)
        logger = logging.getLogger("policy_server.access")
        hold(logger, status=200)
        flush_log()
        size = file.stat().st_size
        with full_after(5 * size + size // 2):
            for _ in range(10):
                hold(logger, status=200)
            flush_log()

        logger.info("written")

    *kept, cut_off, notice, last = file.read_text().splitlines()
    assert len(kept) == 5
    assert len(cut_off) < size
    assert json.loads(notice)["event"] == "log_lines_lost"
    assert json.loads(notice)["lines"] == 6
    assert json.loads(last)["event"] == "written"


def read_to_the_end(outlet: int) -> list[bytes]:
    """Return the lines of a pipe whose other end is closed, or is when all is written."""
    with os.fdopen(outlet, "rb") as reader:
        return reader.read().splitlines()


async def test_reader_that_reads_late_gets_every_line_in_order() -> None:
    """More than a pipe holds, so that each line would have to wait for the reader."""
    outlet, inlet = os.pipe()
    with os.fdopen(inlet, "w") as stream:
        configure_logging(level="INFO", log_format="json", stream=stream)
        logger = logging.getLogger("policy_server.access")
        for number in range(300):
            logger.info("line", extra={"number": number, "filling": "x" * 1000})
        hold(logger, number=300)
        logger.info("line", extra={"number": "y" * 300_000})

    lines = [json.loads(line) for line in read_to_the_end(outlet)]

    assert [line["number"] for line in lines] == [*range(301), "y" * 300_000]


async def test_reader_that_stands_still_holds_nothing_up_and_hears_how_many_lines_it_lost() -> None:
    outlet, inlet = os.pipe()
    with os.fdopen(inlet, "w") as stream:
        configure_logging(level="INFO", log_format="json", stream=stream)
        logger = logging.getLogger("policy_server.access")
        # More than a pipe holds, and more than waits for it.
        for _ in range(2000):
            logger.info("x" * 1000)
        # Until there is room for another line.
        start = b"".join(os.read(outlet, 4096) for _ in range(50))
        logger.info("read again")

    *kept, empty, notice, last = (start + b"\n".join(read_to_the_end(outlet))).splitlines()

    assert 500 < len(kept) < 2000
    assert empty == b""
    assert json.loads(notice)["event"] == "log_lines_lost"
    assert json.loads(notice)["lines"] == 2000 - len(kept)
    assert json.loads(last)["event"] == "read again"


async def test_lines_that_wait_for_a_slow_reader_are_written_at_the_end() -> None:
    outlet, inlet = os.pipe()
    read = bytearray()

    def read_slowly() -> None:
        while part := os.read(outlet, 4096):
            read.extend(part)
            time.sleep(0.001)

    with os.fdopen(inlet, "w") as stream:
        configure_logging(level="INFO", log_format="json", stream=stream)
        logger = logging.getLogger("policy_server.access")
        for _ in range(300):
            logger.info("x" * 1000)
        reader = threading.Thread(target=read_slowly)
        reader.start()
        flush_log()
        is_written = len(read) > 300_000 - 2**16
    reader.join(20)
    os.close(outlet)

    assert is_written
    assert len(read.splitlines()) == 300


class Collecting(deque[tuple[bytes, int]]):
    """What waits for a slow reader; once, garbage is collected as its writer takes a piece."""

    collect: Callable[[], None] | None = None

    def popleft(self) -> tuple[bytes, int]:
        collect, self.collect = self.collect, None
        if collect is not None:
            collect()
        return super().popleft()


def test_destructor_that_logs_in_the_thread_for_a_slow_reader_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outlet, inlet = os.pipe()
    stream = os.fdopen(inlet, "w")
    waiting = Collecting()
    monkeypatch.setattr("policy_server.pipe_writing.deque", lambda: waiting)
    handler = HoldingHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))

    def log(text: str) -> None:
        handler.handle(logging.makeLogRecord({"name": "somelib", "msg": text}))

    begun = threading.Event()

    def collect() -> None:
        begun.set()
        # Another thread has time to take what it needs for its line.
        beside.join(0.5)
        log("from a destructor")

    def log_beside() -> None:
        begun.wait(30)
        log("beside")

    beside = threading.Thread(target=log_beside, daemon=True)
    beside.start()
    log("x" * 200_000)
    waiting.collect = collect
    start = os.read(outlet, 200_000)
    beside.join(30)
    assert not beside.is_alive()

    def end() -> None:
        handler.flush()
        stream.close()

    threading.Thread(target=end).start()
    _, *lines = (start + b"\n".join(read_to_the_end(outlet))).splitlines()

    assert {*lines} == {b"from a destructor", b"beside"}


async def test_lines_for_a_reader_that_has_gone_are_counted() -> None:
    outlet, inlet = os.pipe()
    next_outlet, next_inlet = os.pipe()
    with os.fdopen(inlet, "w") as stream, os.fdopen(next_inlet, "w") as next_stream:
        configure_logging(level="INFO", log_format="json", stream=stream)
        logger = logging.getLogger("policy_server.access")
        for _ in range(300):
            logger.info("x" * 1000)
        os.close(outlet)
        await until(lambda: not any(item.name == "log" for item in threading.enumerate()))
        logger.info("nobody reads")
        os.dup2(next_stream.fileno(), stream.fileno())
        logger.info("read again")

    lines = [json.loads(line) for line in read_to_the_end(next_outlet) if line]

    assert [line["event"] for line in lines] == ["log_lines_lost", "read again"]
    assert 200 < lines[0]["lines"] <= 301
