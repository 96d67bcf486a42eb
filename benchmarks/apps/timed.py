"""This server with a clock at the steps of a request, by `--factory benchmarks.apps.timed:timed`.

SIGUSR1 has the times so far written to the file that `BENCHMARK_STEPS` names, and forgets them.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from policy_server.files.atomic import write_whole
from policy_server.http_server.hot_protocol import HotHttpProtocol
from policy_server.http_server.joined_writes import JoinedWrites
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.serving.counted_backend import CountedBackend
from policy_server.serving.questions import SingleCall
from policy_server.serving.scheduler import Scheduler
from policy_server.web import Application
from policy_server.web.answering import PolicyAnswering

__all__ = ["FILE_VARIABLE", "STEPS", "timed"]

FILE_VARIABLE = "BENCHMARK_STEPS"
# A step and the methods that it is; each but the first two is a part of the second.
STEPS: dict[str, tuple[tuple[type, str], ...]] = {
    "read, validate, put into the queue": (
        (HotHttpProtocol, "data_received"),
        (WebSocketProtocol, "data_received"),
    ),
    "the call, all of it": ((Scheduler, "_start_calls"),),
    "the row as an array": ((SingleCall, "inputs"),),
    "the policy: network, draw, probability, counts": ((CountedBackend, "infer_at_once"),),
    "JSON": ((PolicyAnswering, "render"),),
    "write to the socket, which wakes the client": ((JoinedWrites, "write_whole"),),
}


def timed() -> Application:
    """Build the application as `app:app` has it, and time its steps from now on."""
    times: dict[str, list[float]] = defaultdict(list)
    for step, methods in STEPS.items():
        for kind, name in methods:
            setattr(kind, name, _timed(getattr(kind, name), times[step]))

    def tell(*_: object) -> None:
        figures = {step: 1e6 * median(found) for step, found in times.items() if found}
        write_whole(Path(os.environ[FILE_VARIABLE]), json.dumps(figures))
        for found in times.values():
            found.clear()

    signal.signal(signal.SIGUSR1, tell)
    # Imported here: the import builds the application, and ends the process where that fails.
    from policy_server.asgi import app

    return app


def _timed(method: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    @functools.wraps(method)
    def measured(*args: Any, **options: Any) -> Any:  # noqa: ANN401 -- any method's
        started = time.perf_counter()
        try:
            return method(*args, **options)
        finally:
            times.append(time.perf_counter() - started)

    return measured
