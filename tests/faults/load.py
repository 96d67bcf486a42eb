"""Clients that ask without a pause: each request is counted once, and each answer is checked."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from tests.support.folders import EXPORTS
from tests.support.library_policies import cases_of
from tests.support.server_processes import KEY
from tests.support.unix_sockets import UnixConnection

__all__ = [
    "CLIENTS",
    "EXPORT",
    "OK",
    "RECURRENT",
    "Asked",
    "Episodes",
    "Harmful",
    "Load",
    "Question",
    "Streams",
    "Tokens",
    "first_steps",
    "is_distribution",
    "modes",
    "says_when",
    "steps",
]

EXPORT = "ppo_discrete"
RECURRENT = "sb3_recurrent_ppo"
OK, _CREATED, _UNAVAILABLE = 200, 201, 503
CLIENTS = 32
_TIMEOUT_S = 60.0
_PAUSE_S = 0.01
# How long a frame and the server's word that it ends may take to pass each other.
_CROSSING_S = 0.5
_TOLERANCE = 1e-5


class Question(NamedTuple):
    """A request, and the check of its answer.

    Attributes:
        path: its path.
        body: its body.
        is_right: whether the JSON of a 200 is the right answer.
        failure: the status that a failure has to have, beside 503; None for any.
        by_policy: the same as `is_right`, of versions that are named `POLICY-NUMBER`, by `POLICY`.
    """

    path: str
    body: str
    is_right: Callable[[Any], bool]
    failure: int | None = None
    by_policy: Mapping[str, Callable[[Any], bool]] = {}

    def is_answered_by(self, text: str | bytes, version: str = "") -> bool:
        """Return whether the body of a 200 is right; one that can't even be read is not.

        Args:
            text: the body.
            version: the name of the version that has answered.
        """
        is_right = self.by_policy.get(version.rpartition("-")[0], self.is_right)
        try:
            return is_right(json.loads(text))
        except (ValueError, LookupError, TypeError):
            return False

    def may_fail(self, status: int, headers: Mapping[str, str]) -> bool:
        """Return whether an answer other than 200 is one that the question may get.

        Args:
            status: its status.
            headers: its headers, by names in lower case.
        """
        is_expected = self.failure in (None, status) or status == _UNAVAILABLE
        return is_expected and says_when(status, headers)


class Asked(NamedTuple):
    """A request that was sent, and its answer.

    Attributes:
        at: when it was sent, by `time.monotonic`.
        status: its status; 0 if the connection ended.
        seconds: how long its answer took.
        is_right: whether that is the library's; of a 503, whether it has `Retry-After`.
        version: the name of the version that has answered; empty where it is not looked at.
    """

    at: float
    status: int
    seconds: float
    is_right: bool
    version: str = ""


class Answer(NamedTuple):
    """An answer, with status 0 where the connection ended without one."""

    status: int
    headers: Mapping[str, str] = {}
    text: bytes = b""

    @property
    def version(self) -> str:
        """Return the name of the version that has answered; empty for none."""
        return self.headers.get("x-policy-version", "")


class Client:
    """A client with one connection, which is kept open for as long as the server allows."""

    def __init__(self, load: Load) -> None:
        """Own the connection, until `close`."""
        self._load = load
        self._connection = _connection_to(load)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def is_connected(self) -> bool:
        """Connect, unless it is; return False where nobody listens, which is no request."""
        if self._connection.sock is None:
            try:
                self._connection.connect()
            except OSError:
                time.sleep(_PAUSE_S)
                return False
        return True

    def ask(
        self, question: Question, headers: Mapping[str, str] | None = None, *, method: str = "POST"
    ) -> Answer:
        """Send a request on the connection, and count it."""
        began = time.monotonic()
        known = {"access-token": KEY, "content-type": "application/json", **(headers or {})}
        is_right = True
        try:
            self._connection.request(method, question.path, question.body, known)
            got = self._connection.getresponse()
            answer = Answer(got.status, {k.lower(): v for k, v in got.headers.items()}, got.read())
            if answer.status == OK:
                is_right = question.is_answered_by(answer.text, answer.version)
            else:
                is_right = question.may_fail(answer.status, answer.headers)
        except (OSError, http.client.HTTPException) as error:
            # An answer that has begun, or none, ends with its connection; another one is no HTTP.
            is_right = isinstance(error, OSError | http.client.IncompleteRead)
            answer = Answer(0)
            self._connection.close()
        seconds = time.monotonic() - began
        self._load.sent.append(Asked(began, answer.status, seconds, is_right, answer.version))
        return answer


@dataclass
class Load:
    """Clients of one server, each of which asks questions in turn.

    Attributes:
        url: the server's address.
        questions: what is asked.
        clients: how many ask.
        sent: the requests, in the order of their answers.
        is_over: tells the clients to end.
        uds: the server's UNIX socket, in place of the host and port; None for TCP.
    """

    url: str
    questions: list[Question]
    clients: int = CLIENTS
    sent: list[Asked] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    uds: Path | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask until the block ends."""
        with ThreadPoolExecutor(self.clients) as pool:
            asking = [pool.submit(self._ask) for _ in range(self.clients)]
            try:
                yield
            finally:
                self.is_over.set()
        for client in asking:
            client.result()

    def _ask(self) -> None:
        client = Client(self)
        try:
            while not self.is_over.is_set():
                if client.is_connected():
                    self.go_on(client)
        finally:
            client.close()

    def go_on(self, client: Client) -> None:
        """Ask the next question."""
        client.ask(self.questions[len(self.sent) % len(self.questions)])


def _connection_to(load: Load) -> http.client.HTTPConnection:
    if load.uds is not None:
        return UnixConnection(load.uds, timeout=_TIMEOUT_S)
    address = urlsplit(load.url)
    assert address.hostname is not None
    return http.client.HTTPConnection(address.hostname, address.port, timeout=_TIMEOUT_S)


@dataclass
class Episodes(Load):
    """Clients that step a session each, and send a step again that got no answer."""

    states: dict[Client, tuple[str, int]] = field(default_factory=dict)

    def go_on(self, client: Client) -> None:
        """Make the next step, or begin."""
        session, step = self.states.get(client, ("", 0))
        if not session:
            begun = client.ask(Question("/sessions", "", bool))
            if begun.status == _CREATED:
                self.states[client] = (f"/sessions/{json.loads(begun.text)['session_id']}", 0)
        elif step == len(self.questions):
            if client.ask(Question(f"{session}/reset", "", bool)).status == OK:
                self.states[client] = (session, 0)
        else:
            question = self.questions[step]
            question = question._replace(path=f"{session}{question.path}")
            if client.ask(question, {"x-step": str(step)}).status == OK:
                self.states[client] = (session, step + 1)


@dataclass
class Tokens(Load):
    """Clients that carry the memory of an episode from answer to answer."""

    states: dict[Client, tuple[str, int]] = field(default_factory=dict)

    def go_on(self, client: Client) -> None:
        """Make the next step, or begin the next episode."""
        token, step = self.states.get(client, ("new", 0))
        answer = client.ask(self.questions[step], {"x-state": token})
        if answer.status == OK:
            step = (step + 1) % len(self.questions)
            self.states[client] = (answer.headers["x-state"] if step else "new", step)


@dataclass
class Harmful(Load):
    """Clients that ask once in a while, from the fault on.

    Attributes:
        pause_s: how long they wait between two questions, in seconds.
        begins: the fault.
    """

    pause_s: float = 1.0
    begins: threading.Event = field(default_factory=threading.Event)

    def go_on(self, client: Client) -> None:
        """Ask, and wait."""
        if self.begins.wait(_PAUSE_S):
            super().go_on(client)
            self.is_over.wait(self.pause_s)


@dataclass
class Streams(Load):
    """Clients of a stream each: a frame without an answer counts.

    One that was sent while the server closed the stream is none: it says that it ends.
    """

    def _ask(self) -> None:
        path = self.questions[0].path + "/stream"
        while not self.is_over.is_set():
            began = time.monotonic()
            try:
                with connect(
                    self.url.replace("http", "ws") + path,
                    additional_headers={"access-token": KEY},
                    proxy=None,
                ) as stream:
                    self._step(stream)
            except InvalidHandshake as error:
                status, is_right = 0, True
                if isinstance(error, InvalidStatus):
                    status = error.response.status_code
                    is_right = says_when(status, error.response.headers)
                self.sent.append(Asked(time.monotonic(), status, 0.0, is_right))
            except ConnectionClosed:
                # Before the handshake.
                self.sent.append(Asked(time.monotonic(), 0, 0.0, is_right=True))
            except TimeoutError:
                self.sent.append(Asked(began, 0, time.monotonic() - began, is_right=True))
            except OSError:
                time.sleep(_PAUSE_S)

    def _step(self, stream: ClientConnection) -> None:
        while not self.is_over.is_set():
            question = self.questions[len(self.sent) % len(self.questions)]
            began, status, is_right = time.monotonic(), OK, True
            try:
                stream.send(question.body)
                is_right = question.is_answered_by(stream.recv(_TIMEOUT_S))
            except ConnectionClosed as error:
                is_told = error.rcvd is not None and error.rcvd.code == CloseCode.SERVICE_RESTART
                if is_told and time.monotonic() - began < _CROSSING_S:
                    return
                status = 0
            except TimeoutError:
                status = 0
            self.sent.append(Asked(began, status, time.monotonic() - began, is_right))
            if not status:
                return


def says_when(status: int, headers: Mapping[str, str]) -> bool:
    """Return whether an answer says when to come back, which each 503 has to.

    Args:
        status: its status.
        headers: its headers, by names in lower case.
    """
    return status != _UNAVAILABLE or "retry-after" in headers


def modes() -> list[Question]:
    """Return questions for modes of `EXPORT`, to be held against RLlib's."""
    cases = json.loads((EXPORTS / EXPORT / "cases.json").read_text())
    return [
        Question("/predict_deterministic", json.dumps(case["observation"]), _is_action(case))
        for case in cases
    ]


def steps() -> list[Question]:
    """Return the steps of an episode of `RECURRENT`, to be held against the library's."""
    return [
        Question("/distribution", json.dumps(case["observation"]), is_distribution(case))
        for case in cases_of(RECURRENT)
    ]


def first_steps() -> list[Question]:
    """Return a first step, for requests without memory."""
    return steps()[:1]


def _is_action(case: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    wanted = [case["expected"]["deterministic_action"]]
    return lambda answer: answer["actions"] == wanted


def is_distribution(case: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Return the check of a distribution against the library's probabilities in a case."""
    wanted = case["expected"]["probabilities"]

    def is_right(answer: dict[str, Any]) -> bool:
        [component] = answer["components"]
        pairs = zip(component["probabilities"], wanted, strict=True)
        return all(abs(found - right) <= _TOLERANCE for found, right in pairs)

    return is_right
