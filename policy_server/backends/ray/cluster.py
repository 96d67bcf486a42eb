"""Ray's life around the server: started and ended here, shared by workers, or a cluster's."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Protocol

import ray

import policy_server
from policy_server.backends.ray.own_ray import OwnRay, connect, translated, use_token
from policy_server.errors import NotReadyError, SettingsError
from policy_server.settings import Settings

__all__ = ["Deployment", "joined_ray", "without_proxies"]

_LAST_WORKER_TIMEOUT_S = 30.0
_POLL_S = 0.1
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_JOIN_HINT = "; a cluster with tokens wants RAY_AUTH_MODE and RAY_AUTH_TOKEN here too"

OnRaysThread = Callable[..., Awaitable[Any]]


class Deployment(Protocol):
    """What is deployed once Ray is there."""

    async def prepare(self) -> Any:  # noqa: ANN401 -- its own business
        """Get ready what needs no Ray; runs while Ray starts, and is cancelled if that fails."""
        ...

    async def deploy(self, prepared: Awaitable[Any]) -> None:
        """Deploy what is served unless it runs already, and wait until it answers."""
        ...


@asynccontextmanager
async def joined_ray(
    settings: Settings, deployment: Deployment
) -> AsyncIterator[Mapping[str, str]]:
    """Be connected to Ray while the block runs.

    Args:
        settings: ports, and what replicas need.
        deployment: what is deployed; by one process at a time.

    Yields:
        Where people find what Ray serves, by name; what is deployed answers.

    Raises:
        SettingsError: if a port is taken.
        NotReadyError: if Ray does not start, or the cluster does not answer.
    """
    with (
        without_proxies(),
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray") as executor,
    ):

        def call(function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:  # noqa: ANN401 -- what the function takes
            return asyncio.get_running_loop().run_in_executor(executor, function, *arguments)

        if address := os.environ.get("RAY_ADDRESS"):
            joining = _cluster(address, deployment, call)
        elif parent_process() is not None:
            joining = _shared_ray(settings, deployment, call)
        else:
            joining = _own_ray(settings, deployment, call)
        async with joining as places:
            yield places


@contextmanager
def without_proxies() -> Iterator[None]:
    """Keep the environment's proxies from Ray while the block runs.

    Ray's processes call each other by the machine's own address, which nobody lists in NO_PROXY;
    gRPC would ask the proxy for it. What is downloaded is here before Ray is.
    """
    proxies = {name: text for name, text in os.environ.items() if name.lower() in _PROXIES}
    for name in proxies:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(proxies)


@asynccontextmanager
async def _begun(deployment: Deployment) -> AsyncIterator[Awaitable[Any]]:
    preparing = asyncio.create_task(deployment.prepare())
    try:
        yield preparing
    finally:
        preparing.cancel()
        await asyncio.gather(preparing, return_exceptions=True)


def _restore_signal_handlers() -> None:
    """Put uvicorn's handlers back: Ray replaces them below Python, and prints where it was hit."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))


@asynccontextmanager
async def _cluster(
    address: str, deployment: Deployment, call: OnRaysThread
) -> AsyncIterator[Mapping[str, str]]:
    package = str(Path(policy_server.__file__).parent)
    try:
        async with _begun(deployment) as prepared:
            with translated(_JOIN_HINT):
                await call(connect, address, {"py_modules": [package]})
            _restore_signal_handlers()
            await deployment.deploy(prepared)
        yield {}
    finally:
        await call(ray.shutdown)


@asynccontextmanager
async def _own_ray(
    settings: Settings, deployment: Deployment, call: OnRaysThread
) -> AsyncIterator[Mapping[str, str]]:
    own = OwnRay(settings)
    try:
        async with _begun(deployment) as prepared:
            await call(own.start)
            _restore_signal_handlers()
            await deployment.deploy(prepared)
        call(own.start_dashboard)
        yield own.places
    finally:
        # After whatever of it still runs on the thread.
        await call(own.end)


@asynccontextmanager
async def _shared_ray(
    settings: Settings, deployment: Deployment, call: OnRaysThread
) -> AsyncIterator[Mapping[str, str]]:
    """Share one Ray among uvicorn's workers: the first starts it, the last one out ends it."""
    shared = Path(tempfile.gettempdir(), f"ps-workers-{os.getppid()}")
    shared.mkdir(mode=0o700, exist_ok=True)
    if shared.stat().st_uid != os.getuid():
        raise SettingsError(
            f"{shared}: belongs to somebody else; set TMPDIR to a folder of your own"
        )
    mine = shared / f"member-{os.getpid()}"
    own = OwnRay(settings)
    lock = await _locked(shared)
    has_started = False
    try:
        try:
            async with _begun(deployment) as prepared:
                if not await call(_join, shared):
                    has_started = True
                    await call(_start, own, shared)
                _restore_signal_handlers()
                mine.touch()
                await deployment.deploy(prepared)
        except BaseException:
            if has_started:
                # Before the lock goes: a sister would join a Ray that is about to end, and wait
                # for it for a minute.
                shutil.rmtree(shared, ignore_errors=True)
            raise
        finally:
            os.close(lock)
        if has_started:
            call(own.start_dashboard)
        yield json.loads((shared / "ray.json").read_text())["places"]
    finally:
        mine.unlink(missing_ok=True)
        if has_started:
            await _wait_for_others(shared)
            await call(own.end)
            shutil.rmtree(shared, ignore_errors=True)
        else:
            await call(ray.shutdown)


async def _locked(shared: Path) -> int:
    """Return the descriptor of the lock that one worker holds at a time."""
    descriptor = os.open(shared / "lock", os.O_CREAT | os.O_RDWR)
    try:
        while not _has_locked(descriptor):
            await asyncio.sleep(_POLL_S)
    except BaseException:
        os.close(descriptor)
        raise
    if not os.fstat(descriptor).st_nlink:
        os.close(descriptor)
        # It ends all of them when it has said why, and meanwhile ends its Ray.
        await asyncio.sleep(_LAST_WORKER_TIMEOUT_S)
        raise NotReadyError(
            "ray: the worker that started it could not serve; its own line says why"
        )
    return descriptor


def _has_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _join(shared: Path) -> bool:
    """Join the Ray that another worker started; False where there is none."""
    state = shared / "ray.json"
    if not state.exists():
        return False
    known = json.loads(state.read_text())
    if not _is_alive(known["pid"]):
        return False
    use_token(known["token"])
    with translated():
        connect(known["address"])
    return True


def _start(own: OwnRay, shared: Path) -> None:
    own.start()
    known = {
        "pid": os.getpid(),
        "address": own.address,
        "token": os.environ.get("RAY_AUTH_TOKEN", ""),
        "places": own.places,
    }
    (shared / "ray.json").write_text(json.dumps(known))


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
