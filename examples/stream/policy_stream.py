"""Ask a served policy over one web socket: the closed loop of a simulator.

    with PolicyStream("ws://127.0.0.1:8000/predict/stream", key) as policy:
        action = policy.predict({"mouse_row": 5, ...})

As a program it reads observations from standard input, one JSON object a line, and prints each
answer. It needs `pip install websockets msgpack`.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import re
import socket
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import msgpack
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect, unix_connect

__all__ = ["PolicyError", "PolicyStream"]

_FIRST_PAUSE_S = 0.1
# A server that is busy or not there yet, or the proxy's word for it.
_BUSY = (502, 503, 504)
_CONFLICT = 409
_RESET = {"reset": True}
_EPISODE_LOST = (
    "the connection broke in the middle of an episode, and the policy's memory of it is gone; "
    "begin another episode with reset()"
)


class PolicyError(Exception):
    """The server refused an observation, or the connection.

    Attributes:
        status: as the POST routes answer it: 422 is a wrong observation, 401 a wrong key, 409 an
            episode whose memory is gone.
        detail: what is wrong: a list of mistakes for 422, a sentence otherwise.
    """

    def __init__(self, status: int, detail: object) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail: Any = detail


class PolicyStream:
    """One web socket to a policy. A connection that breaks is opened again.

    Without a memory a prediction changes nothing on the server, so what was not answered is simply
    asked again. A policy's memory of an episode lives as long as the connection.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        attempts: int = 6,
        timeout_s: float = 30.0,
        is_msgpack: bool = False,
        uds: str | None = None,
    ) -> None:
        """Keep where the policy is; the first question connects.

        Args:
            url: a stream's address: `ws://` or `wss://`.
            key: the access key; None where everybody is let in.
            attempts: how often a connection is tried, with pauses that double from 0.1 s.
            timeout_s: the longest wait for a connection or an answer, in seconds.
            is_msgpack: speak MessagePack instead of JSON.
            uds: the UNIX socket of a server on this machine; `url` is `ws://` with any host then.
        """
        self._uds = uds
        self._url = url
        self._headers = {} if key is None else {"access-token": key}
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._encode: Callable[[Any], str | bytes] = msgpack.packb if is_msgpack else json.dumps
        self._decode: Callable[[Any], Any] = msgpack.unpackb if is_msgpack else json.loads
        self._connection: ClientConnection | None = None
        # How many frames of the episode were answered.
        self._steps = 0
        self._closing = ExitStack()

    def __enter__(self) -> PolicyStream:
        """Return the stream."""
        return self

    def __exit__(self, *_failure: object) -> None:
        """End the connection."""
        self.close()

    def reset(self) -> None:
        """Begin the next episode, with an empty memory.

        Raises:
            PolicyError: if the server refuses the connection.
            ConnectionError: if it can't be reached.
        """
        self._steps = 0
        for _ in self.answers([_RESET]):
            pass

    def predict(self, observation: dict[str, Any]) -> list[Any]:
        """Return the action for an observation.

        Args:
            observation: what the route takes.

        Raises:
            PolicyError: if the server refuses the observation, or the episode's memory is gone.
            ConnectionError: if it can't be reached.
        """
        answer = next(self.answers([observation]))
        if isinstance(answer, PolicyError):
            raise answer
        actions: list[Any] = answer["actions"]
        return actions

    def answers(
        self, observations: Iterable[dict[str, Any]], *, in_flight: int = 64
    ) -> Iterator[dict[str, Any] | PolicyError]:
        """Ask for many observations without waiting for each; the answers come in order.

        Args:
            observations: what the route takes.
            in_flight: how many are asked before the first of them is answered.

        Yields:
            Each observation's answer, or what was wrong with it.

        Raises:
            PolicyError: if the memory of the episode went with a connection.
            ConnectionError: if the server can't be reached.
        """
        source, failures = iter(observations), 0
        asked: deque[str | bytes] = deque()
        try:
            while True:
                try:
                    connection = self._connected(asked)
                    for observation in itertools.islice(source, in_flight - len(asked)):
                        asked.append(self._encode(observation))
                        connection.send(asked[-1])
                    if not asked:
                        return
                    answer = self._decode(connection.recv(self._timeout_s))
                except (OSError, WebSocketException) as error:
                    failures += 1
                    self._pause(failures, error)
                    continue
                failures = 0
                asked.popleft()
                is_error = "status" in answer
                self._steps = 0 if "reset" in answer else self._steps + (not is_error)
                yield PolicyError(answer["status"], answer["detail"]) if is_error else answer
        finally:
            if asked:
                # Answers that nobody waits for must not be taken for those of the next question.
                self.close()

    def close(self) -> None:
        """End the connection."""
        self._connection = None
        self._closing.close()

    def _connected(self, unanswered: Iterable[str | bytes]) -> ClientConnection:
        """Return the connection; a new one is asked again what was not answered."""
        if self._connection is None:
            if self._steps and self._has_memory():
                raise PolicyError(_CONFLICT, _EPISODE_LOST)
            try:
                self._connection = self._closing.enter_context(
                    self._open(
                        additional_headers=self._headers,
                        # A frame is a few hundred bytes: packing it costs more than it saves.
                        compression=None,
                        open_timeout=self._timeout_s,
                    )
                )
            except InvalidStatus as error:
                if error.response.status_code in _BUSY:
                    raise
                raise PolicyError(
                    error.response.status_code, _detail(error.response.body)
                ) from error
            for frame in unanswered:
                self._connection.send(frame)
        return self._connection

    def _open(self, **options: Any) -> ClientConnection:  # noqa: ANN401 -- websockets' own
        connection: ClientConnection
        if self._uds is None:
            connection = connect(self._url, **options)
        else:
            connection = unix_connect(self._uds, self._url, **options)
        return connection

    def _has_memory(self) -> bool:
        """Ask the server whether the policy has a memory; a team may always have one."""
        page, count = re.subn(r"/\w+/stream(\?.*)?$", "/schema", self._url)
        if not count:
            return True
        request = urllib.request.Request(f"http{page[2:]}", headers=self._headers)  # noqa: S310 -- the stream's own server
        opener = urllib.request.build_opener(*([] if self._uds is None else [_Unix(self._uds)]))
        with opener.open(request, timeout=self._timeout_s) as answer:
            return bool(json.load(answer)["policy"]["memory_width"])

    def _pause(self, failures: int, error: Exception) -> None:
        """Wait before another attempt, or give up."""
        self.close()
        if failures >= self._attempts:
            raise ConnectionError(f"{self._url}: no answer in {failures} attempts") from error
        time.sleep(_FIRST_PAUSE_S * 2 ** (failures - 1))


class _Unix(urllib.request.HTTPHandler):
    """Asks by a UNIX socket, whatever host an address names."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, timeout: float, **_: object) -> http.client.HTTPConnection:
            made = http.client.HTTPConnection(host, timeout=timeout)
            made.sock = socket.socket(socket.AF_UNIX)
            made.sock.settimeout(timeout)
            made.sock.connect(self._path)
            return made

        return self.do_open(connection, req)  # type: ignore[arg-type]  # it makes one


def _detail(body: bytes | bytearray | None) -> Any:  # noqa: ANN401 -- a text, or a list of mistakes
    """Return the reason of a refusal, which may be a proxy's page."""
    try:
        return json.loads(body or b"{}")["detail"]
    except (ValueError, LookupError, TypeError):
        return (body or b"").decode(errors="replace")


def _read(line: str) -> Any:  # noqa: ANN401 -- whatever the line says
    try:
        return json.loads(line)
    except ValueError:
        return line


def main() -> int:
    """Answer the observations of standard input."""
    parser = argparse.ArgumentParser(
        description="Ask a served policy: one JSON observation a line in, one answer a line out."
    )
    parser.add_argument("--url", default="ws://127.0.0.1:8000/predict/stream")
    parser.add_argument(
        "--key",
        default=os.environ.get("POLICY_SERVER_API_KEY"),
        help="default: the environment's POLICY_SERVER_API_KEY",
    )
    parser.add_argument("--in-flight", type=int, default=1, help="questions that wait at once")
    parser.add_argument("--msgpack", action="store_true", help="speak MessagePack, not JSON")
    parser.add_argument("--uds", help="the server's UNIX socket, in place of the host in --url")
    options = parser.parse_args()
    # A line that is no JSON is the server's to refuse, like any other mistake: as text it is one.
    observations = (_read(line) for line in sys.stdin if line.strip())
    is_wrong = False
    is_msgpack = options.msgpack
    with PolicyStream(options.url, options.key, is_msgpack=is_msgpack, uds=options.uds) as policy:
        try:
            for answer in policy.answers(observations, in_flight=options.in_flight):
                if isinstance(answer, PolicyError):
                    is_wrong = True
                    refused = {"status": answer.status, "detail": answer.detail}
                    print(json.dumps(refused), flush=True)
                else:
                    print(json.dumps(answer), flush=True)
        except (PolicyError, ConnectionError) as error:
            print(error, file=sys.stderr)
            return 2
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main())
