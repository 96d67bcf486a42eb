"""The hot path: the routes that answer one observation, without ASGI.

The protocol of a connection hands over a request's head and body (`http_server.hot_requests`); the
gate's own checks decide about the head, once, and `PolicyAnswering` reads and renders as it does
for the fast path and for FastAPI's routes. All that isn't answered here ASGI answers, refused
requests too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from policy_server.errors import ObservationError, PolicyServerError
from policy_server.http_server import Connection, HotRequest, RequestHead
from policy_server.policy import AnswerKind
from policy_server.serving import AnsweredCall, PolicyVersion, Question
from policy_server.web.answering import PolicyAnswering
from policy_server.web.gate import Gate, given_id, read_headers
from policy_server.web.media_types import is_npy
from policy_server.web.problems import error_response
from policy_server.web.request_timing import given_timeout_s, stamp_lines
from policy_server.web.route_table import AnswerRoute

__all__ = ["HotAnswers"]

logger = logging.getLogger(__name__)

_OK = 200
_END = b"\r\n"
Headers = list[tuple[bytes, bytes]]


class HotAnswers:
    """Decides which requests are hot, and answers them; see `HotRoutes`."""

    def __init__(self, gate: Gate, policies: Mapping[str, PolicyAnswering]) -> None:
        """Own nothing: the gate decides, and the policies answer.

        Args:
            gate: checks keys and sizes, counts and logs.
            policies: answer observations, by the policies' names.
        """
        self._gate = gate
        self._policies = policies

    @property
    def changes(self) -> int:
        """Return how often what the gate lets pass has changed; see `HotRoutes`."""
        return self._gate.keys.changes

    def find(self, head: RequestHead) -> HotAnswering | None:
        """Return the route of a request; None where ASGI has to answer it; see `HotRoutes`."""
        scope = {
            "type": "http",
            "method": "POST",
            "path": head.path,
            "root_path": head.root_path,
            "headers": head.headers,
        }
        headers = read_headers(head.headers)
        route, key = self._gate.admit_plain(scope, headers) or (None, None)
        if not isinstance(route, AnswerRoute) or route.transport != "single":
            return None
        # A stamp that is none, or is written in an unusual way, is still there.
        if headers.get(b"x-state") or b"x-observation-stamp" in headers:
            return None
        try:
            timeout_s = given_timeout_s(headers)
        except ObservationError:
            return None
        policy = self._policies[route.policy]
        return HotAnswering(self._gate, policy, route, head, headers, key=key, timeout_s=timeout_s)


class HotAnswering:
    """The answers to all requests with one head; see `HotRoute`."""

    def __init__(
        self,
        gate: Gate,
        policy: PolicyAnswering,
        route: AnswerRoute,
        head: RequestHead,
        headers: Mapping[bytes, str],
        *,
        key: str | None,
        timeout_s: float | None,
    ) -> None:
        """Own the decision, for as long as the head is known.

        Args:
            gate: let the head pass; counts and logs.
            policy: answers.
            route: the request's.
            head: the request's.
            headers: the head's, as `read_headers` gives them.
            key: the name of the key that the head carries; None where none is asked for.
            timeout_s: how long the client waits for an answer, in seconds; None where it does not
                say.
        """
        self.key = key
        self.gate = gate
        self.request_log = gate.request_log
        self.policy = policy
        self.route = route
        self.head = head
        self.kind: AnswerKind = route.kind
        self._next_id = gate.request_ids.next
        self._observe_validation = policy.slot.metrics.stage_recorder("validate")
        self.observe_answer = gate.metrics.request_recorder(route.policy, route.label, _OK, key=key)
        self._is_raw = route.is_raw
        self._is_npy = is_npy(headers.get(b"content-type", ""))
        self._request_id = given_id(headers)
        self._episode = headers.get(b"x-episode-id", "")
        self._wanted = headers.get(b"x-policy-version", "")
        self._timeout_s = timeout_s
        # The headers of an answer behind its length and its request's id.
        self.ending = _END + _lines(gate.page_headers(headers))
        self.known_version: PolicyVersion | None = None
        self.opening = b""
        # Reads the bodies for the version that is asked now.
        self._asked_version: PolicyVersion | None = None
        self._read: Callable[[bytes], Question]

    def ask(self, body: bytes, connection: Connection, request_id: str, stamp: str) -> None:
        """Begin a request, and finish it now or later; see `HotRoute.ask`."""
        request_id = request_id or self._request_id or self._next_id()
        request = _Request(self, connection, request_id)
        if stamp:
            request.stamp = stamp
        connection.begin(request)
        policy = self.policy
        try:
            request.version = version = policy.slot.choose(self._episode, wanted=self._wanted)
            if version is not self._asked_version:
                self._read = policy.reader(
                    version, self.kind, is_raw=self._is_raw, is_npy=self._is_npy
                )
                self._asked_version = version
            request.question = question = self._read(body)
            if self._timeout_s is not None:
                question.deadline = request.started + self._timeout_s
            version.scheduler.put(request)
        except Exception as error:
            request.is_done = True
            request.end(error)
        else:
            self._observe_validation(request.asked - request.started)

    def know(self, version: PolicyVersion) -> None:
        """Make the headers that all answers of a version have.

        Args:
            version: gives the answers.
        """
        given = [(b"content-type", b"application/json"), *version.lone_headers]
        self.opening = _END + _lines(given) + b"x-request-id: "
        self.known_version = version

    def log(self, request: _Request, status: int, seconds: float) -> None:
        """Log a request, if requests are logged.

        Args:
            request: one of these.
            status: of its answer.
            seconds: from its body to its answer.
        """
        gate, route = self.gate, self.route
        client = request.connection.client_of(request.head)
        version = gate.model_version(route)
        gate.request_log.note(
            request.request_id, client, "POST", route.label, status, seconds, version, self.key
        )

    def observe_error(self, status: int, seconds: float) -> None:
        """Count a request that is answered by an error.

        Args:
            status: of its answer.
            seconds: from its body to its answer.
        """
        route, metrics = self.route, self.gate.metrics
        metrics.observe_request(route.policy, route.label, status, seconds, key=self.key)

    def error_lines(self, headers: Headers, request_id: str) -> bytes:
        """Return the headers of an error, each ended by CRLF.

        Args:
            headers: the error's own.
            request_id: the request's id.
        """
        return _lines([*headers, (b"x-request-id", request_id.encode())]) + self.ending[2:]


class _Request(HotRequest):
    """One request, from its body to its answer."""

    version: PolicyVersion
    # Until its body is read.
    question = Question([], "predict")
    stamp = ""

    def __init__(self, route: HotAnswering, connection: Connection, request_id: str) -> None:
        self.connection = connection
        self.head = route.head
        self._route = route
        self.request_id = request_id
        self.started = time.perf_counter()

    def take(self, call: AnsweredCall, index: int) -> None:
        route, version, request_id = self._route, self.version, self.request_id
        try:
            text = route.policy.render(version, self.question, call, index, request_id)
        except Exception as error:
            self.end(error)
            return
        if version is not route.known_version:
            route.know(version)
        lines = b"content-length: %d%b%b%b" % (
            len(text),
            route.opening,
            request_id.encode(),
            route.ending,
        )
        if self.stamp:
            lines += _lines(stamp_lines(self.stamp, self.started))
        seconds = time.perf_counter() - self.started
        route.observe_answer(seconds)
        if route.request_log.is_on:
            route.log(self, _OK, seconds)
        self.connection.finish(self, _OK, lines, text)

    def take_error(self, error: PolicyServerError) -> None:
        self.end(error)

    def end(self, error: Exception) -> None:
        """Answer with an error."""
        route = self._route
        response = error_response(error, request_id=self.request_id)
        status = response.status_code
        lines = route.error_lines(response.raw_headers, self.request_id)
        if self.stamp:
            lines += _lines(stamp_lines(self.stamp, self.started))
        seconds = time.perf_counter() - self.started
        route.observe_error(status, seconds)
        if route.request_log.is_on:
            route.log(self, status, seconds)
        self.connection.finish(self, status, lines, bytes(response.body))

    def disconnect(self) -> None:
        self.give_up()
        logger.info("client_disconnected", extra={"request_id": self.request_id})


def _lines(headers: Headers) -> bytes:
    return b"".join(name.lower() + b": " + value + _END for name, value in headers)
