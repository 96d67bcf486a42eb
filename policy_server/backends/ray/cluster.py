"""One Ray for all policies of this process, and the policy versions that are deployed on it.

Example:
    async with open_ray_cluster(settings) as cluster:
        version = VersionDescription("default", model, schema, ReplicaCounts.of(settings))
        backend = await cluster.deploy(version)
        outputs = await backend.infer(inputs)
        await cluster.undeploy(backend)
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from policy_server.backends.ray.application_runs import ApplicationRuns, Compiling
from policy_server.backends.ray.applications import (
    Application,
    VersionDescription,
    application_names,
    remove_application,
    start_serve,
)
from policy_server.backends.ray.backend import RayBackend
from policy_server.backends.ray.cluster_ledger import RENEWAL_PERIOD_S, ClusterLedger
from policy_server.backends.ray.cluster_records import ClusterRecords, open_cluster_records
from policy_server.backends.ray.connection import (
    kept_signal_handlers,
    no_other_ray,
    reason_of,
    without_proxies,
)
from policy_server.backends.ray.healthy_replicas import HealthyReplicas
from policy_server.backends.ray.ledger import FolderLedger, Ledger
from policy_server.backends.ray.membership import (
    ClusterMember,
    Membership,
    OnRaysThread,
    SoleOwner,
)
from policy_server.backends.ray.own_ray import RAY_METRICS
from policy_server.backends.ray.ray_calls import END_TIMEOUT_S, ENDED, RayCalls, call_ray
from policy_server.backends.ray.shared_ray import SharedRay
from policy_server.backends.ray.stand_ins import stand_ins
from policy_server.backends.ray.stopped_processes import StoppedProcesses
from policy_server.backends.replica_counts import ReplicaCounts
from policy_server.engine.network import CompiledPolicy
from policy_server.errors import NotReadyError, SettingsError
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.model_files import Model
from policy_server.metrics import PolicyMetrics
from policy_server.schema import ServerSchema
from policy_server.settings import Settings

__all__ = ["RayCluster", "VersionDescription", "open_ray_cluster"]

logger = logging.getLogger(__name__)

# The name of the lock that is held while Ray Serve itself starts.
_SERVE = "serve"
# The longest wait for an application to be left, and for each that follows one that was not in
# time: a stop, which leaves all of them, is to end within ten seconds.
_LEAVE_TIMEOUT_S, _LATER_TIMEOUT_S = 3.0, 0.2
# Between the starts of a Ray that does not start.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_Result = TypeVar("_Result")


@asynccontextmanager
async def open_ray_cluster(settings: Settings) -> AsyncIterator[RayCluster]:
    """Start Ray on this machine, or join the one of uvicorn's workers or of `RAY_ADDRESS`.

    Args:
        settings: ports, replicas and deadlines.

    Yields:
        The cluster, while Ray still starts: policies are compiled meanwhile, and the first
        deployment waits for it and raises where it fails.

    Raises:
        SettingsError: if this process is connected to a Ray already; it can have one at a time.
    """
    if ray.is_initialized():
        raise SettingsError(
            "ray: this process is connected to a Ray already, and can have one at a time; give "
            "both applications one policy_server.SharedBackends, or this one by backend='local'"
        )
    with (
        without_proxies(),
        no_other_ray(),
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray") as executor,
    ):

        def call(function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:  # noqa: ANN401 -- what the function takes
            return asyncio.get_running_loop().run_in_executor(
                executor, call_ray, function, *arguments
            )

        cluster = RayCluster(settings, _membership(settings, call))
        try:
            yield cluster
        finally:
            await cluster.aclose()


def _membership(settings: Settings, call: OnRaysThread) -> Membership:
    if address := os.environ.get("RAY_ADDRESS"):
        # In threads that no end of the process awaits: others' clusters may stand still.
        return ClusterMember(address, RayCalls().call, timeout_s=settings.start_timeout_s)
    if parent_process() is not None:
        return SharedRay(settings, call)
    return SoleOwner(settings, call)


def _not_counted() -> None:
    """Ignore a lost replica."""


class RayCluster:
    """A Ray that this process belongs to; policy versions come and go while calls run."""

    def __init__(self, settings: Settings, membership: Membership) -> None:
        """Own the membership in Ray and the backends until `aclose`; joining begins at once.

        Args:
            settings: replicas and deadlines.
            membership: of this process in a Ray; not joined yet.
        """
        self._settings = settings
        self._membership = membership
        self._applications: dict[str, Application] = {}
        self._uses: Counter[str] = Counter()
        # Whether the last application that was left was so in time.
        self._can_leave = True
        # The applications that were to run on the Ray that follows a dead one.
        self._resumed: set[str] = set()
        self._backends: set[RayBackend] = set()
        self._ray_calls = RayCalls()
        self._runs = ApplicationRuns(settings, membership, self._ray_calls)
        self._keeping: asyncio.Task[None] | None = None
        # Set from the end of a Ray until another one was joined.
        self._has_died = asyncio.Event()
        # Cleared where Ray has died and no version is deployed.
        self._is_needed = asyncio.Event()
        self._is_needed.set()
        self._healthy = HealthyReplicas(self._backends, call_ray=self._ray_calls.call)
        self._counting = asyncio.create_task(self._healthy.run())
        stopped = StoppedProcesses(self._backends, lambda: membership.needed_pids)
        self._ending_stopped = asyncio.create_task(stopped.run())
        self._joining = asyncio.create_task(self._join())
        self._watching = asyncio.create_task(self._watch())

    @property
    def addresses(self) -> Mapping[str, str]:
        """Return the addresses of Ray's pages, by name; empty before a version is deployed."""
        addresses = self._membership.addresses
        return {name: address for name, address in addresses.items() if name != RAY_METRICS}

    @property
    def metrics_url(self) -> str | None:
        """Return the address of Ray's own metrics; None where it collects none, or on a cluster."""
        return self._membership.addresses.get(RAY_METRICS)

    @property
    def healthy_replicas(self) -> int | None:
        """Return how many replicas answer; None on a cluster, whose servers share them."""
        return None if self._membership.is_crowded else self._healthy.count()

    async def shared_records(self) -> ClusterRecords | None:
        """Return the records of the cluster; see `Backends.shared_records`.

        A Ray on this machine has none: the processes that use it share the server's folder.
        """
        if not self._membership.is_crowded:
            return None
        await asyncio.shield(self._joining)
        return await open_cluster_records(self._ray_calls, timeout_s=self._settings.start_timeout_s)

    @asynccontextmanager
    async def open(
        self, model: Model, schema: ServerSchema, metrics: PolicyMetrics, replicas: ReplicaCounts
    ) -> AsyncIterator[RayBackend]:
        """Deploy a policy version, and leave it when the block ends; see `Backends.open`.

        A Ray of this process's own ends the replicas then. A cluster keeps them for servers that
        are restarted, until another version has replaced this one and no server uses it.
        """
        version = VersionDescription(metrics.policy, model, schema, replicas)
        backend = await self.deploy(version, count_lost=metrics.count_replica_lost)
        try:
            yield backend
        finally:
            await self._end(backend, is_retired=not self._membership.is_crowded)

    async def deploy(
        self, version: VersionDescription, *, count_lost: Callable[[], None] = _not_counted
    ) -> RayBackend:
        """Deploy a policy version unless it runs or is coming up, and wait until it answers.

        Args:
            version: the policy's files and schema.
            count_lost: called once for each replica that dies.

        Returns:
            The backend; `undeploy` ends it.

        Raises:
            ModelError: if the file can't give a policy.
            SchemaError: if schema.yaml disagrees with the policy.
            SettingsError: if Ray can't start with these settings.
            NotReadyError: if Ray does not start, or no replica is ready in time.
        """
        application = Application(version, self._settings, self._membership.is_crowded)
        compiling = asyncio.create_task(self._compiled(version))
        self._is_needed.set()
        try:
            ledger = await asyncio.shield(self._joining)
            deploying = self._deployed(application, ledger, compiling, count_lost)
            backend = await _unless_ended(deploying, self._has_died.wait())
        except (RayError, RayServeException) as error:
            raise NotReadyError(
                f"ray: {application.name} could not be deployed: {reason_of(error)}"
            ) from error
        finally:
            compiling.cancel()
            await asyncio.gather(compiling, return_exceptions=True)
        await self._membership.has_served()
        return backend

    async def undeploy(self, backend: RayBackend) -> None:
        """Retire a policy version whose calls have been answered.

        Its replicas end, unless another backend or another server process uses them.

        Args:
            backend: as `deploy` returned it.
        """
        await self._end(backend, is_retired=True)

    async def aclose(self) -> None:
        """Leave Ray, and end it if it is this process's; a cluster's applications go on."""
        self._watching.cancel()
        self._counting.cancel()
        self._ending_stopped.cancel()
        if self._keeping is not None:
            self._keeping.cancel()
        # What a start has begun, `leave` breaks off and ends.
        self._joining.cancel()
        kept = (
            *(self._watching, self._counting, self._ending_stopped, self._joining),
            *self._all_kept(),
        )
        await asyncio.gather(*kept, return_exceptions=True)
        for backend in list(self._backends):
            await backend.aclose()
        self._uses.clear()
        for name in list(self._applications):
            await self._abandon(name, is_retired=False)
        # A call that was waited for already, and waits for the ledger, is not waited for again.
        end_timeout_s = END_TIMEOUT_S if self._can_leave else _LATER_TIMEOUT_S
        async with kept_signal_handlers(), self._ray_calls.held(end_timeout_s=end_timeout_s):
            await self._membership.leave()

    async def _end(self, backend: RayBackend, *, is_retired: bool) -> None:
        self._backends.discard(backend)
        await backend.aclose()
        await self._abandon(backend.application, is_retired=is_retired)

    async def _abandon(self, name: str, *, is_retired: bool) -> None:
        """Leave an application, but wait for no Ray that has died, and for others not for long.

        Where another process holds the ledger, what has begun goes on by itself.
        """
        if not self._is_joined():
            # A Ray that has died has no replicas that it could end.
            self._uses[name] -= 1
            if not self._uses[name]:
                self._applications.pop(name, None)
            return
        leaving = asyncio.create_task(self._leave(name, is_retired=is_retired))
        dying = asyncio.create_task(self._has_died.wait())
        timeout_s = _LEAVE_TIMEOUT_S if self._can_leave else _LATER_TIMEOUT_S
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait([leaving, dying], return_when=asyncio.FIRST_COMPLETED)
            self._can_leave = True
            if leaving.done():
                await leaving
        except TimeoutError:
            self._can_leave = False
            reason = (
                f"not within {timeout_s:g} s: another process holds the ledger, or Ray does not "
                "answer"
            )
            logger.warning("application_not_left", extra={"application": name, "reason": reason})
        except (NotReadyError, RayError, RayServeException, OSError) as error:
            # It has died meanwhile.
            self._can_leave = True
            reason = reason_of(error)
            logger.warning("application_not_left", extra={"application": name, "reason": reason})
        finally:
            leaving.cancel()
            dying.cancel()

    def _is_joined(self) -> bool:
        """Return whether this process belongs to a Ray that runs."""
        has_joined = self._joining.done() and not self._joining.cancelled()
        return has_joined and not self._joining.exception() and self._membership.is_alive()

    def _all_kept(self) -> list[asyncio.Task[None]]:
        return [] if self._keeping is None else [self._keeping]

    async def _join(self) -> Ledger:
        async with kept_signal_handlers():
            await self._membership.join()
        self._keeping = asyncio.create_task(self._keep())
        return await self._opened_ledger()

    async def _opened_ledger(self) -> Ledger:
        opening = self._ray_calls.call(_ledger, self._membership.ledger_folder)
        try:
            return await _unless_ended(opening, self._membership.lost())
        except (RayError, RayServeException) as error:
            raise NotReadyError(
                f"ray: Ray Serve could not be started: {reason_of(error)}; see Ray's logs, and "
                "start again"
            ) from error

    async def _watch(self) -> None:
        """Start another Ray, or join it, each time that this machine's has died."""
        await asyncio.wait([self._joining])
        if self._joining.cancelled() or self._joining.exception():
            return
        while True:
            await self._membership.lost()
            logger.warning("ray_lost")
            self._has_died.set()
            for backend in self._backends:
                backend.suspend()
            async with stand_ins(self._backends, self._applications, self._settings):
                await self._restart()

    async def _restart(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not await self._is_restarted():
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _is_restarted(self) -> bool:
        started = time.monotonic()
        self._joining = asyncio.create_task(self._rejoin())
        try:
            ledger = await asyncio.shield(self._joining)
            await _unless_ended(self._resume(ledger), self._membership.lost())
        except Exception as error:
            # Ray raises plain exceptions too.
            logger.warning("ray_not_restarted", extra={"reason": str(error)[:300]})
            return False
        seconds = round(time.monotonic() - started, 1)
        logger.info("ray_restarted", extra={"seconds": seconds})
        try:
            await self._membership.has_served()
        except Exception as error:
            # The policies answer all the same.
            logger.warning("ray_not_whole", extra={"reason": reason_of(error)})
        return True

    async def _rejoin(self) -> Ledger:
        if not self._applications:
            # A server that ends needs no other Ray; one that goes on does with its next version.
            self._is_needed.clear()
            await self._is_needed.wait()
        if not self._membership.is_alive():
            for backend in self._backends:
                # Some may have been resumed on one that has died since.
                backend.suspend()
        async with kept_signal_handlers(), self._ray_calls.held():
            await self._membership.rejoin()
        self._has_died.clear()
        return await self._opened_ledger()

    async def _resume(self, ledger: Ledger) -> None:
        """Have all policy versions run on another Ray, and their backends call it."""
        self._runs.lose_all()
        applications = {
            name: (application, asyncio.create_task(self._compiled(application.version)))
            for name, application in self._applications.items()
        }
        self._resumed |= applications.keys()
        try:
            for name, (application, compiling) in applications.items():
                await self._ray_calls.call(ledger.enter, name)
                await self._runs.run_unless_present(application, ledger, compiling)
            for name, (application, compiling) in applications.items():
                running = await self._runs.bring_up(application, ledger, compiling)
                if running.calls is not None:
                    # The backends have their own.
                    await running.calls.aclose()
                for backend in list(self._backends):
                    if backend.application == name:
                        await backend.resume(running.handle)
        finally:
            for _, compiling in applications.values():
                compiling.cancel()
        await self._leave_undeployed(ledger)

    async def _leave_undeployed(self, ledger: Ledger) -> None:
        """Remove the applications that were undeployed while another Ray took them over.

        They may have been removed from it before they ran there.
        """
        for name in self._resumed:
            # One of them may have been deployed again meanwhile.
            if name not in self._applications:
                await self._leave_ledger(ledger, name, is_retired=True)
        self._resumed.clear()

    async def _deployed(
        self,
        application: Application,
        ledger: Ledger,
        compiling: Compiling,
        count_lost: Callable[[], None],
    ) -> RayBackend:
        started, name = time.monotonic(), application.name
        self._applications[name] = application
        self._uses[name] += 1
        try:
            await self._ray_calls.call(ledger.enter, name)
            running = await self._runs.bring_up(application, ledger, compiling)
        except BaseException:
            await self._abandon(name, is_retired=True)
            raise
        backend = RayBackend(
            running.handle,
            running.signature,
            application=name,
            replicas=application.version.replicas.most,
            calls=running.calls,
            timeout_s=self._settings.request_timeout_s,
            count_lost=count_lost,
        )
        self._backends.add(backend)
        try:
            await backend.connect()
        except BaseException:
            # Broken off, as where Ray ends meanwhile.
            await self._end(backend, is_retired=True)
            raise
        seconds = round(time.monotonic() - started, 1)
        logger.info("policy_deployed", extra={"application": name, "seconds": seconds})
        return backend

    async def _compiled(self, version: VersionDescription) -> CompiledPolicy | None:
        """Return the policy as NumPy computes it; None where TensorFlow has to."""
        await self._membership.turn()
        return await find_compiled(version.model, version.schema, self._settings)

    async def _leave(self, name: str, *, is_retired: bool) -> None:
        self._uses[name] -= 1
        if self._uses[name] > 0:
            return
        self._applications.pop(name, None)
        ledger = await asyncio.shield(self._joining)
        await self._leave_ledger(ledger, name, is_retired=is_retired)

    async def _leave_ledger(self, ledger: Ledger, name: str, *, is_retired: bool) -> None:
        try:
            # Begun before all that may take long: whoever waits may be cut off.
            await self._ray_calls.call(partial(ledger.leave, name, is_retired=is_retired))
        finally:
            await self._runs.forget(name)

    async def _keep(self) -> None:
        """Renew this process's entries in the ledger, and store lost files again."""
        # Why it could not be renewed, as the log was told last.
        told = ""
        while True:
            await asyncio.sleep(RENEWAL_PERIOD_S)
            try:
                # Another one, where Ray has died and was started again.
                ledger = await asyncio.shield(self._joining)
                deployed = {backend.application for backend in self._backends}
                for name in await self._ray_calls.call(ledger.renew, list(self._applications)):
                    # The files of one that is still deployed are on their way.
                    application = self._applications.get(name)
                    if name in deployed and application is not None:
                        await self._store_again(application, ledger)
                told = ""
            except Exception as error:
                # It is tried again; replicas that run need neither.
                if (reason := reason_of(error)) != told:
                    told = reason
                    logger.warning("ledger_not_renewed", extra={"reason": reason})

    async def _store_again(self, application: Application, ledger: Ledger) -> None:
        version = application.version
        compiled = await find_compiled(version.model, version.schema, self._settings)
        await self._ray_calls.call(ledger.store, application.name, application.files(compiled))


async def _unless_ended(
    work: Coroutine[Any, Any, _Result], end: Coroutine[Any, Any, object]
) -> _Result:
    """Return the result of work on a Ray, which is cancelled where that Ray ends first.

    Args:
        work: may wait for Ray for ever, once that has ended.
        end: waits for Ray's end.

    Raises:
        NotReadyError: if Ray ends first.
    """
    working, ending = asyncio.create_task(work), asyncio.create_task(end)
    try:
        await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise NotReadyError(ENDED)
        return await working
    finally:
        working.cancel()
        ending.cancel()
        await asyncio.gather(working, ending, return_exceptions=True)


def _ledger(folder: Path | None) -> Ledger:
    """Start Ray Serve, unless it runs, and return the ledger of its applications.

    Args:
        folder: the folder of this machine's ledger; None for a cluster's.
    """
    ledger: Ledger
    if folder is not None:
        ledger = FolderLedger(folder, remove_application)
    else:
        ledger = ClusterLedger(remove_application, application_names)
    if not ray.is_initialized():
        # Ray Serve would start a Ray of its own, which nobody ends.
        raise NotReadyError("ray: is not connected")
    # Of two that start it at once Ray Serve fails one.
    with ledger.deploying(_SERVE):
        start_serve()
    return ledger
