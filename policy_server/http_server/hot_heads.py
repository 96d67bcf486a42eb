"""The heads of hot requests: parsed and decided once, then known byte for byte.

A client sends the same head again and again. What its bytes mean is decided by the parser that
uvicorn uses and by the application's gate; the outcome is remembered for exactly these bytes, the
access key among them. Heads that were seen once are not remembered, so that a client whose heads
all differ drives out nobody's.

A few parts differ from request to request: an id, the times that a client gives, headers of
tracing, and of a session its name in the address and the headers of its step. Those of a strict
form are cut out before the head is parsed, and read apart; all others stay in it, and may decide
that its request isn't hot.
"""

from __future__ import annotations

import logging
import re
from typing import NamedTuple, TypeVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from policy_server.http_server.hot_requests import (
    HotRoute,
    HotRoutes,
    OwnParts,
    RequestHead,
)
from policy_server.http_server.http_protocol import is_sound, value_of

__all__ = ["HotHeads", "KnownHead", "parse_head"]

logger = logging.getLogger(__name__)

_OK = 200
_METHOD = b"POST "
_VERSION = "1.1"
_LENGTH = re.compile(rb"[0-9]{1,18}")
_PATH = re.compile(rb"/[A-Za-z0-9._~!$&'()*+,;=:@/-]*")
_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})
# Headers that change how a body is read, or whom the connection belongs to afterwards.
_COLD = frozenset({b"expect", b"transfer-encoding", b"upgrade", b"http2-settings"})
# The last part of an address that looks like a session's name.
_SESSION = re.compile(rb"POST [A-Za-z0-9._~/-]*/sessions/([0-9a-f]{32})(?=/)")
# Headers that differ from request to request: an id, the stamp of an observation, the milliseconds
# that are left for the answer (up to an hour), those of a session's step, and those of tracing,
# which are not read here. None is folded: a line behind it begins with a name.
_VARYING = re.compile(
    rb"\r\n(?:x-request-id: ?([A-Za-z0-9._:-]{1,128})|"
    rb"x-observation-stamp: ?([A-Za-z0-9._:+-]{1,64})|"
    rb"x-request-timeout-ms: ?([1-9][0-9]{0,5}|[12][0-9]{6}|3[0-5][0-9]{5}|3600000)|"
    rb"x-step: ?([0-9]{1,18})|"
    rb"x-previous-reward: ?(-?[0-9]{1,30}(?:\.[0-9]{1,30})?(?:e[+-]?[0-9]{1,3})?)|"
    rb"x-previous-action: ?([!-~](?:[ -~]*[!-~])?)|"
    rb"(?:traceparent|tracestate|x-b3-[a-z]+|x-amzn-trace-id|x-cloud-trace-context): ?[!-~]+)"
    rb"(?=\r\n[^ \t])",
    re.IGNORECASE,
)
_PARTS = _VARYING.groups + 1
_MOST_HEADS = 1024
_MOST_TIMED = 64
_LONGEST_HEAD = 4096
_MOST_SEEN = 8192


_Decision = TypeVar("_Decision")
# A session's head is known by what comes before and behind its name.
_Key = bytes | tuple[bytes, bytes]


class KnownHead(NamedTuple):
    """The decision about a head.

    Attributes:
        route: answers its requests.
        length: how many bytes their bodies have.
        own: the parts that are a request's own.
    """

    route: HotRoute
    length: int
    own: OwnParts = OwnParts()


class _Cut(NamedTuple):
    """A head without the parts that are a request's own.

    Attributes:
        key: what it shares with all heads of the same decision; no other head's bytes equal that of
            a session's.
        head: the head to be parsed, the session's name in the address still.
        own: the parts.
    """

    key: bytes | tuple[bytes, bytes]
    head: bytes
    own: OwnParts


class HotHeads:
    """The heads that are known: at most 1,024 of up to 4 KiB, and 64 whole ones with a timeout.

    Attributes:
        default_headers: uvicorn's, as `opening` was given them last.
        ok_opening: what `opening` returns for them and the status 200.
    """

    def __init__(self, routes: HotRoutes, *, root_path: str = "") -> None:
        """Own the decisions, for as long as the server runs.

        Args:
            routes: decide about heads.
            root_path: uvicorn's `--root-path`.
        """
        self._routes = routes
        self._root_path = root_path
        self._known: dict[_Key, KnownHead | None] = {}
        # Whole, with the time that they give for the answer.
        self._timed: dict[_Key, KnownHead] = {}
        self._seen: set[int] = set()
        self._changes = routes.changes
        self.default_headers: list[tuple[bytes, bytes]] = []
        self.ok_opening = b""
        self._openings: dict[int, bytes] = {}

    def __len__(self) -> int:
        """Return how many heads are remembered."""
        return len(self._known) + len(self._timed)

    def opening(self, default_headers: list[tuple[bytes, bytes]], status: int) -> bytes:
        """Return the status line of an answer and the headers that each answer has.

        Args:
            default_headers: uvicorn's, another list each second.
            status: of the answer.
        """
        if default_headers is not self.default_headers:
            self.default_headers = default_headers
            self._openings.clear()
            self.ok_opening = self.opening(default_headers, _OK)
        opening = self._openings.get(status)
        if opening is None:
            lines = [name.lower() + b": " + value + b"\r\n" for name, value in default_headers]
            opening = self._openings[status] = STATUS_LINE[status] + b"".join(lines)
        return opening

    def find(self, head: bytes) -> KnownHead | None:
        """Return the decision about a head; None where its request goes uvicorn's own way.

        Args:
            head: all bytes up to the empty line, and this too.
        """
        if self._routes.changes != self._changes:
            self._changes = self._routes.changes
            self._known.clear()
            self._timed.clear()
        known = self._known.get(head, _UNKNOWN)
        if known is _UNKNOWN:
            known = self._timed.get(head, _UNKNOWN)
        if known is not _UNKNOWN:
            return known
        cut = _cut(head) if head.startswith(_METHOD) else None
        return None if cut is None else self._find_cut(cut, head)

    def _find_cut(self, cut: _Cut, head: bytes) -> KnownHead | None:
        known = self._known.get(cut.key, _UNKNOWN)
        if known is _UNKNOWN:
            known = self._decide(cut)
            if self._comes_again(cut.key, len(cut.head)):
                _add(self._known, cut.key, known, most=_MOST_HEADS)
        if known is None or cut.own is _NO_PARTS:
            return known
        known = KnownHead(known.route, known.length, cut.own)
        if (
            cut.own.timeout_ms is not None
            and cut.own == OwnParts(timeout_ms=cut.own.timeout_ms)
            and self._comes_again(head, len(head))
        ):
            # Most clients give the same time with each request.
            _add(self._timed, head, known, most=_MOST_TIMED)
        return known

    def _comes_again(self, key: _Key, length: int) -> bool:
        """Return whether a head is short, and was seen before."""
        if length > _LONGEST_HEAD:
            return False
        mark = hash(key)
        if mark in self._seen:
            return True
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen.add(mark)
        return False

    def _decide(self, cut: _Cut) -> KnownHead | None:
        try:
            parsed = parse_head(cut.head, root_path=self._root_path, session_id=cut.own.session_id)
            route = None if parsed is None else self._routes.find(parsed)
        except Exception:
            # The request has its answer from ASGI, an error where it fails there too.
            logger.exception("hot_head_failed")
            return None
        return None if parsed is None or route is None else KnownHead(route, parsed.length)


def _add(heads: dict[_Key, _Decision], key: _Key, known: _Decision, *, most: int) -> None:
    if len(heads) >= most:
        # The oldest: a head that is still in use comes back at once.
        del heads[next(iter(heads))]
    heads[key] = known


def _cut(head: bytes) -> _Cut | None:
    """Return a head without its request's own parts; None where one but the id is there twice."""
    session = _SESSION.match(head)
    pieces = _VARYING.split(head)
    if session is None and len(pieces) == 1:
        return _Cut(head, head, _NO_PARTS)
    # Text, and a group of each header, one after another.
    ids, stamps, *others = (list(filter(None, pieces[at::_PARTS])) for at in range(1, _PARTS))
    if any(len(given) > 1 for given in (stamps, *others)):
        return None
    timeout_ms, step, reward, action = (given[0].decode() if given else None for given in others)
    whole = head if len(pieces) == 1 else b"".join(pieces[::_PARTS])
    own = OwnParts(
        ids[0].decode() if ids else "",
        stamps[0].decode() if stamps else "",
        "" if session is None else session[1].decode(),
        None if timeout_ms is None else int(timeout_ms),
        None if step is None else int(step),
        reward,
        action,
    )
    if session is None:
        return _Cut(whole, whole, own)
    start, end = session.span(1)
    return _Cut((whole[:start], whole[end:]), whole, own)


_NO_PARTS = OwnParts()
# The absence of a decision: None is one.
_UNKNOWN = KnownHead(None, -1)  # type: ignore[arg-type]  # never handed out


def parse_head(head: bytes, *, root_path: str = "", session_id: str = "") -> RequestHead | None:
    """Return a head as ASGI would give it; None for any but a plain POST with a body.

    Args:
        head: all bytes up to the empty line, and this too.
        root_path: uvicorn's `--root-path`.
        session_id: see `RequestHead`.
    """
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    if not reader.is_head_whole or reader.is_behind_head or parser.should_upgrade():
        return None
    lengths = [value for name, value in reader.headers if name == b"content-length"]
    is_plain = (
        parser.get_method() == b"POST"
        and parser.get_http_version() == _VERSION
        and _PATH.fullmatch(reader.url) is not None
        and _COLD.isdisjoint(name for name, _ in reader.headers)
        and is_sound(reader.headers)
        and len(lengths) == 1
        and _LENGTH.fullmatch(lengths[0]) is not None
    )
    if not is_plain or int(lengths[0]) == 0:
        return None
    return RequestHead(
        path=root_path + reader.url.decode(),
        root_path=root_path,
        headers=tuple(reader.headers),
        length=int(lengths[0]),
        is_kept_alive=parser.should_keep_alive(),
        is_forwarded=not _FORWARDED.isdisjoint(name for name, _ in reader.headers),
        session_id=session_id,
    )


class _Reader:
    """Takes the parser's events."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_head_whole = False
        self.is_behind_head = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value_of(value)))

    def on_headers_complete(self) -> None:
        self.is_head_whole = True

    def on_body(self, _body: bytes) -> None:
        self.is_behind_head = True

    def on_message_complete(self) -> None:
        self.is_behind_head = True
