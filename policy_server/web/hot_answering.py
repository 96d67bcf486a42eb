"""Hot requests about one observation: from a body to an answer's bytes, without ASGI.

What the requests of sessions and teams share with them is here too: the decision about a head, and
the reply to a request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from policy_server.client_limits import NO_SHARE
from policy_server.errors import PolicyServerError
from policy_server.http_server import Connection, HotRequest, OwnParts, RequestHead
from policy_server.policy import AnswerKind
from policy_server.serving import AnsweredCall, PolicyVersion, Question
from policy_server.web.answering import PolicyAnswering
from policy_server.web.gate import Gate
from policy_server.web.media_types import is_npy
from policy_server.web.problems import error_response
from policy_server.web.request_timing import stamp_lines
from policy_server.web.route_table import AnswerRoute

__all__ = ["AdmittedHead", "HotAnswering", "HotDecision", "HotReply"]

logger = logging.getLogger(__name__)

_OK = 200
_END = b"\r\n"
_JSON = b"\r\ncontent-type: application/json\r\n"
Headers = list[tuple[bytes, bytes]]


class AdmittedHead(NamedTuple):
    """A head that the gate has let pass.

    Attributes:
        gate: let it pass; counts and logs.
        route: the requests'.
        head: the head.
        headers: the head's, as `read_headers` gives them.
        key: the name of the key that it carries; None where none is asked for.
    """

    gate: Gate
    route: AnswerRoute
    head: RequestHead
    headers: Mapping[bytes, str]
    key: str | None


class HotDecision:
    """The decision about all requests with one head, which the gate has let pass.

    Attributes:
        gate: let the head pass; counts and logs.
        route: the requests'.
        head: the requests'.
        request_log: where they are logged.
        observe_answer: counts an answer, by its time in seconds.
        key: the name of the key that the head carries; None where none is asked for.
        bodies: the requests whose bodies wait to be read.
        is_limited: whether any client has limits; where that changes, the head is decided anew.
        content_type: of the bodies.
        episode: the header `x-episode-id`.
        wanted: the header `x-policy-version`.
        next_id: gives a new id.
        ending: the headers of an answer behind its request's id, and the end of that line.
    """

    def __init__(self, admitted: AdmittedHead) -> None:
        """Own the decision, for as long as the head is known.

        Args:
            admitted: the head.
        """
        gate, route, head, headers, key = admitted
        self.bodies = gate.bodies
        self.gate = gate
        self.route = route
        self.head = head
        self.key = key
        self.is_limited = gate.client_limits.is_on
        self.request_log = gate.request_log
        self.observe_answer = gate.metrics.request_recorder(route.policy, route.label, _OK, key=key)
        self.next_id = gate.request_ids.next
        self.content_type = headers.get(b"content-type", "")
        self.episode = headers.get(b"x-episode-id", "")
        self.wanted = headers.get(b"x-policy-version", "")
        self.ending = _END + _header_lines(gate.page_headers(headers))

    def begin(self, request: HotReply) -> bool:
        """Begin a request, and return whether its body is to be read at once.

        Where bodies may wait, the queue reads it, now or later.

        Args:
            request: one of these.
        """
        request.connection.begin(request)
        if self.is_limited and not self.lets_in(request):
            return False
        if self.bodies.is_bounded:
            self.bodies.take(request)
            return False
        return True

    def lets_in(self, request: HotReply) -> bool:
        """Count a request of a client that may have limits, and answer one that is too many.

        What else fails is answered 500: nobody but the connection would hear of it, and end.

        Args:
            request: one of these, which was begun.

        Returns:
            Whether it is to be answered still.
        """
        try:
            client = request.connection.client_of(request.head)
            request.share = self.gate.begin(self.route, self.key, client)
        except Exception as error:
            request.end(error)
            return False
        return True

    def log(self, request: HotReply, status: int, seconds: float) -> None:
        """Log a request.

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

    def count_rejected(self, reason: str) -> None:
        """Count a request that is not answered; see `PolicyMetrics.count_rejected`."""
        self.gate.metrics.of(self.route.policy).count_rejected(reason)

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
        return _header_lines([*headers, (b"x-request-id", request_id.encode())]) + self.ending[2:]


class HotReply(HotRequest):
    """A request of a connection, up to the bytes of its answer; see `UnreadRequest`.

    Attributes:
        share: of its client's limits, until its answer is sent.
        body: of the head's length.
        is_unread: whether it waits for its body to be read.
        has_waited: whether it has ever waited for that.
    """

    share = NO_SHARE
    is_unread = False
    has_waited = False

    def __init__(
        self, decision: HotDecision, connection: Connection, own: OwnParts, body: bytes
    ) -> None:
        """Own the request until it is answered.

        Args:
            decision: about its head.
            connection: the client's.
            own: its parts of the head.
            body: of the head's length.
        """
        self.body = body
        self.connection = connection
        self.head = decision.head
        self.request_id = own.request_id or decision.next_id()
        self._decision = decision
        self._own = own
        self.started = time.perf_counter()

    @property
    def taken_up(self) -> float:
        """Return when its head had come, by `time.perf_counter`: the client's times count from it.

        `started` is later where the body came behind it.
        """
        return self._own.head_came or self.started

    @property
    def own_deadline(self) -> float | None:
        """Return when the client has no use for the answer any more; None where it never says."""
        timeout_ms = self._own.timeout_ms
        return None if timeout_ms is None else self.taken_up + timeout_ms / 1000

    def read_body(self) -> None:
        """Read the body, and ask the policy; nothing is raised."""
        raise NotImplementedError

    def refuse(self, reason: str, error: PolicyServerError) -> None:
        """Answer with an error, and count it by its reason."""
        self._decision.count_rejected(reason)
        self.end(error)

    def charge(self, observations: int) -> None:
        """Count more observations than one; see `Share.charge`."""
        self.share.charge(observations)

    def take_error(self, error: PolicyServerError) -> None:
        """Answer with the error of the question."""
        self.end(error)

    def succeed(self, text: bytes, headers: Headers) -> None:
        """Answer.

        Args:
            text: the JSON of the answer.
            headers: those that tell of it.
        """
        lines = b"content-length: %d%b%bx-request-id: %b%b" % (
            len(text),
            _JSON,
            _header_lines(headers),
            self.request_id.encode(),
            self._decision.ending,
        )
        self.finish(_OK, lines, text)

    def end(self, error: Exception) -> None:
        """Answer with an error."""
        self.is_done = True
        response = error_response(error, request_id=self.request_id)
        lines = self._decision.error_lines(response.raw_headers, self.request_id)
        self.finish(response.status_code, lines, bytes(response.body))

    def note_sent(self) -> None:
        """Give the share of the client's limits back: the answer was sent, or can't be."""
        self.share.end()

    def disconnect(self) -> None:
        """Give the question up: the client has gone."""
        self.note_sent()
        if self.is_unread:
            self._decision.bodies.forget(self)
        self.give_up()
        logger.info("client_disconnected", extra={"request_id": self.request_id})

    def finish(self, status: int, lines: bytes, body: bytes) -> None:
        """Write the answer in its turn, or end the connection where that fails.

        Args:
            status: of the answer.
            lines: its own headers, each ended by CRLF.
            body: its body.
        """
        try:
            if self.has_waited and status == _OK:
                self._decision.bodies.note_answer(time.perf_counter() - self.started)
            self.connection.finish(self, status, lines, body)
        except Exception:
            # Whoever calls has the answers of other connections yet to give.
            logger.exception("answer_not_taken", extra={"request_id": self.request_id})
            self.note_sent()
            self.abort()

    def tell(self, status: int, lines: bytes) -> bytes:
        """Count and log the answer; see `HotRequest`."""
        decision = self._decision
        stamp = self._own.stamp
        if stamp:
            lines += _header_lines(stamp_lines(stamp, self.taken_up))
        seconds = time.perf_counter() - self.started
        if status == _OK:
            decision.observe_answer(seconds)
        else:
            decision.observe_error(status, seconds)
        if decision.request_log.is_on:
            decision.log(self, status, seconds)
        return lines


class HotAnswering(HotDecision):
    """The answers to all requests about one observation with one head; see `HotRoute`."""

    def __init__(self, admitted: AdmittedHead, policy: PolicyAnswering) -> None:
        """Own the decision; see `HotDecision`.

        Args:
            admitted: see `HotDecision`.
            policy: answers.
        """
        super().__init__(admitted)
        self.policy = policy
        self._observe_validation = policy.slot.metrics.stage_recorder("validate")
        self.kind: AnswerKind = admitted.route.kind
        self._is_npy = is_npy(self.content_type)
        self.known_version: PolicyVersion | None = None
        self.opening = b""
        # Reads the bodies for the version that is asked now.
        self._asked_version: PolicyVersion | None = None
        self._read: Callable[[bytes], Question]

    def ask(self, body: bytes, connection: Connection, own: OwnParts) -> None:
        """Begin a request, and finish it now or later; see `HotRoute.ask`."""
        request = _Request(self, connection, own, body)
        if self.begin(request):
            self.put(request, own.timeout_ms)

    def put(self, request: _Request, timeout_ms: int | None) -> None:
        """Read a request's body, and ask the policy.

        Args:
            request: one of these.
            timeout_ms: its own; None for none.
        """
        policy = self.policy
        try:
            began = time.perf_counter() if request.has_waited else request.started
            request.version = version = policy.slot.choose(self.episode, wanted=self.wanted)
            if version is not self._asked_version:
                self._read = policy.reader(
                    version, self.kind, is_raw=self.route.is_raw, is_npy=self._is_npy
                )
                self._asked_version = version
            request.question = question = self._read(request.body)
            if timeout_ms is not None:
                question.deadline = request.own_deadline
            version.scheduler.put(request)
        except Exception as error:
            request.end(error)
        else:
            self._observe_validation(request.asked - began)

    def know(self, version: PolicyVersion) -> None:
        """Make the headers that all answers of a version have.

        Args:
            version: gives the answers.
        """
        given = [(b"content-type", b"application/json"), *version.lone_headers]
        self.opening = _END + _header_lines(given) + b"x-request-id: "
        self.known_version = version


class _Request(HotReply):
    """One request, from its body to its answer."""

    _decision: HotAnswering
    version: PolicyVersion
    # Until its body is read.
    question = Question([], "predict")

    def read_body(self) -> None:
        self._decision.put(self, self._own.timeout_ms)

    def take(self, call: AnsweredCall, index: int) -> None:
        route, version = self._decision, self.version
        try:
            text = route.policy.render(version, self.question, call, index, self.request_id)
        except Exception as error:
            self.end(error)
            return
        if version is not route.known_version:
            route.know(version)
        lines = b"content-length: %d%b%b%b" % (
            len(text),
            route.opening,
            self.request_id.encode(),
            route.ending,
        )
        self.finish(_OK, lines, text)


def _header_lines(headers: Headers) -> bytes:
    """Return headers as HTTP has them, each line ended by CRLF.

    Args:
        headers: names and values.
    """
    return b"".join(name.lower() + b": " + value + _END for name, value in headers)
