"""The process that serves HTTP: the uvicorn in it, the workers beside it, and their ports."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process

from policy_server.errors import SettingsError
from policy_server.http_server.end_of_listening import accept_clients, end_listening_first
from policy_server.http_server.running_server import HttpServer, find_http_server
from policy_server.http_server.start_signals import is_told_to_end
from policy_server.http_server.workers import Worker
from policy_server.ports import check_port
from policy_server.process_output import drain_output
from policy_server.settings import ENV_PREFIX, Settings
from policy_server.telemetry import flush_log

__all__ = ["METRICS_PORT", "WebProcess"]

logger = logging.getLogger(__name__)

METRICS_PORT = f"{ENV_PREFIX}METRICS_PORT"
# Between two starts of a worker in the place of one that has died.
_BEFORE_NEXT_TRY_S = 1.0
_DASHBOARD_PORT = f"{ENV_PREFIX}DASHBOARD_PORT"


@dataclass(frozen=True)
class WebProcess:
    """The web process that this code runs in.

    Attributes:
        server: the uvicorn that runs the application; None where something else does.
        worker: this process among those that one parent started; None where it is alone.
    """

    server: HttpServer | None
    worker: Worker | None

    @classmethod
    def join(cls) -> WebProcess:
        """Return this process as it was started, and join the other workers if there are any.

        Raises:
            SettingsError: if the workers' folder can't be private.
        """
        server = find_http_server()
        is_alone = parent_process() is None or (server is not None and server.config.reload)
        return cls(server, None if is_alone else Worker())

    def claim_ports(self, settings: Settings) -> None:
        """Refuse a port that is taken, before anything is loaded.

        Args:
            settings: the ports besides uvicorn's.

        Raises:
            SettingsError: naming the first port that is not free.
        """
        if self.server is not None:
            self.server.claim()
        if self.worker is not None and not self.worker.is_first:
            # Another worker may listen by now.
            return
        own_port = None if self.server is None else self.server.port
        ports = {METRICS_PORT: (settings.metrics_port, settings.metrics_host)}
        if settings.backend == "ray" and not os.environ.get("RAY_ADDRESS"):
            ports[_DASHBOARD_PORT] = (settings.dashboard_port, settings.dashboard_host)
        taken = {own_port: "uvicorn"}
        for setting, (port, host) in ports.items():
            check_port(port, host=host, setting=setting)
            if port and port in taken:
                raise SettingsError(
                    f"{setting}: port {port} is {taken[port]}'s already; set another one, or 0"
                )
            taken[port] = setting

    def note_serving(
        self, *, on_ending: Callable[[], None] = lambda: None, drain_s: float = 0.0
    ) -> Callable[[], None]:
        """Note that this process serves, and how its listening ends; called from the lifespan.

        Args:
            on_ending: is called at the first signal that ends uvicorn.
            drain_s: for how long clients are still taken after a SIGTERM, in seconds.

        Returns:
            A function to call when all requests are answered.
        """
        worker, server = self.worker, self.server
        if worker is not None:
            worker.note_serving()
        running = None if server is None else server.running
        if server is None or running is None:
            return _do_nothing
        is_given = not server.has_own_sockets
        if server.is_supervised:
            assert worker is not None, "it has a parent"
            worker.end_with_supervisor()
            accept_clients(server.sockets)
            is_given = server.config.fd is not None
        else:
            # Of other programs nobody knows what their children share.
            worker = None
        return end_listening_first(
            running, worker, is_given=is_given, on_ending=on_ending, drain_s=drain_s
        )

    def end_all(self, *, reason: str = "") -> None:
        """End uvicorn's supervisor too, since its next worker could not serve either.

        Any other program that started this process goes on. Where other workers serve, this one
        took the place of one that had died: it ends alone, and uvicorn tries another. Where a
        signal has ended the start, so does the supervisor, which had told its workers of it.

        Args:
            reason: why it can't serve, if that was not logged yet.
        """
        if self.worker is None:
            return
        if self.server is not None and self.server.is_supervised:
            if self.worker.has_serving_siblings():
                self.worker.leave()
                if reason:
                    logger.error("worker_not_started", extra={"reason": reason})
                # uvicorn's own status for a start that failed would have it end them all.
                time.sleep(_BEFORE_NEXT_TRY_S)
                drain_output()
                flush_log()
                os.kill(os.getpid(), signal.SIGKILL)
            if not is_told_to_end():
                self.worker.end_all(uds=self.server.config.uds)
        self.worker.leave()


def _do_nothing() -> None:
    """Do nothing: this process does not end its listening by itself."""
