"""The port of the metrics: one a server, however many worker processes uvicorn has started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from policy_server.access_keys import KeyRing
from policy_server.client_limits import ClientLimit
from policy_server.http_server.web_process import METRICS_PORT
from policy_server.http_server.workers import Worker
from policy_server.metrics import Metrics, MetricsExporter
from policy_server.ports import unusable_port
from policy_server.settings import Settings

__all__ = ["exported_metrics"]

_SHARE_EVERY_S = 1.0


@asynccontextmanager
async def exported_metrics(
    settings: Settings,
    metrics: Metrics,
    worker: Worker | None,
    *,
    keys: KeyRing | None = None,
) -> AsyncIterator[MetricsExporter]:
    """Serve metrics; of uvicorn's workers whichever gets the port serves them for all.

    Args:
        settings: which port, how often an address may send a wrong key, and how many connections it
            may have.
        metrics: the counts.
        worker: one of uvicorn's workers, where there are several.
        keys: those that are valid; None shows metrics to everybody.

    Yields:
        The exporter, which knows its address.

    Raises:
        SettingsError: if the port can't be used.
    """
    shared = None if worker is None else worker.folder
    exporter = MetricsExporter(
        metrics,
        port=settings.metrics_port,
        host=settings.metrics_host,
        shared=shared,
        keys=keys,
        of_address=ClientLimit(max_rate=settings.max_address_rate),
        max_address_connections=settings.max_address_connections,
    )
    if worker is None or shared is None:
        try:
            exporter.start()
        except OSError as error:
            raise unusable_port(
                error,
                port=settings.metrics_port,
                host=settings.metrics_host,
                setting=METRICS_PORT,
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
    """Write this worker's counts every second, and take the port once no other worker has it."""
    while not stopping.is_set():
        if exporter.url is None:
            with suppress(OSError):
                exporter.start()
        await asyncio.to_thread(exporter.share)
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _SHARE_EVERY_S)
