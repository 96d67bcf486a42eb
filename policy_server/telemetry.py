"""Logs: one event a line, as JSON for machines or as text on a terminal."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, TextIO

import orjson
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from policy_server.pipe_writing import PipeWriter

__all__ = [
    "ACCESS_LOGGER",
    "NUMBER_PLACE",
    "TEXT_PLACE",
    "HeldLine",
    "HoldingHandler",
    "LineForm",
    "adopt_loggers",
    "configure_logging",
    "flush_log",
    "handler_of",
    "is_json",
    "line_form",
    "log_uncaught",
    "new_formatter",
]

LogFormat = Literal["auto", "json", "text"]

# Fields that uvicorn, Ray and asyncio add to records for their own formatters.
_FOREIGN_FIELDS = ("color_message", "_ray_timestamp_ns", "taskName")
_FIELDS = ("asctime", "levelname", "name", "process", "message")
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", *_FOREIGN_FIELDS}
ACCESS_LOGGER = "policy_server.access"
"""The logger of requests and streams."""
_OWN = ("policy_server", "uvicorn")
# uvicorn warns of each broken request, which has a line in the access log.
_REPEATED = ("uvicorn.error", logging.WARNING)

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_WORD = re.compile(r"\w+")
_MOST_COMPARED = 500
_REPEATS_S = 10.0
# The number of different lines, in that time.
_MOST_LINES = 200
_Line = tuple[str, int, str]
# So many lines, or lines for so long, are written together.
_MOST_HELD = 512
_HELD_S = 0.05
# time, level, logger, pid, event
_LINE_STARTS = 5
_THOUSANDTHS = [f"{number:03d}" for number in range(1000)]
# Stands in no JSON.
_PLACE = "\0"

TEXT_PLACE, NUMBER_PLACE = object(), object()
"""The values of fields that differ from line to line."""

LineForm = tuple[str, str, str]
"""The texts of a line before, between and behind its two places."""

HeldLine = tuple[float, LineForm, str, float]
"""A line that is written with others, of which there are many (a plain tuple is the fastest).

Its parts are the time of `time.time`, the form that `line_form` gives, the text, which needs no
escape, and the number, which is written with three digits behind the point.
"""

logger = logging.getLogger(__name__)


def is_json(log_format: LogFormat) -> bool:
    """Return whether logs are JSON: by the setting, or since standard error is no terminal.

    Args:
        log_format: `json`, `text`, or `auto`: text on a terminal, JSON otherwise.
    """
    return log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())


def configure_logging(*, level: str, log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send the logs of this package, of uvicorn and of all other libraries to one stream.

    Args:
        level: the least level that is logged; of other libraries at least warnings.
        log_format: `json`, `text`, or `auto`: text on a terminal, JSON otherwise.
        stream: the stream to write to; None is standard error.
    """
    handler = HoldingHandler(stream)
    handler.setFormatter(new_formatter(log_format))
    handler.addFilter(_Foreign())
    access = logging.getLogger("uvicorn.access")
    if not access.handlers and not access.propagate:
        # uvicorn was started with --no-access-log.
        logging.getLogger(ACCESS_LOGGER).setLevel(logging.WARNING)
    # Our own line says more: the request's id, its route and how long it took.
    access.handlers, access.propagate, access.disabled = [], False, True
    for name in (*_OWN, "uvicorn.error"):
        own = logging.getLogger(name)
        own.handlers = [handler] if name in _OWN else []
        own.propagate = name not in _OWN
        own.setLevel(level)
    if level == "DEBUG":
        # Of web sockets uvicorn then logs every header, and the access key is one.
        logging.getLogger("uvicorn.error").setLevel("INFO")
    root = logging.getLogger()
    root.handlers = [*(item for item in root.handlers if not _is_printing(item)), handler]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    adopt_loggers()


def adopt_loggers() -> None:
    """Send the logs of other libraries to our stream, from the least level that is logged.

    Ray gives its loggers handlers and levels of their own, at its import and again when it starts.
    """
    least = logging.getLogger().level
    for name, item in list(logging.root.manager.loggerDict.items()):
        if isinstance(item, logging.Logger) and name.partition(".")[0] not in _OWN:
            kept = [each for each in item.handlers if not _is_printing(each)]
            if len(kept) < len(item.handlers):
                item.handlers, item.propagate = kept, True
            if item.level < least:
                item.setLevel(logging.NOTSET)


def log_uncaught() -> None:
    """Log warnings and uncaught errors instead of printing them."""
    logging.captureWarnings(capture=True)

    def log(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error or kind(), trace)
            return
        logger.critical("uncaught_error", exc_info=(kind, error or kind(), trace))

    sys.excepthook = log
    threading.excepthook = lambda hook: log(hook.exc_type, hook.exc_value, hook.exc_traceback)
    sys.unraisablehook = lambda hook: log(hook.exc_type, hook.exc_value, hook.exc_traceback)


def new_formatter(log_format: LogFormat) -> logging.Formatter:
    """Return the formatter of the log's records.

    Args:
        log_format: `json`, `text`, or `auto`: text on a terminal, JSON otherwise.
    """
    return _json_formatter() if is_json(log_format) else _TextFormatter()


def flush_log() -> None:
    """Write the lines that are held back."""
    for handler in logging.getLogger(_OWN[0]).handlers:
        handler.flush()


def handler_of(logger: logging.Logger) -> HoldingHandler | None:
    """Return the one handler of this process; None where others have to hear of a line too.

    Args:
        logger: a logger of this package.
    """
    at: logging.Logger | None = logger
    found: list[logging.Handler] = []
    while at is not None:
        found += at.handlers
        at = at.parent if at.propagate else None
    (only,) = found if len(found) == 1 else (None,)
    return only if isinstance(only, HoldingHandler) and not logger.filters else None


class HoldingHandler(logging.StreamHandler[TextIO]):
    """The one handler of a process, which may hold lines back to write many at a time.

    Lines that can't be written, such as on a full disk or to a pipe that nobody reads, are lost;
    the first line that can be written again is `log_lines_lost`, with their number. One of which a
    full disk took the start only is lost too. Those for a pipe whose reader is slow wait in a
    `PipeWriter`.

    Attributes:
        held: the lines that are held back.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """Own the lines that are held back; the stream outlives it.

        Args:
            stream: the stream to write to; None is standard error.
        """
        super().__init__(stream)
        self.held: list[HeldLine] = []
        self._timed_in: asyncio.AbstractEventLoop | None = None
        self._lost = 0
        self._pipe: PipeWriter | None = None

    def hold(self, line: HeldLine) -> None:
        """Write a line within 50 ms, in its turn; called from the event loop.

        Args:
            line: one of an enabled logger of this package.
        """
        held = self.held
        held.append(line)
        if len(held) == 1:
            loop = asyncio.get_running_loop()
            if self._timed_in is not loop:
                self._timed_in = loop
                loop.call_later(_HELD_S, self._end_hold)
        elif len(held) >= _MOST_HELD:
            self._write_held()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record behind the lines before it."""
        self._write_held()
        try:
            self._write([self._text_of(record) + self.terminator])
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 -- logging's own
        """Count a line that can't be made as lost.

        Unlike logging's own method it prints nothing: a print waits for whoever reads it, and every
        other line, and so every request, would wait for this one.
        """
        self._lost += 1

    def flush(self) -> None:
        """Write the lines that are held back, and wait for a slow reader, for seconds at most."""
        self._write_held()
        super().flush()
        if self._pipe is not None:
            self._pipe.drain()

    def _text_of(self, record: logging.LogRecord) -> str:
        """Return a record's line, or one that says where and why there is none."""
        try:
            return self.format(record)
        except Exception as error:
            told = logging.makeLogRecord(
                {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
            )
            told.msg = "line_not_formatted"
            vars(told).update(
                text=str(record.msg)[:_MOST_COMPARED],
                place=f"{record.pathname}:{record.lineno}",
                reason=f"{type(error).__name__}: {error}"[:_MOST_COMPARED],
            )
            return self.format(told)

    def _end_hold(self) -> None:
        self._timed_in = None
        self._write_held()

    def _write_held(self) -> None:
        if not self.held:
            return
        self.acquire()
        try:
            held, self.held = self.held, []
            self._write(self._texts_of(held))
        except Exception:
            self._lost += len(held)
        finally:
            self.release()

    def _write(self, lines: Sequence[str]) -> None:
        """Write lines, behind the number of those that were lost before them; count the lost."""
        pipe = self._pipe_now()
        lost = self._lost if pipe is None else self._lost + pipe.take_lost()
        # The start of a lost line may have been written.
        notice = [f"\n{self._notice_of(lost)}{self.terminator}"] if lost else []
        written = self._put([*notice, *lines], pipe)
        if lost and written:
            lost, written = 0, written - 1
        self._lost = lost + len(lines) - written

    def _put(self, lines: Sequence[str], pipe: PipeWriter | None) -> int:
        """Write lines as far as that can be done; return how many were written as a whole."""
        file = _descriptor_of(self.stream, is_file=True)
        try:
            if pipe is None and file is None:
                self.stream.write("".join(lines))
                super().flush()
                return len(lines)
            errors = self.stream.errors or "strict"
            contents = [line.encode(self.stream.encoding, errors) for line in lines]
            if file is not None:
                return _put_in_file(file, contents)
            assert pipe is not None, "a stream with a descriptor is a file or a pipe"
            pipe.write(b"".join(contents), lines=len(lines))
        except OSError:
            return 0
        return len(lines)

    def _notice_of(self, lost: int) -> str:
        notice = logging.makeLogRecord(
            {"name": __name__, "levelname": "WARNING", "msg": "log_lines_lost"}
        )
        vars(notice)["lines"] = lost
        return self.format(notice)

    def _pipe_now(self) -> PipeWriter | None:
        """Return the writer of the stream's pipe; None for a file."""
        descriptor = _descriptor_of(self.stream, is_file=False)
        if descriptor is None:
            return None
        if self._pipe is None or self._pipe.descriptor != descriptor:
            assert self.lock is not None, "each handler of logging's has one"
            self._pipe = PipeWriter(descriptor, self.lock)
        return self._pipe

    def _texts_of(self, held: list[HeldLine]) -> list[str]:
        if isinstance(self.formatter, _JsonFormatter):
            return _json_lines(held)
        return [self.format(_record_of(line)) + self.terminator for line in held]


def _descriptor_of(stream: TextIO, *, is_file: bool) -> int | None:
    """Return the descriptor of a stream that is a file, or else that somebody reads.

    Args:
        stream: the stream.
        is_file: whether it is to be a file; None is returned where it is not what is asked for.
    """
    try:
        descriptor = stream.fileno()
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except (OSError, ValueError):
        return None
    return descriptor if is_regular is is_file else None


def _put_in_file(descriptor: int, contents: Sequence[bytes]) -> int:
    """Write to a file, as far as its disk takes it; return how many were written as a whole."""
    whole = b"".join(contents)
    size = 0
    # The first write to a disk that fills up takes the bytes that there is room for.
    with suppress(OSError):
        while size < len(whole):
            size += os.write(descriptor, whole[size:])
    if size == len(whole):
        return len(contents)
    return sum(end <= size for end in itertools.accumulate(map(len, contents)))


def line_form(logger: str, event: str, fields: Mapping[str, object]) -> LineForm:
    """Return a JSON line as `_JsonFormatter` writes it, without what differs from line to line.

    Args:
        logger: the name of the line's logger.
        event: the event.
        fields: the values by the names of the fields; `TEXT_PLACE` stands for the text that
            differs, and `NUMBER_PLACE`, behind it, for the number.
    """
    start = {"level": "INFO", "logger": logger, "pid": os.getpid(), "event": event}
    texts = [f"{_json(name)}:{_json(value)}" for name, value in {**start, **fields}.items()]
    before, between, behind = f'Z",{",".join(texts)}}}\n'.split(_PLACE)
    return before, between, behind


def _json(value: object) -> str:
    if value is TEXT_PLACE:
        return f'"{_PLACE}"'
    return _PLACE if value is NUMBER_PLACE else orjson.dumps(value).decode()


def _json_lines(held: list[HeldLine]) -> list[str]:
    lines = []
    second, start = -1, ""
    for created, (before, between, behind), text, number in held:
        milliseconds = int(created * 1000)
        if milliseconds // 1000 != second:
            second = milliseconds // 1000
            start = f'{{"time":"{_time_text(second)[:-4]}'
        fraction = _THOUSANDTHS[milliseconds % 1000]
        lines.append(f"{start}{fraction}{before}{text}{between}{number:.3f}{behind}")
    return lines


def _record_of(line: HeldLine) -> logging.LogRecord:
    known = orjson.loads(_json_lines([line])[0])
    record = logging.makeLogRecord(
        {"name": known["logger"], "levelno": logging.INFO, "levelname": known["level"]}
    )
    record.msg, record.created = known["event"], line[0]
    vars(record).update({name: known[name] for name in [*known][_LINE_STARTS:]})
    return record


def _time_text(created: float) -> str:
    """Return a time in UTC, as RFC 3339 writes it: 2026-11-22T09:38:57.828Z."""
    moment = datetime.fromtimestamp(created, UTC).replace(tzinfo=None)
    return f"{moment.isoformat(timespec='milliseconds')}Z"


def _is_printing(handler: logging.Handler) -> bool:
    printed = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return isinstance(handler, HoldingHandler) or (
        isinstance(handler, logging.StreamHandler) and handler.stream in printed
    )


class _Foreign(logging.Filter):
    """Other libraries' lines: without colours, and not the same one hundreds of times a second.

    Warnings of uvicorn count among them. Two lines are the same where they differ in words with
    digits only, such as ids. One is logged every ten seconds, with how many came in between.
    """

    def __init__(self) -> None:
        super().__init__()
        # A destructor that logs may run while this thread has it.
        self._lock = threading.RLock()
        self._began = time.monotonic()
        self._left_out: dict[_Line, int] = {}
        self._left_out_before: dict[_Line, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged; it may get the field `repeated`."""
        is_own = record.name.partition(".")[0] in _OWN
        if is_own and (record.name, record.levelno) != _REPEATED:
            return True
        try:
            message = _COLOURS.sub("", record.getMessage())
        except Exception:
            # Arguments that don't fit their text. `emit` meets the same error and says so; here it
            # would be raised in the library that logs.
            return True
        record.msg, record.args = message, None
        line = (record.name, record.levelno, _WORD.sub(_constant, message[:_MOST_COMPARED]))
        with self._lock:
            if time.monotonic() - self._began > _REPEATS_S:
                self._began = time.monotonic()
                self._left_out_before, self._left_out = self._left_out, {}
            if line in self._left_out:
                self._left_out[line] += 1
                return False
            if len(self._left_out) >= _MOST_LINES:
                return False
            self._left_out[line] = 0
            if repeated := self._left_out_before.pop(line, 0):
                vars(record)["repeated"] = repeated
        return True


def _constant(word: re.Match[str]) -> str:
    return "#" if any(letter.isdigit() for letter in word[0]) else word[0]


class _JsonFormatter(JsonFormatter):
    """The library's lines, with the time as `_time_text` writes it."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 -- logging's own
        """Return the time in UTC; see `_time_text`."""
        return _time_text(record.created)


def _json_formatter() -> logging.Formatter:
    renamed = {
        "asctime": "time",
        "levelname": "level",
        "name": "logger",
        "process": "pid",
        "message": "event",
    }
    return _JsonFormatter(
        " ".join(f"%({name})s" for name in _FIELDS),
        rename_fields=renamed,
        reserved_attrs=[*RESERVED_ATTRS, *_FOREIGN_FIELDS],
    )


class _TextFormatter(logging.Formatter):
    """The event, then its fields, as a person reads them."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's own name
        fields = {key: value for key, value in vars(record).items() if key not in _KNOWN}
        # The fields that a person looks for at a start stand below each other.
        blocks = [value for value in fields.values() if isinstance(value, dict)]
        lines = [
            f"\n    {key:<16} {_on_one_line(item)}"
            for block in blocks
            for key, item in block.items()
        ]
        flat = [
            f"{key}={_on_one_line(value)}"
            for key, value in fields.items()
            if not isinstance(value, dict)
        ]
        return " ".join([super().formatMessage(record), *flat]) + "".join(lines)


def _on_one_line(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else repr(text)
