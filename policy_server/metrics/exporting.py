"""The port that Prometheus scrapes: this process's counts, the other workers' and Ray's own."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from policy_server.access_keys import KeyRing
from policy_server.client_limits import ClientLimit
from policy_server.metrics.counts import Counts
from policy_server.metrics.page_server import PageServer
from policy_server.metrics.recording import Metrics
from policy_server.metrics.sharing import SharedCounts

__all__ = ["MetricsExporter"]

logger = logging.getLogger(__name__)

_FOREIGN_TIMEOUT_S = 2.0
_ALL_INTERFACES = ("", "0.0.0.0", "::")  # noqa: S104 -- compared with, not bound to
# Ray's page is on this machine: no proxy is in between.
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _nowhere() -> None:
    """Return None: there is no Ray."""


def _uncounted() -> None:
    """Return None: there are no replicas."""


class _Registered:
    def __init__(self, snapshot: Counts) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        return self._snapshot.collect()


class MetricsExporter:
    """Serves `/metrics`, the counts of all workers, and `/metrics/ray`, Ray's own.

    None of some 1,600 lines that Ray writes is on the first page.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        port: int,
        host: str = "127.0.0.1",
        shared: Path | None = None,
        keys: KeyRing | None = None,
        of_address: ClientLimit | None = None,
        max_address_connections: int = 0,
    ) -> None:
        """Own the port from `start` to `stop`; nothing listens yet.

        Args:
            metrics: this process's counts.
            port: where to listen; 0 picks a free one.
            host: the address to listen on.
            shared: a folder that all workers share; None where this process is the only one.
            keys: those that are valid; None shows the pages to everybody.
            of_address: how many wrong keys an address may send; None for any number.
            max_address_connections: the most connections of an address; 0 for any number.
        """
        self._keys = keys or KeyRing()
        self._of_address = of_address
        self._max_address_connections = max_address_connections
        self._metrics = metrics
        self._port = port
        self._host = host
        self._shared = None if shared is None else SharedCounts(shared)
        self._failing: set[str] = set()
        self._server: PageServer | None = None
        # A function: a Ray that is started again has another one.
        self.foreign_url: Callable[[], str | None] = _nowhere
        self.healthy_replicas: Callable[[], int | None] = _uncounted

    @property
    def url(self) -> str | None:
        """Return where metrics are served; None where another worker serves them."""
        if self._server is None:
            return None
        host = "127.0.0.1" if self._host in _ALL_INTERFACES else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._server.port}/metrics"

    def start(self) -> None:
        """Listen, on a thread of its own.

        Raises:
            OSError: if the port is taken, or the host is not this machine's.
        """
        pages = {"": self.render, "/metrics": self.render, "/metrics/ray": self.render_ray}
        self._server = PageServer(
            pages,
            host=self._host,
            port=self._port,
            keys=self._keys,
            of_address=self._of_address,
            max_address_connections=self._max_address_connections,
        )

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def share(self) -> None:
        """Write this process's counts for the worker that holds the port.

        A file that can't be written is logged once, until it can be again.
        """
        if self._shared is not None:
            with self._reporting("write"):
                self._shared.write(self._metrics.snapshot())

    def leave(self) -> None:
        """Leave this process's counters to the other workers."""
        if self._shared is not None:
            with self._reporting("leave"):
                self._shared.leave(self._metrics.snapshot())

    def render(self) -> bytes:
        """Return the server's own page."""
        total = self._metrics.snapshot()
        if self._shared is not None:
            # A counter that Prometheus has read must not be lower on the next page, of any worker.
            with self._reporting("write"):
                self._shared.write(total)
            with self._reporting("read"):
                total.add(self._shared.read_others())
        if (healthy := self.healthy_replicas()) is not None:
            total.numbers["replicas"] = {(): float(healthy)}
        registry = CollectorRegistry()
        registry.register(_Registered(total))
        return generate_latest(registry)

    def render_ray(self) -> bytes:
        """Return Ray's page; empty where Ray has none, and while it does not answer."""
        if (url := self.foreign_url()) is None:
            return b""
        try:
            with _LOCAL.open(url, timeout=_FOREIGN_TIMEOUT_S) as answer:
                page: bytes = answer.read()
        except (urllib.error.URLError, TimeoutError, OSError):
            return b""
        return page

    @contextmanager
    def _reporting(self, step: str) -> Iterator[None]:
        """Log the first error of a step; the next time it is tried again."""
        try:
            yield
        except OSError as error:
            if step not in self._failing:
                self._failing.add(step)
                logger.warning("metrics_not_shared", extra={"step": step, "reason": str(error)})
        else:
            self._failing.discard(step)
