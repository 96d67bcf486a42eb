"""The Ray that this server starts on its machine: only the processes that serving needs."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

import policy_server
from policy_server.backends.ray.connection import (
    RayletEndedError,
    as_not_ready_error,
    check_open_files,
    connect,
    reason_of,
    sockets_hint,
    use_token,
    warn_of_open_dashboard,
)
from policy_server.backends.ray.slim_serve import write_left_out
from policy_server.backends.ray_guard import start_guard
from policy_server.backends.ray_processes import (
    RAYS_OWN,
    Process,
    end_ray_in,
    make_rays_folder,
    remove_dead_rays,
)
from policy_server.backends.ray_pulse import WatchedProcess, are_running
from policy_server.child_environment import without_secrets
from policy_server.settings import Settings
from policy_server.telemetry import adopt_loggers

if TYPE_CHECKING:
    from policy_server.backends.ray.lean_node import LeanNode

__all__ = ["RAY_METRICS", "REPLICA_ENVIRONMENT", "OwnRay", "report_unshared_class"]

# The name of the address of Ray's own metrics; people read them on the server's port.
RAY_METRICS = "ray_metrics"
# One thread a replica: a policy is small, and replicas are many.
REPLICA_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # Ray's forty threads would each keep freed memory for themselves (glibc).
    "MALLOC_ARENA_MAX": "2",
    # A call of the policy is shorter than handing it to a thread and back.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}

logger = logging.getLogger(__name__)

_LEFT_OUT = "left-out"
_TRIES = 3
_GUARD_TIMEOUT_S = 1.0
_OBJECT_STORE_BYTES = 100 * 1024 * 1024
# How many that have ended Ray remembers for its dashboard: by itself 100,000 actors and tasks, and
# 1,000 processes. Each replica of an unloaded version is one, with all that it was started from.
_REMEMBERED = {
    "maximum_gcs_destroyed_actor_cached_count": 50,
    "maximum_gcs_dead_worker_cached_count": 50,
    "task_events_max_num_task_in_gcs": 1000,
}
# Ray's library ends a process that reaches for the object store of a raylet that has died: by
# itself that holds every argument above 100 KB, and Ray Serve sends 110 KB to deploy a version. It
# also ends one whose call of a dead head process has waited for 60 s, though another Ray has
# followed: here after ten years.
_OUTLIVED = {
    "max_direct_call_object_size": 4 * 1024 * 1024,
    "gcs_rpc_server_reconnect_timeout_s": 10 * 365 * 24 * 3600,
}
# Ray's metrics cost its agent 250 KB for each version that ever was, and the server reads none of
# them. Whoever wants them sets the variable, which is Ray's own.
_METRICS = "enable_metrics_collection"
# The errors of a private part of Ray that has moved or takes other arguments.
_MOVED = (ImportError, AttributeError, TypeError)


class OwnRay:
    """A Ray that this process starts.

    `start`, `start_rest` and `end` belong on one thread that lives as long as Ray does: where
    no other process shares Ray, the kernel ends its processes with the thread that started them.

    Attributes:
        addresses: the addresses of Ray's pages, by name.
    """

    def __init__(self, settings: Settings, *, server: int) -> None:
        """Own nothing yet; from `start` to `end`, Ray's processes and their folder.

        Args:
            settings: ports, and how many replicas there are.
            server: the process that Ray may not outlive: this one, or the parent of the workers
                that share the Ray, of which any may be killed.
        """
        self._server = server
        self._is_broken_off = threading.Event()
        self._guard: subprocess.Popen[bytes] | None = None
        self.addresses: dict[str, str] = {}
        self._settings = settings
        self._folder: Path | None = None
        self._node: LeanNode | None = None
        self._watched: list[WatchedProcess] = []

    @property
    def folder(self) -> Path:
        """Return the folder of this Ray, which is removed at its end."""
        assert self._folder is not None, "it is started"
        return self._folder

    @property
    def address(self) -> str:
        """Return the address by which other processes join it."""
        address: str = ray.get_runtime_context().gcs_address
        return address

    @property
    def watched(self) -> list[WatchedProcess]:
        """Return the processes without which no Ray goes on; none where it can't be told."""
        return self._watched

    def break_off(self) -> None:
        """Have `start` and `start_rest` fail soon, wherever they are; called from any thread.

        Nothing is killed here: a process whose Ray ends while it connects to it waits for a minute,
        and then Ray's library ends it. `end` and `end_processes` end what was begun.
        """
        self._is_broken_off.set()

    def start(self) -> None:
        """Start Ray's processes and connect to them.

        Raises:
            NotReadyError: if Ray does not start, was broken off, or would end this process for
                want of open files.
            SettingsError: if it would run without a token.
        """
        started = time.monotonic()
        check_open_files()
        use_token()
        adopt_loggers()
        remove_dead_rays()
        with as_not_ready_error(sockets_hint(tempfile.gettempdir())):
            for tries_left in reversed(range(_TRIES)):
                try:
                    # Ray shows the environments of its processes to whoever may use it.
                    with without_secrets():
                        self._start()
                    break
                except RayletEndedError as error:
                    if not tries_left or self._is_broken_off.is_set():
                        raise
                    logger.warning("ray_started_again", extra={"reason": str(error)})
                    self.end_processes()
        logger.info("ray_started", extra={"seconds": round(time.monotonic() - started, 1)})

    def start_rest(self) -> None:
        """Let Ray's agents go on, and start the dashboard if the settings have one.

        The first answer waits for neither; a dashboard that fails is only logged.
        """
        if self._node is None or self._is_broken_off.is_set():
            return
        report_unshared_class()
        self._node.wake_agents()
        if not self._settings.dashboard_port:
            return
        try:
            with without_secrets():
                self._node.start_dashboard(self._environment())
        except Exception as error:
            # Ray raises plain exceptions too.
            logger.warning("dashboard_not_started", extra={"reason": reason_of(error)})

    def end(self) -> None:
        """Disconnect, end Ray's processes, and remove its folder."""
        try:
            ray.shutdown()
        finally:
            self.end_processes()

    def end_processes(self) -> None:
        """End Ray's processes and remove its folder; this process may belong to another Ray."""
        with ExitStack() as ending:
            # Last, and in any case: it would go on until this process has ended.
            ending.callback(self._end_guard)
            if self._folder is not None:
                ending.callback(end_ray_in, self._folder)
            if self._node is not None:
                node, self._node = self._node, None
                node.end(is_graceful=are_running(self.watched))

    def _end_guard(self) -> None:
        if self._guard is None:
            return
        self._guard.kill()
        try:
            self._guard.wait(_GUARD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            left = {"folder": str(self._folder), "pids": [self._guard.pid]}
            logger.warning("ray_processes_left", extra=left)

    def _start(self) -> None:
        self._folder = make_rays_folder(self._server)
        self._guard = start_guard(self._folder)
        rays_folder = self._folder / RAYS_OWN
        rays_folder.mkdir()
        write_left_out(self._folder / _LEFT_OUT)
        if self._settings.dashboard_port:
            self._announce_dashboard(self._folder)
        try:
            self._start_lean(rays_folder)
        except _MOVED as error:
            logger.warning("ray_started_whole", extra={"reason": str(error)})
            self._start_whole(rays_folder)

    def _announce_dashboard(self, folder: Path) -> None:
        host, port = self._settings.dashboard_host, self._settings.dashboard_port
        warn_of_open_dashboard(host=host)
        self.addresses["dashboard"] = f"http://{host}:{port}"
        if token := os.environ.get("RAY_AUTH_TOKEN"):
            (folder / "dashboard-token").touch(mode=0o600)
            (folder / "dashboard-token").write_text(token)
            self.addresses["dashboard_token"] = str(folder / "dashboard-token")

    def _start_lean(self, folder: Path) -> None:
        from policy_server.backends.ray.lean_node import start_lean_node

        self._node = start_lean_node(
            self._options(),
            folder=str(folder),
            is_shared=self._server != os.getpid(),
            environment=self._environment(),
            start_timeout_s=self._settings.start_timeout_s,
            is_broken_off=self._is_broken_off.is_set,
        )
        if os.environ.get(f"RAY_{_METRICS}"):
            port = self._node.metrics_export_port
            self.addresses[RAY_METRICS] = f"http://127.0.0.1:{port}/metrics"
        connect(self._node.gcs_address)
        self._watched = _watched(self._node)

    def _start_whole(self, folder: Path) -> None:
        """Start Ray by `ray.init`: it takes seconds and 170 MB more, and chooses its own ports."""
        given = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = str(folder)
        try:
            connect(None, {"env_vars": self._environment()}, **self._options())
        finally:
            if given is None:
                del os.environ["RAY_TMPDIR"]
            else:
                os.environ["RAY_TMPDIR"] = given

    def _options(self) -> dict[str, Any]:
        settings = self._settings
        return {
            # Ray starts as many workers at once: the replicas, and Ray Serve's controller. Nothing
            # is set aside for them, so that none ever waits.
            "num_cpus": max(settings.num_replicas, settings.max_replicas) + 1,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": settings.dashboard_port > 0,
            "dashboard_host": settings.dashboard_host,
            "dashboard_port": settings.dashboard_port,
            "_system_config": {
                **_REMEMBERED,
                **_OUTLIVED,
                # Here it would go before the variable.
                **({} if os.environ.get(f"RAY_{_METRICS}") else {_METRICS: False}),
            },
        }

    def _environment(self) -> dict[str, str]:
        """Return the variables of Ray's processes."""
        python_path = [str(self.folder / _LEFT_OUT), str(Path(policy_server.__file__).parents[1])]
        python_path += filter(None, [os.environ.get("PYTHONPATH")])
        # The dashboard reads no other.
        remembered = {f"RAY_{name}": str(count) for name, count in _REMEMBERED.items()}
        return {**REPLICA_ENVIRONMENT, **remembered, "PYTHONPATH": os.pathsep.join(python_path)}


def report_unshared_class() -> None:
    """Log why replicas don't share a class of actors, where Ray Serve has changed."""
    try:
        from policy_server.backends.ray.replica_class import unexpected_insides

        reason = unexpected_insides()
    except ImportError as error:
        reason = reason_of(error)
    if reason:
        logger.warning("replica_class_not_shared", extra={"reason": reason})


def _watched(node: LeanNode) -> list[WatchedProcess]:
    """Return the processes without which a Ray that this process has joined does not go on."""
    from policy_server.backends.ray.lean_node import GCS, RAYLET

    host, _, port = node.gcs_address.rpartition(":")
    [known] = ray.nodes()
    servers = {
        GCS: (host, int(port)),
        RAYLET: (known["NodeManagerAddress"], known["NodeManagerPort"]),
    }
    sockets = {GCS: (), RAYLET: (node.raylet_socket_name, node.plasma_store_socket_name)}
    found = []
    for kind, pid in node.needed_pids().items():
        watched = WatchedProcess(Process.of(pid), *servers[kind], sockets[kind])
        # Behind TLS (RAY_USE_TLS) a server greets nobody.
        is_told = asyncio.run(watched.has_pulse())
        found.append(watched if is_told else replace(watched, host="", port=0))
    return found
