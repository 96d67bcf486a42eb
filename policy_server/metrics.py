"""Prometheus metrics: recorded cheaply while requests run, added up when somebody looks.

A request costs an append to a list. Under several workers each writes what it has counted to a
file, and whichever holds the port adds the files up.
"""

from __future__ import annotations

import bisect
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

__all__ = ["Metrics", "MetricsExporter"]

_PREFIX = "policy_server_"
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_FOLD_AT = 4096
_FOREIGN_TIMEOUT_S = 2.0
# Of Ray Serve: 1 or 0 for each replica.
_HEALTHY_REPLICA = re.compile(rb"^ray_serve_deployment_replica_healthy\{.*\} (\S+)$", re.MULTILINE)
# Ray's page is on this machine: no proxy is in between.
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# One series an action: more choices than these share one.
_MOST_ACTIONS = 64

_HELP = {
    "requests": "Requests by route and status",
    "request_seconds": "Seconds by stage: validate, queue and policy (one a call), and total",
    "batch_size": "Observations in one call of the policy",
    "queue_depth": "Observations that wait or are being answered",
    "stream_connections": "Web sockets that are open",
    "rejected": "Observations that were not answered, by reason",
    "actions": "Integer actions answered, by component",
    "replicas": "Replicas of the policy that Ray Serve finds healthy",
    "replica_restarts": "Calls that were asked again because a replica died",
    "model_info": "The policy that is served",
    "model_load_seconds": "Seconds from start to the first answer",
}
_LABELS = {
    "requests": ("route", "status"),
    "request_seconds": ("stage",),
    "rejected": ("reason",),
    "actions": ("component", "action"),
    "model_info": ("version", "family"),
}
_BOUNDS = {"request_seconds": _SECONDS, "batch_size": _SIZES}
_GAUGES = ("queue_depth", "stream_connections", "replicas", "model_info", "model_load_seconds")
# Gauges of the model are the same in every worker; adding them up would be wrong.
_SAME_EVERYWHERE = ("model_info", "model_load_seconds")

Labels = tuple[str, ...]


@dataclass
class _Histogram:
    counts: list[int]
    total: float = 0.0

    def add(self, other: _Histogram) -> None:
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


@dataclass
class _Snapshot:
    """What one process has counted: by metric, by labels."""

    numbers: dict[str, dict[Labels, float]] = field(default_factory=dict)
    histograms: dict[str, dict[Labels, _Histogram]] = field(default_factory=dict)

    def count(self, name: str, labels: Labels, amount: float = 1.0) -> None:
        series = self.numbers.setdefault(name, {})
        series[labels] = series.get(labels, 0.0) + amount

    def observe(self, name: str, labels: Labels, value: float) -> None:
        bounds = _BOUNDS[name]
        series = self.histograms.setdefault(name, {})
        histogram = series.setdefault(labels, _Histogram([0] * (len(bounds) + 1)))
        histogram.counts[bisect.bisect_left(bounds, value)] += 1
        histogram.total += value

    def add(self, other: _Snapshot) -> None:
        for name, numbers in other.numbers.items():
            for labels, value in numbers.items():
                if name in _SAME_EVERYWHERE:
                    self.numbers.setdefault(name, {})[labels] = value
                else:
                    self.count(name, labels, value)
        for name, histograms in other.histograms.items():
            for labels, histogram in histograms.items():
                known = self.histograms.setdefault(name, {}).get(labels)
                if known is None:
                    copy = _Histogram(list(histogram.counts), histogram.total)
                    self.histograms[name][labels] = copy
                else:
                    known.add(histogram)

    def to_json(self) -> str:
        numbers = [[n, list(k), v] for n, series in self.numbers.items() for k, v in series.items()]
        histograms = [
            [name, list(labels), item.counts, item.total]
            for name, series in self.histograms.items()
            for labels, item in series.items()
        ]
        return json.dumps({"numbers": numbers, "histograms": histograms})

    @classmethod
    def from_json(cls, text: str) -> _Snapshot:
        document, snapshot = json.loads(text), cls()
        for name, labels, value in document["numbers"]:
            snapshot.numbers.setdefault(name, {})[tuple(labels)] = value
        for name, labels, counts, total in document["histograms"]:
            snapshot.histograms.setdefault(name, {})[tuple(labels)] = _Histogram(counts, total)
        return snapshot

    def collect(self) -> Iterator[Metric]:
        for name in _HELP:
            if name in _BOUNDS:
                yield self._histogram(name)
            else:
                kind = GaugeMetricFamily if name in _GAUGES else CounterMetricFamily
                family = kind(_PREFIX + name, _HELP[name], labels=_LABELS.get(name, ()))
                for labels, value in self.numbers.get(name, {}).items():
                    family.add_metric(labels, value)
                yield family

    def _histogram(self, name: str) -> Metric:
        family = HistogramMetricFamily(_PREFIX + name, _HELP[name], labels=_LABELS.get(name, ()))
        for labels, item in self.histograms.get(name, {}).items():
            buckets, below = [], 0
            for bound, count in zip((*_BOUNDS[name], float("inf")), item.counts, strict=True):
                below += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), below))
            family.add_metric(labels, buckets, item.total)
        return family


class Metrics:
    """What this process counts. Recording is for one event loop; reading may be on any thread.

    Attributes:
        model_version: the start of the served model's digest; empty before it is loaded.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self._counted = _Snapshot()
        self._lock = threading.Lock()
        self._requests: list[tuple[str, int, float]] = []
        self._stages: list[tuple[str, float]] = []
        self.model_version = ""
        self._streams = 0
        self._queue_depth: Callable[[], int] = lambda: 0

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Read the queue's depth from here.

        Args:
            depth: returns how many observations wait or are being answered.
        """
        self._queue_depth = depth

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: one of a bounded set.
            status: what it was answered with.
            seconds: from its arrival to its answer.
        """
        self._requests.append((route, status, seconds))
        if len(self._requests) >= _FOLD_AT:
            self._fold()

    def count_stream(self, change: int) -> None:
        """Count a web socket.

        Args:
            change: 1 when it is opened, -1 when it is closed.
        """
        self._streams += change

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Record how long a stage took.

        Args:
            stage: validate, queue or policy.
            seconds: how long.
        """
        self._stages.append((stage, seconds))

    def observe_batch(self, size: int) -> None:
        """Record a call's size.

        Args:
            size: how many observations rode in it.
        """
        with self._lock:
            self._counted.observe("batch_size", (), size)

    def count_rejected(self, reason: str, count: int = 1) -> None:
        """Count observations that were not answered.

        Args:
            reason: queue_full, timeout or shutdown.
            count: how many.
        """
        with self._lock:
            self._counted.count("rejected", (reason,), count)

    def count_actions(self, component: str, counts: Sequence[int]) -> None:
        """Count integer actions.

        Args:
            component: its name, or its index.
            counts: how often each action was answered, by action.
        """
        with self._lock:
            for action, count in enumerate(counts):
                if count:
                    label = str(action) if action < _MOST_ACTIONS else "other"
                    self._counted.count("actions", (component, label), count)

    def count_replica_restart(self) -> None:
        """Count a call that was asked again because its replica died."""
        with self._lock:
            self._counted.count("replica_restarts", ())

    def describe_model(self, *, version: str, family: str, load_seconds: float) -> None:
        """Say what is served.

        Args:
            version: the start of the model's digest.
            family: the policy's family in words.
            load_seconds: how long the start took.
        """
        self.model_version = version
        with self._lock:
            self._counted.numbers["model_info"] = {(version, family): 1.0}
            self._counted.numbers["model_load_seconds"] = {(): load_seconds}

    def snapshot(self) -> _Snapshot:
        """Return what was counted so far."""
        self._fold()
        with self._lock:
            copy = _Snapshot()
            copy.add(self._counted)
        copy.numbers["queue_depth"] = {(): float(self._queue_depth())}
        copy.numbers["stream_connections"] = {(): float(self._streams)}
        copy.numbers.setdefault("replica_restarts", {(): 0.0})
        return copy

    def _fold(self) -> None:
        requests, self._requests = self._requests, []
        stages, self._stages = self._stages, []
        with self._lock:
            for route, status, seconds in requests:
                self._counted.count("requests", (route, str(status)))
                self._counted.observe("request_seconds", ("total",), seconds)
            for stage, seconds in stages:
                self._counted.observe("request_seconds", (stage,), seconds)


class _Registered:
    def __init__(self, snapshot: _Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        return self._snapshot.collect()


class MetricsExporter:
    """Serves `/metrics`: this process's counts and its sister workers'; `/metrics/ray`: Ray's own.

    Ray writes some 1,600 lines of its own; what matters of them for a policy is `replicas`.
    """

    def __init__(self, metrics: Metrics, *, port: int, shared: Path | None = None) -> None:
        """Keep what is served; nothing listens yet.

        Args:
            metrics: this process's counts.
            port: where to listen; 0 picks a free one.
            shared: a folder that sister workers share; None where there are none.
        """
        self._metrics = metrics
        self._port = port
        self._shared = shared
        self._server: ThreadingHTTPServer | None = None
        self.foreign_url: str | None = None

    @property
    def url(self) -> str | None:
        """Return where metrics are served; None where a sister worker serves them."""
        if self._server is None:
            return None
        return f"http://127.0.0.1:{self._server.server_address[1]}/metrics"

    def start(self) -> None:
        """Listen, on a thread of its own.

        Raises:
            OSError: if the port is taken.
        """
        self._server = ThreadingHTTPServer(("", self._port), _handler_of(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def share(self) -> None:
        """Write this process's counts for the sister that holds the port."""
        if self._shared is not None:
            path = self._shared / f"metrics-{os.getpid()}.json"
            part = path.with_suffix(".part")
            part.write_text(self._metrics.snapshot().to_json())
            part.replace(path)

    def render(self) -> bytes:
        """Return the server's own page."""
        total = self._metrics.snapshot()
        for path in self._shared.glob("metrics-*.json") if self._shared is not None else ():
            if path.name != f"metrics-{os.getpid()}.json":
                total.add(_Snapshot.from_json(path.read_text()))
        if healthy := _HEALTHY_REPLICA.findall(self.render_ray()):
            total.numbers["replicas"] = {(): sum(map(float, healthy))}
        registry = CollectorRegistry()
        registry.register(_Registered(total))
        return generate_latest(registry)

    def render_ray(self) -> bytes:
        """Return Ray's page; empty where there is no Ray, and while it does not answer."""
        if self.foreign_url is None:
            return b""
        try:
            with _LOCAL.open(self.foreign_url, timeout=_FOREIGN_TIMEOUT_S) as answer:
                page: bytes = answer.read()
        except (urllib.error.URLError, TimeoutError, OSError):
            return b""
        return page


def _handler_of(exporter: MetricsExporter) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages = {"": exporter.render, "/metrics": exporter.render}
            pages["/metrics/ray"] = exporter.render_ray
            page = pages.get(self.path.split("?")[0].rstrip("/"))
            body = b"see /metrics or /metrics/ray\n" if page is None else page()
            self.send_response(404 if page is None else 200)
            self.send_header("content-type", _CONTENT_TYPE)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 -- the base class's own
            """Scrapes are no events."""

    return Handler
