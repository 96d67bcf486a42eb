"""Applications that are brought up on Ray Serve, until their policy answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from policy_server.backends.ray.applications import Application, new_handle
from policy_server.backends.ray.connection import reason_of
from policy_server.backends.ray.direct_calls import DirectCalls
from policy_server.backends.ray.ledger import Ledger
from policy_server.backends.ray.membership import Membership
from policy_server.backends.ray.ray_calls import RayCalls
from policy_server.backends.ray.replica_list import ReplicaList
from policy_server.backends.ray.serve_handle import Handle
from policy_server.backends.ray.signatures import ApplicationGoneError, find_signature
from policy_server.engine.network import CompiledPolicy
from policy_server.errors import NotReadyError
from policy_server.policy import PolicySignature
from policy_server.settings import Settings

__all__ = ["ApplicationRuns", "Compiling", "RunningApplication"]

_DEPLOY_TRIES = 3

Compiling = asyncio.Task[CompiledPolicy | None]


@dataclass(frozen=True)
class RunningApplication:
    """An application whose policy answers.

    Attributes:
        handle: Ray Serve's, which all calls of this process share.
        signature: the policy's.
        calls: by connections to its replicas, which whoever has them ends; None where Ray Serve
            makes the calls.
    """

    handle: Handle
    signature: PolicySignature
    calls: DirectCalls | None


class ApplicationRuns:
    """The applications that this process has brought up, and its handles of them."""

    def __init__(self, settings: Settings, membership: Membership, ray_calls: RayCalls) -> None:
        """Own the handles, each until `forget`.

        Args:
            settings: deadlines, and how calls are made.
            membership: of this process in a Ray.
            ray_calls: makes the calls of Ray.
        """
        self._settings = settings
        self._membership = membership
        self._ray_calls = ray_calls
        self._handles: dict[str, Handle] = {}
        self._building = asyncio.Lock()

    async def bring_up(
        self, application: Application, ledger: Ledger, compiling: Compiling
    ) -> RunningApplication:
        """Have the application run, unless it does or is coming up, and wait until it answers.

        Args:
            application: the policy version.
            ledger: the applications of the Ray.
            compiling: the policy as NumPy computes it; None where TensorFlow has to.

        Raises:
            PolicyServerError: as a replica that can't load the policy says.
            NotReadyError: if no replica is ready in time.
        """
        for _ in range(_DEPLOY_TRIES):
            await self.run_unless_present(application, ledger, compiling)
            handle = self._handle(application.name)
            calls = self._calls(application)
            try:
                signature = await find_signature(
                    application, handle, calls, call_ray=self._ray_calls.call
                )
                return RunningApplication(handle, signature, calls)
            except BaseException as error:
                if calls is not None:
                    await calls.aclose()
                # One that was on its way out may have gone since it was seen.
                if not isinstance(error, ApplicationGoneError):
                    raise
        raise NotReadyError(
            f"ray: {application.name} was removed each of {_DEPLOY_TRIES} times that it was "
            "deployed; see whether another program deletes it, and start again"
        )

    async def run_unless_present(
        self, application: Application, ledger: Ledger, compiling: Compiling
    ) -> None:
        """Have the application run, unless it does or is coming up; see `bring_up`."""
        if not await self._in_time(application, application.is_present):
            compiled = await compiling
            # Ray Serve can't build two deployments at once in one process.
            async with self._building:
                folder = self._membership.ledger_folder
                await self._in_time(application, _run, application, ledger, compiled, folder)

    async def _in_time(
        self,
        application: Application,
        function: Callable[..., Any],
        *arguments: Any,  # noqa: ANN401 -- the function's
    ) -> Any:  # noqa: ANN401 -- what the function returns
        """Call a function that waits for Ray Serve's controller, which may stand still or die.

        Raises:
            NotReadyError: if it takes longer than a start may.
        """
        try:
            async with asyncio.timeout(self._settings.start_timeout_s) as bound:
                return await self._ray_calls.call(function, *arguments)
        except TimeoutError as error:
            if not bound.expired():
                # Of something else that it waits for.
                raise
            raise NotReadyError(
                f"ray: {application.name}: Ray Serve's controller did not answer within "
                f"{self._settings.start_timeout_s:g} s; see Ray's logs, or raise "
                "POLICY_SERVER_START_TIMEOUT_S"
            ) from error

    async def forget(self, name: str) -> None:
        """Drop the handle of an application that this process uses no more.

        Args:
            name: the application's name.
        """
        if handle := self._handles.pop(name, None):
            await handle.aclose()

    def lose_all(self) -> None:
        """Drop all handles, since their Ray has died."""
        self._handles.clear()

    def _handle(self, name: str) -> Handle:
        """Return the application's handle, which all of this process's calls share."""
        if name not in self._handles:
            self._handles[name] = Handle(new_handle(name))
        return self._handles[name]

    def _calls(self, application: Application) -> DirectCalls | None:
        """Return calls by connections to the replicas; None where Ray Serve calls them.

        Ray Serve counts the calls that go its way, and scales replicas by that.
        """
        counts = application.version.replicas
        if not self._settings.direct_calls or counts.is_scaled:
            return None
        return DirectCalls(
            ReplicaList(
                application.name,
                socket_folder=self._membership.ledger_folder,
                call_ray=self._ray_calls.call,
            ),
            replicas=counts.most,
            timeout_s=self._settings.request_timeout_s,
        )


def _run(
    application: Application,
    ledger: Ledger,
    compiled: CompiledPolicy | None,
    folder: Path | None,
) -> None:
    """Deploy an application, unless another process has done so meanwhile."""
    with ledger.deploying(application.name):
        if not application.is_present():
            try:
                files = ledger.store(application.name, application.files(compiled))
            except (OSError, RayError) as error:
                raise NotReadyError(
                    f"ray: {application.name}: its files could not be stored for the replicas: "
                    f"{reason_of(error)}; free disk space on Ray's machines, or start them with a "
                    "larger --object-store-memory"
                ) from error
            application.run(files, socket_folder=folder)
