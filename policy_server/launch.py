"""The composition root: settings and schema become an application over the chosen backend."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import NoReturn

from policy_server.errors import NotReadyError, PolicyServerError, SettingsError
from policy_server.formats.model_files import identify_model, prepare_model
from policy_server.http_server import (
    METRICS_PORT,
    Address,
    WebProcess,
    Worker,
    find_http_server,
)
from policy_server.metrics import Metrics, MetricsExporter, PolicyMetrics
from policy_server.policy import DEFAULT_POLICY, PolicyBackend
from policy_server.ports import reason_of
from policy_server.process_output import drain_output, take_output
from policy_server.public_key import host_of, warn_of_public_key
from policy_server.remote_files import bring_files
from policy_server.schema import ServerSchema, named_as_example, read_schema
from policy_server.servable import check_servable, resolve_api_key
from policy_server.serving import OpenedPolicy, PolicyRegistry, PolicySlot
from policy_server.settings import LogFormat, Settings, find_log_format, read_settings
from policy_server.telemetry import configure_logging, is_json, log_uncaught
from policy_server.web import Application, create_app

__all__ = ["build_app", "end_start", "exported", "opened_backend"]

logger = logging.getLogger(__name__)

_SHARE_EVERY_S = 1.0
_GC_THRESHOLDS = (50_000, 20, 100)
# Of an application that another server runs.
_UNKNOWN = Address("")
# The status by which uvicorn tells its supervisor that another try would fail too.
_START_FAILED = 3


def build_app() -> Application:
    """Build the application from the environment, `.env` and schema.yaml.

    Returns:
        The application; the policy is loaded when its lifespan starts.

    Raises:
        PolicyServerError: if settings or schema can't be used, or remote files can't be had.
    """
    settings = read_settings()
    _configure_logging(settings.log_level, settings.log_format)
    process = WebProcess.join()
    process.claim_ports(settings)
    with _ended_by_signals():
        bring_files(settings, check=partial(check_servable, settings=settings))
    schema = read_schema(settings.schema_path)
    api_key = resolve_api_key(settings, schema)
    warn_of_public_key(api_key, host=host_of(sys.argv))

    metrics = Metrics()
    counted = metrics.of(DEFAULT_POLICY)

    @asynccontextmanager
    async def open_policy() -> AsyncIterator[OpenedPolicy]:
        started, is_started = time.monotonic(), False
        logger.info("loading_policy", extra={"backend": settings.backend})
        server = process.server or find_http_server()
        if server is not None:
            server.keep_alive(settings.keep_alive_s)
            server.use_protocols()
        try:
            async with AsyncExitStack() as stack:
                with _cancelled_by_signals(), named_as_example(settings.schema_path):
                    exporting = exported(settings, metrics, process.worker)
                    exporter = await stack.enter_async_context(exporting)
                    opening = opened_backend(settings, schema, counted)
                    served = await stack.enter_async_context(opening)
                exporter.foreign_url = served.ray_metrics_url
                signature = served.backend.signature
                counted.describe_model(
                    version=served.version,
                    family=signature.family,
                    load_seconds=time.monotonic() - started,
                )
                address = _UNKNOWN if server is None else server.address()
                _report(schema, served, exporter.url, address)
                is_started = True
                yield OpenedPolicy(served.backend, served.version)
        except Exception:
            if not is_started:
                process.end_all()
            raise
        finally:
            drain_output()

    slot = PolicySlot(DEFAULT_POLICY, schema, open_policy, settings=settings, metrics=metrics)
    return create_app(
        PolicyRegistry([slot]),
        settings,
        api_key=api_key,
        root_path=schema.root_path,
        metrics=metrics,
        on_started=_settle_garbage_collector,
    )


def _settle_garbage_collector() -> None:
    """Leave what lives as long as the server out of collections, and collect less often.

    A full collection over FastAPI's and Ray's objects stops every request for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def _configure_logging(level: str, log_format: LogFormat) -> None:
    stream = None
    if is_json(log_format):
        # Lines of others would be no JSON.
        stream = take_output()
        log_uncaught()
    configure_logging(level=level, log_format=log_format, stream=stream)


def end_start(error: Exception) -> NoReturn:
    """End a start that can't succeed: one line says why, and a supervisor hears of it.

    Args:
        error: what `build_app` raised.
    """
    log_format = find_log_format()
    if not isinstance(error, PolicyServerError):
        _configure_logging("INFO", log_format)
        logger.critical("start_failed", exc_info=error)
    elif is_json(log_format):
        _configure_logging("INFO", log_format)
        logger.critical("start_failed", extra={"reason": error.message})
    else:
        sys.stderr.write(f"policy server: {error.message}\n")
    with suppress(PolicyServerError):
        WebProcess.join().end_all()
    sys.exit(_START_FAILED)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals end a download: while uvicorn imports the application, it only notes them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in noted.items():
            signal.signal(number, handler)


@contextmanager
def _cancelled_by_signals() -> Iterator[None]:
    """Let signals end the start: until it is over, uvicorn only notes them.

    Raises:
        NotReadyError: if a signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a lifespan is a task"
    noting = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    came: list[signal.Signals] = []

    def cancel(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        loop.call_soon_threadsafe(task.cancel)
        note = noting[came[-1]]
        if callable(note):
            note(number, frame)

    for number in noting:
        signal.signal(number, cancel)
    try:
        yield
    except asyncio.CancelledError:
        if not came:
            raise
        task.uncancel()
        raise NotReadyError(f"the start was ended by {came[0].name}") from None
    finally:
        for number, handler in noting.items():
            signal.signal(number, handler)


def _end(number: int, _frame: object) -> None:
    # What a shell reports of a program that a signal ended.
    sys.exit(128 + number)


@dataclass(frozen=True)
class ServedBackend:
    """A policy that can be asked.

    Attributes:
        backend: where it computes.
        version: the start of its file's digest.
        places: what belongs to it beside the HTTP server, such as Ray's dashboard, by name.
        ray_metrics_url: where Ray's own metrics are; None without Ray.
    """

    backend: PolicyBackend
    version: str
    places: Mapping[str, str]
    ray_metrics_url: str | None = None


@asynccontextmanager
async def exported(
    settings: Settings, metrics: Metrics, worker: Worker | None
) -> AsyncIterator[MetricsExporter]:
    """Serve metrics; of uvicorn's workers whichever gets the port serves them for all.

    Args:
        settings: which port.
        metrics: the counts.
        worker: one of uvicorn's workers, where there are several.

    Yields:
        The exporter, which knows its address.

    Raises:
        SettingsError: if the port can't be used.
    """
    shared = None if worker is None else worker.folder
    exporter = MetricsExporter(
        metrics, port=settings.metrics_port, host=settings.metrics_host, shared=shared
    )
    if worker is None or shared is None:
        try:
            exporter.start()
        except OSError as error:
            raise SettingsError(
                f"{METRICS_PORT}: port {settings.metrics_port} can't be used: "
                f"{reason_of(error)}; set another one, or 0"
            ) from error
        try:
            yield exporter
        finally:
            exporter.stop()
        return
    stopping = asyncio.Event()
    sharing = asyncio.create_task(_share(exporter, stopping))
    try:
        yield exporter
    finally:
        stopping.set()
        await sharing
        exporter.stop()
        exporter.leave()
        worker.leave()


async def _share(exporter: MetricsExporter, stopping: asyncio.Event) -> None:
    """Write this worker's counts every second, and take the port once no sister has it."""
    while not stopping.is_set():
        if exporter.url is None:
            with suppress(OSError):
                exporter.start()
        await asyncio.to_thread(exporter.share)
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _SHARE_EVERY_S)


@asynccontextmanager
async def opened_backend(
    settings: Settings, schema: ServerSchema, metrics: PolicyMetrics
) -> AsyncIterator[ServedBackend]:
    """Load the policy where the settings say, and end what was started for it.

    Args:
        settings: where the policy's files lie, and which backend computes it.
        schema: what schema.yaml says.
        metrics: counts the policy's calls.

    Yields:
        The policy, which has answered its warm-up.

    Raises:
        PolicyServerError: if it can't be loaded, or not in time.
    """
    model = identify_model(prepare_model(settings))
    # Each backend brings what the other must not need: TensorFlow here, Ray there.
    if settings.backend == "local":
        from policy_server.backends.local import open_local_backend

        async with open_local_backend(model, schema, settings) as local:
            yield ServedBackend(local, model.version, {})
    else:
        from policy_server.backends.ray import RAY_METRICS, open_ray_backend

        async with open_ray_backend(model, schema, settings, metrics) as replicas:
            places = {k: v for k, v in replicas.places.items() if k != RAY_METRICS}
            yield ServedBackend(replicas, model.version, places, replicas.places.get(RAY_METRICS))


def _report(
    schema: ServerSchema, served: ServedBackend, metrics_url: str | None, address: Address
) -> None:
    signature = served.backend.signature
    for finding in signature.findings:
        logger.info("policy_identified", extra={"finding": finding})
    root = schema.root_path
    route = "predict" if schema.observations is not None else "predict_raw"
    known = {
        "policy": f"{signature.family} of {signature.observation_width} values",
        "engine": f"{signature.engine}: {signature.engine_reason}",
        "predict": f"POST {address.of(f'{root}/{route}')}",
        "docs": address.of(f"{root}/docs"),
        **({"metrics": metrics_url} if metrics_url is not None else {}),
        **served.places,
    }
    logger.info("policy_served", extra={"places": known})
