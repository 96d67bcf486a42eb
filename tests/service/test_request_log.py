"""The access log of a server that a signal ends: a line for each answer, and none is lost."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.folders import EXPORTS
from tests.support.processes import script
from tests.support.server_processes import KEY, Server, compiled_home_of, running_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.service

LOCAL = {"POLICY_SERVER_BACKEND": "local"}
CASES = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())
CONNECTIONS = [f"connection-{number}" for number in range(6)]
# Requests that a connection has sent before it reads the first of their answers.
TOGETHER = 8
REQUESTS = 2000
STARTED = "Application startup complete"


def request(request_id: str) -> bytes:
    body = json.dumps(CASES[0]["observation"]).encode()
    lines = [
        "POST /predict HTTP/1.1",
        "host: a",
        f"access-token: {KEY}",
        f"x-request-id: {request_id}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Asked:
    """The requests of one connection, by their ids, in their order.

    Attributes:
        sent: all of them.
        answered: those whose answers came.
    """

    sent: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)

    def ask(self, url: str, connection: str) -> None:
        """Ask until the server ends the connection.

        Args:
            url: the server's address.
            connection: the start of the requests' ids.
        """
        address = urlsplit(url)
        with (
            socket.create_connection((address.hostname, address.port), timeout=30) as link,
            link.makefile("rb") as answers,
            # A server may end a connection on which more is sent.
            suppress(ConnectionError),
        ):
            for number in count():
                ids = [f"{connection}.{number}.{place}" for place in range(TOGETHER)]
                self.sent += ids
                link.sendall(b"".join(map(request, ids)))
                for _ in ids:
                    if not (status := answers.readline()):
                        return
                    assert status.startswith(b"HTTP/1.1 200 ")
                    headers = http.client.parse_headers(answers)
                    answers.read(int(headers["content-length"]))
                    self.answered.append(headers["x-request-id"])
                if headers["connection"] == "close":
                    return


def ask_until_sigterm(server: Server) -> dict[str, Asked]:
    """Ask by all connections, end the server meanwhile, and return their requests."""
    connections = {connection: Asked() for connection in CONNECTIONS}

    def answers() -> int:
        return sum(len(asked.answered) for asked in connections.values())

    with ThreadPoolExecutor(len(connections)) as pool:
        asking = [
            pool.submit(asked.ask, server.url, connection)
            for connection, asked in connections.items()
        ]
        wait_until(lambda: answers() >= REQUESTS or any(each.done() for each in asking))
        before = answers()
        server.process.send_signal(signal.SIGTERM)
    for each in asking:
        each.result()
    server.process.wait(60)
    assert answers() > before >= REQUESTS, "some were on their way"
    return connections


def logged(server: Server, connection: str) -> list[str]:
    """Return the ids of a connection's requests in the log, in the order of the lines."""
    lines = [json.loads(line) for line in server.output().splitlines() if line.startswith("{")]
    ids = [line["request_id"] for line in lines if line["event"] == "request"]
    return [found for found in ids if found.startswith(f"{connection}.")]


@pytest.mark.parametrize("workers", [1, 2], ids=["one process", "two web processes"])
def test_each_request_before_the_end_of_a_server_has_one_line_in_its_turn(
    workers: int, tmp_path: Path
) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path)
    arguments = [] if workers == 1 else ["--workers", str(workers)]
    with running_server(home, *arguments, environment=LOCAL) as server:
        server.child.wait_until(lambda: server.output().count(STARTED) == workers)
        connections = ask_until_sigterm(server)

    for connection, asked in connections.items():
        assert asked.answered == asked.sent
        assert logged(server, connection) == asked.sent


def test_each_answer_has_one_line_where_the_server_logs_nothing_behind_it(tmp_path: Path) -> None:
    # uvicorn's own lines about its end would take the lines before them along.
    home = compiled_home_of("ppo_discrete", tmp_path)
    with running_server(
        home,
        environment=LOCAL,
        command=(script("granian"), "--interface", "asgi", "app:app"),
    ) as server:
        connections = ask_until_sigterm(server)

    for connection, asked in connections.items():
        # It ends connections on which requests are on their way; they may have been computed.
        lines = logged(server, connection)
        assert lines[: len(asked.answered)] == asked.answered
        assert len({*lines}) == len(lines)
