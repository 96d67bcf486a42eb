"""wrk: one request, over and over, on a number of connections."""

from __future__ import annotations

import http.client
import re
import resource
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.failures import BenchmarkError

__all__ = [
    "Load",
    "Request",
    "check_answered",
    "check_wrk",
    "drive",
    "parse_wrk",
    "post",
    "post_repeatedly",
]

_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Request:
    """What is sent.

    Attributes:
        path: the route.
        body: the bytes.
        headers: beside those that wrk sends by itself.
    """

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """What wrk measured.

    Attributes:
        requests_per_s: answers a second.
        p50_ms: the median latency.
        p90_ms: what 90 of 100 requests stay below.
        p99_ms: what 99 of 100 requests stay below.
        requests: how many were answered.
        errors: answers that are no 2xx or 3xx, timeouts, and connections that failed.
        client_us: microseconds of processor time that wrk itself took for a request.
    """

    requests_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    requests: int
    errors: int
    client_us: float = 0.0


def check_wrk() -> None:
    """Hold that wrk is there.

    Raises:
        BenchmarkError: if it is not.
    """
    if shutil.which("wrk") is None:
        raise BenchmarkError("wrk is not there; on Debian and Ubuntu: apt-get install wrk")


def parse_wrk(text: str) -> Load:
    """Read what `wrk --latency` prints.

    Args:
        text: all of it.

    Returns:
        The figures.

    Raises:
        BenchmarkError: if nothing was answered, or the text is something else.
    """
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    total = re.search(r"^\s+(\d+) requests in ", text, re.MULTILINE)
    if rate is None or total is None or not int(total[1]):
        words = " ".join(text.split())[-200:] or "it printed nothing"
        raise BenchmarkError(f"wrk: got no answer: {words}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    sockets = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    return Load(
        requests_per_s=float(rate[1]),
        p50_ms=_percentile(text, 50),
        p90_ms=_percentile(text, 90),
        p99_ms=_percentile(text, 99),
        requests=int(total[1]),
        errors=(int(refused[1]) if refused else 0)
        + (sum(map(int, sockets.groups())) if sockets else 0),
    )


def _percentile(text: str, share: int) -> float:
    found = re.search(rf"^\s+{share}%\s+([\d.]+)(us|ms|s|m|h)\s*$", text, re.MULTILINE)
    if found is None:
        raise BenchmarkError(f"wrk: printed no latency at {share} %")
    return round(float(found[1]) * _UNITS_MS[found[2]], 6)


def drive(url: str, request: Request, *, connections: int, seconds: float) -> Load:
    """Send a request over and over.

    Args:
        url: the server's, without a path.
        request: what is sent.
        connections: how many are open at once, each with one request in flight.
        seconds: for how long.

    Returns:
        What was measured.

    Raises:
        BenchmarkError: if wrk fails or nothing is answered.
    """
    with tempfile.TemporaryDirectory(prefix="bench-wrk-") as folder:
        script = Path(folder, "request.lua")
        script.write_text(_script(request, Path(folder)))
        options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        command = ["wrk", *options, "--latency", "--timeout", f"{_TIMEOUT_S}s", "-s", str(script)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            done = subprocess.run(  # noqa: S603 -- the command is ours
                [*command, url + request.path],
                capture_output=True,
                text=True,
                timeout=seconds + 2 * _TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchmarkError(f"wrk: {error}") from error
    if done.returncode != 0:
        raise BenchmarkError(f"wrk: ended with {done.returncode}: {done.stderr or done.stdout}")
    load = parse_wrk(done.stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return Load(**{**vars(load), "client_us": spent * 1e6 / load.requests})


def check_answered(load: Load) -> Load:
    """Return a load in which every answer was right.

    Args:
        load: what wrk measured.

    Raises:
        BenchmarkError: if there were errors.
    """
    if load.errors:
        raise BenchmarkError(f"wrk: {load.errors} errors beside {load.requests} answers")
    return load


def _script(request: Request, folder: Path) -> str:
    """Return the Lua that says what is sent, once: wrk then runs none of it."""
    body = folder / "body"
    body.write_bytes(request.body)
    headers = [f"wrk.headers[{_lua(k)}] = {_lua(v)}" for k, v in request.headers.items()]
    return "\n".join(
        [
            'wrk.method = "POST"',
            *headers,
            f'local file = io.open({_lua(str(body))}, "rb")',
            'wrk.body = file:read("*a")',
            "file:close()",
        ]
    )


def _lua(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def post(url: str, request: Request, *, timeout_s: float = _TIMEOUT_S) -> bytes:
    """Send a request once.

    Args:
        url: the server's, without a path.
        request: what is sent.
        timeout_s: the longest wait for an answer.

    Returns:
        The answer's body.

    Raises:
        BenchmarkError: if the answer is no 200, or nobody answers.
    """
    sent = urllib.request.Request(  # noqa: S310 -- a server of ours
        url + request.path, request.body, dict(request.headers), method="POST"
    )
    try:
        with urllib.request.urlopen(sent, timeout=timeout_s) as answer:  # noqa: S310 -- likewise
            body: bytes = answer.read()
    except urllib.error.HTTPError as error:
        raise BenchmarkError(
            f"{request.path}: answered {error.code}: {error.read()[:200].decode(errors='replace')}"
        ) from error
    except OSError as error:
        raise BenchmarkError(f"{request.path}: {error}") from error
    return body


def post_repeatedly(
    url: str, request: Request, *, seconds: float, least: int, until: threading.Event | None = None
) -> list[float]:
    """Send a large request over and over on one connection, and time each answer.

    wrk counts whole answers, of which there may be few a second. Here the client only moves bytes.

    Args:
        url: the server's, without a path.
        request: what is sent.
        seconds: for how long.
        least: how many answers there have to be, however long they take.
        until: ends it when set, instead of the time.

    Returns:
        The milliseconds of each answer.

    Raises:
        BenchmarkError: if an answer is no 200, or nobody answers.
    """
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=_TIMEOUT_S)
    times: list[float] = []
    began = time.perf_counter()
    try:
        while len(times) < least or (
            time.perf_counter() - began < seconds if until is None else not until.is_set()
        ):
            sent = time.perf_counter()
            connection.request("POST", request.path, request.body, dict(request.headers))
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != http.client.OK:
                raise BenchmarkError(
                    f"{request.path}: answered {answer.status}: "
                    f"{body[:200].decode(errors='replace')}"
                )
            times.append((time.perf_counter() - sent) * 1000)
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"{request.path}: {error}") from error
    finally:
        connection.close()
    return times
