"""The Ray that this server starts on its machine: what serving needs of it, and nothing else.

`ray.init` also starts the autoscaler's monitor, the log monitor and the dashboard's server, even
where the dashboard is off, and waits for them: seconds, and some 170 MB. Its own `Node` can leave
them out; the dashboard follows when the policy answers.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._raylet import Config  # type: ignore[attr-defined]  # a compiled module

import policy_server
from policy_server.errors import NotReadyError
from policy_server.ports import free_port
from policy_server.settings import Settings
from policy_server.telemetry import adopt_loggers

__all__ = ["RAY_METRICS", "REPLICA_ENVIRONMENT", "OwnRay", "connect", "translated", "use_token"]

# The name of the place where Ray's own metrics are; people find them among the server's.
RAY_METRICS = "ray_metrics"
# One thread a replica: a policy is small, and replicas are many.
REPLICA_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # A call of the policy is shorter than handing it to a thread and back.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 100 * 1024 * 1024
# Workers import these while Ray Serve's controller starts, not when it asks for a replica.
_PRELOADED = ("ray.serve._private.replica", "policy_server.backends.ray.replicas")


class OwnRay:
    """A Ray that this process starts.

    `start`, `start_dashboard` and `end` belong on one thread that lives as long as Ray does: the
    kernel ends Ray's processes with the thread that started them.

    Attributes:
        places: where people find what Ray serves, by name.
    """

    def __init__(self, settings: Settings) -> None:
        """Keep the settings; nothing is started."""
        self.places: dict[str, str] = {}
        self._settings = settings
        self._folder: Path | None = None
        self._node: _LeanNode | None = None

    @property
    def address(self) -> str:
        """Return where other processes join it."""
        assert self._node is not None, "it is started"
        address: str = self._node.gcs_address
        return address

    def start(self) -> None:
        """Start Ray's processes and connect to them.

        Raises:
            NotReadyError: if Ray does not start.
        """
        started = time.monotonic()
        adopt_loggers()
        use_token(secrets.token_hex(32))
        # Ray puts sockets there, whose paths may have 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="ps-ray-"))
        metrics_port = free_port("")
        self.places[RAY_METRICS] = f"http://127.0.0.1:{metrics_port}/metrics"
        if self._settings.dashboard_port:
            self._announce_dashboard(self._folder)
        with translated():
            self._node = _LeanNode(
                self._parameters(self._folder, metrics_port),
                head=True,
                shutdown_at_exit=False,
                spawn_reaper=True,
            )
            connect(self._node.gcs_address)
        logger.info("ray_started", extra={"seconds": round(time.monotonic() - started, 1)})

    def start_dashboard(self) -> None:
        """Start the dashboard, where there shall be one; the policy is served without it too."""
        if self._node is None or not self._settings.dashboard_port:
            return
        try:
            self._node.start_dashboard()
        except Exception as error:
            # Ray raises plain exceptions too.
            reason = " ".join(str(error).split())
            logger.warning("dashboard_not_started", extra={"reason": reason[:300]})

    def end(self) -> None:
        """Disconnect, end Ray's processes, and remove its folder."""
        ray.shutdown()
        if self._node is not None:
            self._node.kill_all_processes(check_alive=False, allow_graceful=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _announce_dashboard(self, folder: Path) -> None:
        host, port = self._settings.dashboard_host, self._settings.dashboard_port
        self.places["dashboard"] = f"http://{host}:{port}"
        if token := os.environ.get("RAY_AUTH_TOKEN"):
            (folder / "dashboard-token").touch(mode=0o600)
            (folder / "dashboard-token").write_text(token)
            self.places["dashboard_token"] = str(folder / "dashboard-token")

    def _parameters(self, folder: Path, metrics_port: int) -> RayParams:
        settings = self._settings
        replicas = max(settings.num_replicas, settings.max_replicas)
        python_path = [str(Path(policy_server.__file__).parents[1])]
        python_path += filter(None, [os.environ.get("PYTHONPATH")])
        options: dict[str, Any] = {
            # Ray starts as many workers at once: the replicas, and Ray Serve's controller.
            "num_cpus": math.ceil(replicas * settings.replica_cpus) + 1,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": settings.dashboard_port > 0,
            "dashboard_host": settings.dashboard_host,
            "dashboard_port": settings.dashboard_port,
            "include_log_monitor": False,
            "no_monitor": True,
            "metrics_export_port": metrics_port,
            "temp_dir": str(folder),
            # A runtime environment would cost each replica a second worker.
            "env_vars": {**REPLICA_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(python_path)},
            "_system_config": {"preload_python_modules": list(_PRELOADED)},
        }
        # Ray's annotations differ from what it takes.
        return RayParams(**options)


class _LeanNode(Node):
    """Ray's processes, without waiting for the dashboard."""

    def start_api_server(
        self,
        *,
        include_dashboard: bool | None,  # noqa: ARG002 -- Ray's own
        raise_on_failure: bool,  # noqa: ARG002 -- Ray's own
    ) -> None:
        """Leave the dashboard for later."""
        self._webui_url = None

    def start_dashboard(self) -> None:
        """Start the dashboard, and wait until it answers."""
        super().start_api_server(include_dashboard=True, raise_on_failure=True)


def use_token(token: str) -> None:
    """Let only those who know a secret use the Ray that this server starts.

    Who reaches it can run code. Ray would write one to the home folder, which a container may not
    have; its own way of taking over a changed environment is `Config.initialize`.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", token)
        Config.initialize("")


def connect(address: str, runtime_env: Mapping[str, object] | None = None) -> None:
    """Connect to a Ray that runs.

    Args:
        address: where it is.
        runtime_env: what its workers need beyond what is installed.
    """
    # It says that it can't replace the handlers of signals from this thread, which are uvicorn's.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    adopt_loggers()
    ray.init(
        address=address,
        log_to_driver=False,
        configure_logging=False,
        runtime_env=dict(runtime_env or {}),
    )


@contextmanager
def translated(hint: str = "") -> Iterator[None]:
    """Turn what Ray raises into one line.

    Args:
        hint: what a person may try, appended to Ray's own words.

    Raises:
        NotReadyError: for whatever Ray raises.
    """
    try:
        yield
    except Exception as error:
        # Ray raises plain exceptions too.
        reason = " ".join(str(error).split())[:300]
        raise NotReadyError(f"ray: could not start or join: {reason}{hint}") from error
