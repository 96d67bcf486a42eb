"""Logs: one event a line, as JSON for machines or as text on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import orjson
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

__all__ = ["configure_logging"]

# What uvicorn and Ray add to records for their own formatters.
_FOREIGN_FIELDS = ("color_message", "_ray_timestamp_ns")
_FIELDS = ("asctime", "levelname", "name", "message")
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    *_FOREIGN_FIELDS,
}
_ACCESS = "policy_server.access"


def configure_logging(*, level: str, log_format: Literal["auto", "json", "text"]) -> None:
    """Send this package's and uvicorn's logs to standard error.

    Args:
        level: the least level that is logged.
        log_format: `json`, `text`, or `auto`: text on a terminal, JSON otherwise.
    """
    is_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(_json_formatter() if is_json else _TextFormatter())
    access = logging.getLogger("uvicorn.access")
    if not access.handlers and not access.propagate:
        # uvicorn was started with --no-access-log.
        logging.getLogger(_ACCESS).setLevel(logging.WARNING)
    # Our own line says more: the request's id, its route and how long it took.
    access.handlers, access.propagate, access.disabled = [], False, True
    for name in ("policy_server", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name in ("policy_server", "uvicorn") else []
        logger.propagate = name not in ("policy_server", "uvicorn")
        logger.setLevel(level)
    if level == "DEBUG":
        # Of web sockets uvicorn then logs every header, and the access key is one.
        logging.getLogger("uvicorn.error").setLevel("INFO")


class _JsonFormatter(JsonFormatter):
    """The library's lines; that of a request, of which there are thousands a second, faster.

    Its fields are plain values, which need none of the library's care.
    """

    def format(self, record: logging.LogRecord) -> str:
        if record.name != _ACCESS:
            return super().format(record)
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "event": record.msg,
        }
        line |= {key: value for key, value in vars(record).items() if key not in _KNOWN}
        return orjson.dumps(line).decode()


def _json_formatter() -> logging.Formatter:
    renamed = {"asctime": "time", "levelname": "level", "name": "logger", "message": "event"}
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
        # What a person looks for at a start stands below each other.
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
