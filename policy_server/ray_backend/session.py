"""Ray's life around the server: started and ended here, shared by workers, or a cluster's.

Ray replaces the process's signal handlers when it starts; uvicorn's have to be put back, or its
shutdown never runs.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from ray._raylet import Config  # type: ignore[attr-defined]  # a compiled module

import policy_server
from policy_server.errors import NotReadyError, SettingsError
from policy_server.settings import Settings

__all__ = ["RAY_METRICS", "joined_ray"]

# The name of the place where Ray's own metrics are; people find them among the server's.
RAY_METRICS = "ray_metrics"

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 100 * 1024 * 1024
_LAST_WORKER_TIMEOUT_S = 30.0
_POLL_S = 0.1
_JOIN_HINT = "; a cluster with tokens wants RAY_AUTH_MODE and RAY_AUTH_TOKEN here too"


@asynccontextmanager
async def joined_ray(
    settings: Settings, deploy: Callable[[], None]
) -> AsyncIterator[Mapping[str, str]]:
    """Be connected to Ray while the block runs.

    Args:
        settings: ports, and what replicas need.
        deploy: deploys what is served unless it runs already; called once connected, by one
            process at a time.

    Yields:
        Where people find what Ray serves, by name; Ray is up and `deploy` is done.

    Raises:
        SettingsError: if a port is taken.
        NotReadyError: if Ray does not start, or the cluster does not answer.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        with _translated(_JOIN_HINT), _kept_signal_handlers():
            _connect(address)
        try:
            await asyncio.to_thread(deploy)
            yield {}
        finally:
            ray.shutdown()
    elif parent_process() is not None:
        async with _shared_ray(settings, deploy) as places:
            yield places
    else:
        own = _start(settings)
        try:
            await asyncio.to_thread(deploy)
            yield own.places
        finally:
            own.end()


def _use_token(token: str) -> None:
    """Let only those who know a secret use the Ray that this server starts.

    Who reaches it can run code. Ray would write one to the home folder, which a container may not
    have; its own way of taking over a changed environment is `Config.initialize`.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", token)
        Config.initialize("")


def _connect(address: str) -> None:
    package = str(Path(policy_server.__file__).parent)
    ray.init(
        address=address,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"py_modules": [package]},
    )


@dataclass(frozen=True)
class _OwnRay:
    """A Ray that this process started: its folder for temporary files, and where people find it."""

    folder: Path
    places: Mapping[str, str]

    def end(self) -> None:
        ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


def _start(settings: Settings) -> _OwnRay:
    _check_dashboard_port(settings.dashboard_port)
    _use_token(secrets.token_hex(32))
    # Ray puts sockets there, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ps-ray-"))
    has_dashboard = settings.dashboard_port > 0
    replicas = max(settings.num_replicas, settings.max_replicas)
    options: dict[str, Any] = {"dashboard_port": settings.dashboard_port} if has_dashboard else {}
    metrics_port = _free_port()
    places = {RAY_METRICS: f"http://127.0.0.1:{metrics_port}/metrics"}
    if has_dashboard:
        places["dashboard"] = f"http://{settings.dashboard_host}:{settings.dashboard_port}"
        if token := os.environ.get("RAY_AUTH_TOKEN"):
            (folder / "dashboard-token").touch(mode=0o600)
            (folder / "dashboard-token").write_text(token)
            places["dashboard_token"] = str(folder / "dashboard-token")
    own = _OwnRay(folder, places)
    try:
        with _translated(), _kept_signal_handlers():
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, math.ceil(replicas * settings.replica_cpus)),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=has_dashboard,
                dashboard_host=settings.dashboard_host,
                log_to_driver=False,
                configure_logging=False,
                _metrics_export_port=metrics_port,
                _temp_dir=str(folder),
                **options,
            )
    except BaseException:
        own.end()
        raise
    return own


@contextmanager
def _translated(hint: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Ray raises plain exceptions too.
        reason = " ".join(str(error).split())[:300]
        raise NotReadyError(f"ray: could not start or join: {reason}{hint}") from error


@contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _check_dashboard_port(port: int) -> None:
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise SettingsError(
                f"POLICY_SERVER_DASHBOARD_PORT: port {port} can't be used: {error.strerror}; "
                "set another one, or 0"
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def _shared_ray(
    settings: Settings, deploy: Callable[[], None]
) -> AsyncIterator[Mapping[str, str]]:
    """Share one Ray among uvicorn's workers: the first starts it, the last one out ends it."""
    shared = Path(tempfile.gettempdir(), f"ps-workers-{os.getppid()}")
    shared.mkdir(mode=0o700, exist_ok=True)
    if shared.stat().st_uid != os.getuid():
        raise SettingsError(
            f"{shared}: belongs to somebody else; set TMPDIR to a folder of your own"
        )
    mine = shared / f"member-{os.getpid()}"
    lock = await asyncio.to_thread(_lock, shared)
    own: _OwnRay | None = None
    try:
        try:
            own = _join_or_start(shared, settings)
            mine.touch()
            await asyncio.to_thread(deploy)
        finally:
            os.close(lock)
        yield json.loads((shared / "ray.json").read_text())["places"]
    finally:
        mine.unlink(missing_ok=True)
        if own is None:
            ray.shutdown()
        else:
            await _wait_for_others(shared)
            own.end()
            shutil.rmtree(shared, ignore_errors=True)


def _lock(shared: Path) -> int:
    descriptor = os.open(shared / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    if not os.fstat(descriptor).st_nlink:
        os.close(descriptor)
        raise NotReadyError(
            "ray: the worker that started it could not serve; its own line says why"
        )
    return descriptor


def _join_or_start(shared: Path, settings: Settings) -> _OwnRay | None:
    """Return the Ray that this worker started; None where it joined another's."""
    state = shared / "ray.json"
    if state.exists():
        known = json.loads(state.read_text())
        if _is_alive(known["pid"]):
            _use_token(known["token"])
            with _translated(), _kept_signal_handlers():
                ray.init(address=known["address"], log_to_driver=False, configure_logging=False)
            return None
    own = _start(settings)
    address = ray.get_runtime_context().gcs_address
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    state.write_text(
        json.dumps({"pid": os.getpid(), "address": address, "token": token, "places": own.places})
    )
    return own


async def _wait_for_others(shared: Path) -> None:
    deadline = time.monotonic() + _LAST_WORKER_TIMEOUT_S
    while time.monotonic() < deadline:
        members = [int(path.name.split("-")[1]) for path in shared.glob("member-*")]
        if not any(_is_alive(pid) for pid in members):
            return
        await asyncio.sleep(_POLL_S)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
