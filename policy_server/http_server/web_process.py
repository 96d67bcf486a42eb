"""The process that serves HTTP: the uvicorn in it, the workers beside it, and their ports."""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing import parent_process

from policy_server.errors import SettingsError
from policy_server.http_server.running_server import HttpServer, find_http_server
from policy_server.http_server.workers import Worker
from policy_server.ports import check_port
from policy_server.settings import ENV_PREFIX, Settings

__all__ = ["METRICS_PORT", "WebProcess"]

METRICS_PORT = f"{ENV_PREFIX}METRICS_PORT"
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
        if settings.backend == "ray" and "RAY_ADDRESS" not in os.environ:
            ports[_DASHBOARD_PORT] = (settings.dashboard_port, settings.dashboard_host)
        taken = {own_port: "uvicorn"}
        for setting, (port, host) in ports.items():
            check_port(port, host=host, setting=setting)
            if port and port in taken:
                raise SettingsError(
                    f"{setting}: port {port} is {taken[port]}'s already; set another one, or 0"
                )
            taken[port] = setting

    def end_all(self) -> None:
        """End uvicorn's supervisor too, since its next worker could not serve either.

        Any other program that started this process goes on.
        """
        if self.worker is None:
            return
        if self.server is not None and self.server.is_supervised:
            self.worker.end_all(uds=self.server.config.uds)
        self.worker.leave()
