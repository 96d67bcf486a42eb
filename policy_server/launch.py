"""The composition root: settings and schema become an application over the chosen backend."""

from __future__ import annotations

import errno
import gc
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import NoReturn

from policy_server.access_keys import KeyRing
from policy_server.backends.opening import Backends
from policy_server.errors import NotReadyError, PolicyServerError
from policy_server.files.regular import failure_of_system, unread
from policy_server.http_server import (
    Address,
    ConnectionLimits,
    ConnectionWatch,
    WebProcess,
    cancelled_by_signals,
    ended_by_signals,
    exported_metrics,
    find_http_server,
)
from policy_server.policies import Policies
from policy_server.process_memory import UnusedMemory, share_arenas
from policy_server.process_output import drain_output, take_output
from policy_server.public_key import host_of, warn_of_public_key
from policy_server.remote_files import bring_files
from policy_server.schema import read_schema_file
from policy_server.servable import check_servable, resolve_api_key
from policy_server.server_keys import followed_keys, keys_of
from policy_server.serving import PolicyRegistry
from policy_server.serving.deployment_store import one_basis
from policy_server.settings import LogFormat, find_log_format, read_settings
from policy_server.telemetry import configure_logging, flush_log, is_json, log_uncaught
from policy_server.web import Application, create_app

__all__ = ["build_app", "end_start"]

logger = logging.getLogger(__name__)

# Some 10,000 objects at most wait for a collection: a scrape of the metrics leaves 1 kB of them.
_GC_THRESHOLDS = (10_000, 10, 20)
# Of an application that another server runs.
_UNKNOWN = Address("")
# The status by which uvicorn tells its supervisor that another try would fail too.
_START_FAILED = 3
# Errors by which the system says that it has, or gives, no more of something.
_LACKS = {errno.EAGAIN, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}


def build_app() -> Application:
    """Build the application from the environment, `.env` and schema.yaml.

    Returns:
        The application; the policy is loaded when its lifespan starts.

    Raises:
        PolicyServerError: if settings or schema can't be used, or remote files can't be fetched.
    """
    share_arenas()
    settings = read_settings()
    _configure_logging(settings.log_level, settings.log_format)
    process = WebProcess.join()
    process.claim_ports(settings)
    with ended_by_signals():
        bring_files(settings, check=partial(check_servable, settings=settings))
    file = read_schema_file(settings.schema_path)
    api_key = resolve_api_key(settings, file)
    keys = KeyRing(keys_of(settings, file))
    warn_of_public_key(keys.keys, host=host_of(sys.argv))

    worker = process.worker
    policies = Policies(
        settings,
        file,
        is_alone=worker is None,
        share_bases=one_basis if worker is None else worker.share_digests,
    )

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        is_started = False
        try:
            async with AsyncExitStack() as stack:
                with cancelled_by_signals():
                    logger.info("loading_policy", extra={"backend": settings.backend})
                    server = process.server or find_http_server()
                    if server is not None:
                        server.keep_alive(settings.keep_alive_s)
                        watch = ConnectionWatch(
                            ConnectionLimits.of(settings),
                            policies.metrics,
                            log_refused=app.log_refused,
                        )
                        server.use_protocols(watch, app, app.hot_routes)
                    exporting = exported_metrics(
                        settings, policies.metrics, process.worker, keys=keys
                    )
                    exporter = await stack.enter_async_context(exporting)
                    backends = await stack.enter_async_context(policies.running())
                    await stack.enter_async_context(followed_keys(keys, settings))
                    exporter.foreign_url = lambda: backends.metrics_url
                    exporter.healthy_replicas = lambda: backends.healthy_replicas
                    address = _UNKNOWN if server is None else server.address()
                    _report(policies.registry, backends, exporter.url, address)
                    _settle_garbage_collector()
                    unused = UnusedMemory()
                    for slot in policies.registry:
                        slot.on_unloaded.append(unused.release_soon)
                stack.callback(
                    process.note_serving(on_ending=policies.note_ending, drain_s=settings.drain_s)
                )
                is_started = True
                yield
        except Exception as error:
            if not is_started:
                process.end_all(reason=str(error))
                lack = _refusal_of(error)
                if lack is not None:
                    raise lack from error
            raise
        finally:
            drain_output()
            flush_log()

    app = create_app(
        policies.registry,
        settings,
        running=running,
        api_key=api_key,
        keys=keys,
        root_path=file.root_path,
        metrics=policies.metrics,
        administration=policies.administration,
    )
    return app


def _refusal_of(error: Exception) -> NotReadyError | None:
    """Return one line in place of an error by which the system refuses what a start needs."""
    is_lack = isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in _LACKS
    )
    if not is_lack and "can't start new thread" not in str(error):
        return _failure_of_disk(error)
    reason = " ".join(str(error).split()) or "no memory"
    return NotReadyError(
        f"the system gives less than the start needs: {reason}; raise the limits of memory, "
        "processes and open files (ulimit, the container's)"
    )


def _failure_of_disk(error: Exception) -> NotReadyError | None:
    failure = failure_of_system(error)
    if failure is None or not failure.filename or isinstance(error, PolicyServerError):
        return None
    return NotReadyError(unread(failure.filename, failure))


def _settle_garbage_collector() -> None:
    """Leave objects that live as long as the server out of collections, and collect less often.

    A full collection over FastAPI's and Ray's objects stops every request for tens of milliseconds.
    What a start leaves as garbage, a few thousand objects, stays with them.
    """
    gc.freeze()
    gc.enable()
    gc.set_threshold(*_GC_THRESHOLDS)


def _configure_logging(level: str, log_format: LogFormat) -> None:
    stream = None
    if is_json(log_format):
        # The lines of other loggers would be no JSON.
        stream = take_output()
        log_uncaught()
    configure_logging(level=level, log_format=log_format, stream=stream)


def end_start(error: Exception) -> NoReturn:
    """End a start that can't succeed: log the reason in one line, and end the supervisor.

    Args:
        error: the error of `build_app`.
    """
    log_format = find_log_format()
    error = _refusal_of(error) or error
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


def _report(
    registry: PolicyRegistry, backends: Backends, metrics_url: str | None, address: Address
) -> None:
    """Log the policies that are served, and the addresses of their pages."""
    root = registry.default.schema.root_path
    pages = {
        "docs": address.of(f"{root}/docs"),
        **({"metrics": metrics_url} if metrics_url is not None else {}),
        **backends.addresses,
    }
    for slot in registry:
        if slot.live is None:
            continue
        signature = slot.live.signature
        for finding in signature.findings:
            logger.info("policy_identified", extra={"finding": finding})
        route = "predict" if slot.schema.observations is not None else "predict_raw"
        prefix = "" if slot is registry.default else f"/policies/{slot.name}"
        known = {
            **({"name": slot.name} if registry.is_named else {}),
            "policy": f"{signature.family} of {signature.observation_width} values",
            "engine": f"{signature.engine}: {signature.engine_reason}",
            "predict": f"POST {address.of(f'{root}{prefix}/{route}')}",
            **(pages if slot is registry.default else {}),
        }
        logger.info("policy_served", extra={"places": known})
