"""A proxy that loses answers: the request was carried out, and its client never hears of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from threading import Event

import httpx

from tests.support import asking
from tests.support.servers import Handler, answered_by

__all__ = ["LosingProxy", "losing_proxy"]

_HOP = ("connection", "content-length", "transfer-encoding", "host", "server", "date")


@dataclass(frozen=True)
class LosingProxy:
    """A proxy that runs.

    Attributes:
        url: its address.
        lost: the address and the `x-step` of each request whose answer was lost.
    """

    url: str
    lost: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def losing_proxy(url: httpx.URL, *, times: int = 1, after_s: float = 0.0) -> Iterator[LosingProxy]:
    """Serve what another server answers, and lose the first answers to each prediction.

    The connection is closed before the answer begins. A prediction is known by its address and, in
    a session, by its `x-step`. The answers that arrive have a field more than the server gave them,
    as those of a later version may.

    Args:
        url: the server's address, without a path.
        times: how many answers to each prediction are lost.
        after_s: how long a client waits before its connection is closed.

    Yields:
        The proxy.
    """
    lost: list[tuple[str, str | None]] = []
    ended = Event()

    class Losing(Handler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in _HOP
            }
            found = client.request(self.command, self.path, content=body, headers=headers)
            step = (self.path, self.headers["x-step"])
            if "predict" in self.path and lost.count(step) < times:
                lost.append(step)
                ended.wait(after_s)
                self.close_connection = True
                return
            content = _with_a_field_more(found)
            self.send_response(found.status_code)
            for name, value in found.headers.items():
                if name not in _HOP:
                    self.send_header(name, value)
            if found.status_code != HTTPStatus.NO_CONTENT:
                self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_DELETE = do_GET = do_POST = answer  # noqa: N815 -- http.server's own names

    with asking.client(base_url=url, timeout=30) as client, answered_by(Losing) as address:
        yield LosingProxy(address, lost)
        ended.set()


def _with_a_field_more(answer: httpx.Response) -> bytes:
    """Return an answer's body, with a field that no client library knows."""
    if not answer.content or answer.headers.get("content-type") != "application/json":
        return answer.content
    return json.dumps({**answer.json(), "new_field": {"a": [1]}}).encode()
