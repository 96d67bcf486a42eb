"""The gate before routing: request id, trailing slash, access key, size of the body."""

from __future__ import annotations

import functools
import logging
import re
import secrets
import time
from collections.abc import Mapping
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policy_server.access_keys import AccessKey, KeyRing
from policy_server.access_keys import Scope as KeyScope
from policy_server.client_limits import NO_SHARE, ClientLimits, Share, client_address
from policy_server.errors import (
    BodyTooLargeError,
    ForbiddenOriginError,
    PolicyServerError,
    TooManyRequestsError,
    UnauthorizedError,
)
from policy_server.http_server import RefusedRequest
from policy_server.metrics import Metrics
from policy_server.request_log import RequestLog
from policy_server.serving import BodyQueue
from policy_server.settings import ENV_PREFIX
from policy_server.web.cross_origin import CrossOrigin
from policy_server.web.frame_admission import FrameAdmission
from policy_server.web.packed_bodies import unpacked
from policy_server.web.page_safety import PAGE_HEADERS
from policy_server.web.problems import send_error
from policy_server.web.request_headers import check_headers, given_id, read_headers
from policy_server.web.request_timing import (
    check_stamp,
    given_timeout_s,
    refuse_request_headers,
    sensible_stamp,
    stamp_lines,
)
from policy_server.web.request_turns import RequestTurns
from policy_server.web.route_table import Access, AnswerRoute, Route, RouteTable

__all__ = ["Gate", "RequestIds"]

logger = logging.getLogger(__name__)

# The messages that begin the answer to a request, or to a web socket's handshake.
_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_ID_BYTES = 16
_IDS_AT_ONCE = 64
_LENGTH = re.compile(r"[0-9]{1,18}")
# Addresses are the client's: those that are none of the table's share a label.
_UNKNOWN = Route(path="other")
# A method or an address that did not come.
_NOT_KNOWN = "-"


# What a key has to be for, by the access of a route; open ones ask for none.
_SCOPES: dict[Access, KeyScope] = {"key": "predict", "admin": "admin"}


class Gate:
    """ASGI middleware. Every response carries `x-request-id`: the client's if it is sensible.

    Attributes:
        metrics: where requests are counted.
        request_ids: the ids of requests that come without one.
        request_log: where requests are logged.
        keys: those that are valid now: whoever remembers that a request passed has to ask again
            when they have changed.
        client_limits: what one client may ask.
        bodies: the requests whose bodies wait to be read.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        table: RouteTable,
        streams: ASGIApp,
        keys: KeyRing,
        root_path: str,
        max_body_bytes: int,
        max_batch_body_bytes: int,
        client_limits: ClientLimits,
        bodies: BodyQueue,
        metrics: Metrics,
        request_log: RequestLog | None = None,
        cross_origin: CrossOrigin | None = None,
        max_upload_bytes: int = 0,
    ) -> None:
        """Own nothing; requests that pass are the application's.

        Args:
            app: answers behind the gate.
            table: the server's routes.
            streams: answers web sockets.
            keys: those that are valid.
            root_path: the prefix that a reverse proxy strips; empty takes the server's own.
            max_body_bytes: the largest body.
            max_batch_body_bytes: the largest body of a batch.
            max_upload_bytes: the largest body of an uploaded policy.
            client_limits: what one client may ask.
            bodies: the requests whose bodies wait to be read.
            metrics: where requests are counted.
            request_log: where they are logged; None for a log of all.
            cross_origin: the other origins whose pages may call; None sends no such headers.
        """
        self._app = app
        self._table = table
        self._streams = streams
        self.keys = keys
        self.client_limits = client_limits
        self.bodies = bodies
        self._root_path = root_path
        self._limits = {
            of: (limit, f"body is larger than {limit} bytes ({ENV_PREFIX}{name})")
            for of, limit, name in (
                ("single", max_body_bytes, "MAX_BODY_BYTES"),
                ("batch", max_batch_body_bytes, "MAX_BATCH_BODY_BYTES"),
                ("upload", max_upload_bytes, "MAX_UNPACKED_BYTES"),
            )
        }
        self.metrics = metrics
        self.request_ids = RequestIds()
        self.request_log = request_log or RequestLog()
        self._cross_origin = cross_origin
        self._turns = RequestTurns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        started = time.perf_counter()
        headers = read_headers(scope["headers"])
        request_id = given_id(headers) or self.request_ids.next()
        path = self._normalise(scope)
        route = self._table.find(path) or _UNKNOWN
        key: AccessKey | None = None
        # Errors carry it too, whatever they refuse.
        stamp = sensible_stamp(scope["headers"]) if isinstance(route, AnswerRoute) else ""
        share = NO_SHARE

        async def send_with_id(message: Message) -> None:
            if message["type"] in _STARTS:
                status = message.get("status", HTTPStatus.SWITCHING_PROTOCOLS)
                seconds = time.perf_counter() - started
                self.metrics.observe_request(
                    route.policy, route.label, status, seconds, key=_name_of(key)
                )
                # A web socket has its line when it ends.
                if status != HTTPStatus.SWITCHING_PROTOCOLS and self.request_log.is_on:
                    peer, method = scope["state"]["client"], scope.get("method", "GET")
                    version = self.model_version(route)
                    self.request_log.note(
                        request_id,
                        peer,
                        method,
                        route.label,
                        status,
                        seconds,
                        version,
                        _name_of(key),
                    )
                given = message.get("headers", ())
                message["headers"] = [
                    *given,
                    (b"x-request-id", request_id.encode()),
                    *self.page_headers(headers),
                    *(stamp_lines(stamp, started) if stamp else ()),
                    *(PAGE_HEADERS if route.is_page else ()),
                ]
            await send(message)

        scope["state"] = {
            **scope.get("state", {}),
            "request_id": request_id,
            "path": path,
            "episode": headers.get(b"x-episode-id", ""),
            "version": headers.get(b"x-policy-version", ""),
            "state_token": headers.get(b"x-state", ""),
            "content_type": headers.get(b"content-type", ""),
            "deadline": None,
            # Behind a proxy that uvicorn trusts, the client is the one that it forwards for.
            "client": client_address(scope.get("client")),
        }
        if self._cross_origin is not None and self._cross_origin.is_preflight(scope, headers):
            await self._cross_origin.answer_preflight(send_with_id)
            return
        try:
            key = self._admit_counted(route, scope, headers)
            scope["state"]["key"] = _name_of(key)
            share = self._begin(route, scope, key)
            self._read_headers(route, scope, headers, started)
            limited = self._limited(route, scope, headers, receive)
        except Exception as error:
            share.end()
            await self._turns.begin(started)
            await send_error(error, scope, receive, send_with_id)
            return
        try:
            if scope["type"] == "websocket":
                # Each frame has a share of its own.
                share.end()
                await self._streams(scope, receive, send_with_id)
            else:
                await self._wait_for_turn(route, started)
                await self._app(scope, limited, send_with_id)
        except ClientDisconnect:
            logger.info("client_disconnected", extra={"request_id": request_id})
        finally:
            share.end()

    async def _wait_for_turn(self, route: Route, started: float) -> None:
        """Let a request begin in its turn, unless the policies' schedulers know of it.

        Those gather the observations that come at once into one call.
        """
        if not isinstance(route, AnswerRoute):
            await self._turns.begin(started)

    def begin(self, route: Route, key: str | None, address: str | None) -> Share:
        """Count a request, or a frame, of a client; see `ClientLimits.begin`.

        Args:
            route: the route that it asks.
            key: the name of the client's key.
            address: the client's.

        Raises:
            TooManyRequestsError: if the client has asked too much; it is counted.
        """
        try:
            return self.client_limits.begin(key, address)
        except TooManyRequestsError as error:
            self.metrics.of(route.policy).count_rejected(error.reason)
            raise

    @staticmethod
    def _read_headers(
        route: Route, scope: Scope, headers: Mapping[bytes, str], started: float
    ) -> None:
        """Check the headers of a request, and note the deadline of one that asks for an answer."""
        if not _is_asked(route, scope):
            return
        check_headers(route, scope["headers"])
        if not isinstance(route, AnswerRoute):
            return
        if scope["type"] == "websocket":
            refuse_request_headers(scope["headers"])
            return
        timeout_s = given_timeout_s(headers)
        if timeout_s is not None:
            scope["state"]["deadline"] = started + timeout_s
        check_stamp(headers)

    def model_version(self, route: Route) -> str:
        """Return the start of the digest of the model behind a route, as the log names it."""
        return self.metrics.model_version(route.policy or self._table.default)

    def log_refused(self, refused: RefusedRequest) -> None:
        """Log a request that the protocol has refused before it came here.

        Its bytes are no part of the line: of what comes as an address only a route is named.

        Args:
            refused: the request, counted already.
        """
        if not self.request_log.is_on:
            return
        scope = {"path": refused.path, "root_path": refused.root_path}
        route = (self._table.find(self._normalise(scope)) if refused.path else None) or _UNKNOWN
        self.request_log.note(
            self.request_ids.next(),
            refused.client,
            refused.method or _NOT_KNOWN,
            route.label if refused.path else _NOT_KNOWN,
            refused.status,
            0.0,
            self.model_version(route),
        )

    def page_headers(self, headers: Mapping[bytes, str]) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer that a page of another origin needs.

        Args:
            headers: the request's, as `read_headers` gives them.
        """
        known = self._cross_origin
        return [] if known is None else known.headers(headers.get(b"origin"))

    def is_admitted(self, route: Route, key: AccessKey | None) -> bool:
        """Return whether a client that was let in would be let in now.

        Args:
            route: the route that it asks.
            key: the key that it was let in by.
        """
        scope = _SCOPES.get(route.access)
        return scope is None or self.keys.holds(key, scope)

    def admit_plain(
        self, scope: Scope, headers: Mapping[bytes, str]
    ) -> tuple[Route, str | None] | None:
        """Return the route of a request whose body needs nothing but to be read.

        Args:
            scope: of a request whose header `content-length` is a number.
            headers: its headers, as `read_headers` gives them.

        Returns:
            The route and the name of the key; None where there is no route, or the gate refuses the
            request, or its body has to be unpacked.
        """
        route = self._table.find(self._normalise(scope))
        if route is None or b"content-encoding" in headers:
            return None
        try:
            key = self._admit(route, scope, headers)
            check_headers(route, scope["headers"])
        except PolicyServerError:
            return None
        limit, _ = self._limits[route.body_limit]
        is_small = int(headers[b"content-length"]) <= limit
        return (route, _name_of(key)) if is_small else None

    def _normalise(self, scope: Scope) -> str:
        """Give the path its prefix and no trailing slash, as ASGI wants it, and return the route.

        A proxy may have stripped the prefix or not; a host that mounts us leaves its own in the
        path. The router takes the prefix off once, so that the checked path is the routed one. The
        host's own prefix stays as `mount_path`.
        """
        mount: str = scope.get("root_path", "")
        scope["mount_path"] = mount
        prefix = self._root_path or mount
        path = _without(mount, scope["path"])
        if prefix != mount:
            path = _without(prefix, path)
        path = path.rstrip("/") or "/"
        scope["root_path"], scope["path"] = prefix, prefix + path
        return path

    def _admit(self, route: Route, scope: Scope, headers: Mapping[bytes, str]) -> AccessKey | None:
        """Return the key of a request that is let in.

        Clients without a key are refused where one is needed, and web sockets of foreign pages. So
        is OPTIONS, whose answer tells which paths exist; a preflight is answered before.
        """
        of_route = _SCOPES.get(route.access)
        if of_route is None:
            return None
        if scope["type"] == "websocket":
            self._check_origin(scope, headers)
        return self.keys.admit(of_route, headers)

    def _admit_counted(
        self, route: Route, scope: Scope, headers: Mapping[bytes, str]
    ) -> AccessKey | None:
        """Return the key of a request; a wrong one is counted as a request of its address."""
        try:
            return self._admit(route, scope, headers)
        except UnauthorizedError:
            self.begin(route, None, scope["state"]["client"]).end()
            raise

    def _begin(self, route: Route, scope: Scope, key: AccessKey | None) -> Share:
        """Count a request that was let in, and let its route count the observations in it."""
        asked = scope["state"]
        begin = functools.partial(self.begin, route, asked["key"], asked["client"])
        # A load balancer takes a server that answers its probes by 429 for a broken one.
        share = NO_SHARE if route.is_health else begin()
        asked["charge"] = share.charge
        if scope["type"] == "websocket":
            asked["admission"] = FrameAdmission(
                self.keys,
                self.client_limits,
                is_admitted=functools.partial(self.is_admitted, route, key),
                begin=begin,
            )
        return share

    def _check_origin(self, scope: Scope, headers: Mapping[bytes, str]) -> None:
        """Refuse a web socket of a page whose origin is not allowed, since browsers don't."""
        known = self._cross_origin
        if known is not None and not known.allows_stream(scope, headers):
            raise ForbiddenOriginError(
                f"pages of {headers[b'origin']} may not open a stream here; allow them by "
                f"{ENV_PREFIX}CORS_ORIGINS"
            )

    def _limited(
        self, route: Route, scope: Scope, headers: Mapping[bytes, str], receive: Receive
    ) -> Receive:
        limit, too_large = self._limits[route.body_limit]
        length = headers.get(b"content-length", "")
        if _LENGTH.fullmatch(length):
            if int(length) > limit:
                raise BodyTooLargeError(f"the {too_large}")
            # The HTTP server reads no more than the length that the client states.
            counted = receive
        else:
            counted = _counted(receive, limit, f"the {too_large}")
        coding = headers.get(b"content-encoding")
        if coding is None or scope.get("method") != "POST":
            return counted
        return unpacked(counted, coding, limit=limit, too_large=f"the unpacked {too_large}")


class RequestIds:
    """Random ids of 128 bits: many are drawn at once, since a system call costs more than an id."""

    def __init__(self) -> None:
        """Own the ids that are drawn and not used yet."""
        self._ids: list[str] = []

    def next(self) -> str:
        """Return an id that no other request has: 32 hexadecimal digits."""
        if not self._ids:
            digits = secrets.token_hex(_ID_BYTES * _IDS_AT_ONCE)
            width = 2 * _ID_BYTES
            self._ids = [digits[at : at + width] for at in range(0, len(digits), width)]
        return self._ids.pop()


def _is_asked(route: Route, scope: Scope) -> bool:
    """Return whether the headers of a request are looked at.

    What asks nothing, such as a health check or a wrong method, is answered or refused as ever.
    """
    if isinstance(route, AnswerRoute):
        return bool(scope["type"] == "websocket" or scope["method"] == "POST")
    return route is not _UNKNOWN and route.access != "open"


def _name_of(key: AccessKey | None) -> str | None:
    return None if key is None else key.name


def _without(prefix: str, path: str) -> str:
    is_below = path == prefix or path.startswith(f"{prefix}/")
    return path.removeprefix(prefix) if is_below else path


def _counted(receive: Receive, limit: int, too_large: str) -> Receive:
    """Return an ASGI `receive` that gives a body up to a limit."""
    received = 0

    async def counted_receive() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > limit:
                raise BodyTooLargeError(too_large)
        return message

    return counted_receive
