"""A policy's slot: the version that is live, and how another one replaces it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from policy_server.errors import NotReadyError, PolicyServerError
from policy_server.metrics import Metrics
from policy_server.observations import ObservationSpace
from policy_server.policy import PolicySignature
from policy_server.schema import ServerSchema
from policy_server.serving.version import OpenedPolicy, PolicyVersion
from policy_server.settings import Settings

__all__ = ["PolicyOpener", "PolicySlot"]

logger = logging.getLogger(__name__)

PolicyOpener = Callable[[], AbstractAsyncContextManager[OpenedPolicy]]

# Asking a replica whether it is ready costs a call: the answer holds for this long.
_READY_FOR_S = 1.0


class PolicySlot:
    """A policy's name in the server, with the version that is live under it.

    Attributes:
        name: the policy's name.
        schema: its schema.yaml; the types of its routes come from it.
        metrics: counts its questions and answers.
        failure: the reason why the policy could not be loaded; None where it was, or is not yet.
    """

    def __init__(
        self,
        name: str,
        schema: ServerSchema,
        open_policy: PolicyOpener,
        *,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        """Own the policy's versions, from `start` to `aclose`; nothing is loaded yet.

        Args:
            name: the policy's name.
            schema: its schema.yaml.
            open_policy: loads the first version, and unloads it again.
            settings: limits, and the prediction log.
            metrics: counts its questions and answers.
        """
        self.name = name
        self.schema = schema
        self._open_policy = open_policy
        self._settings = settings
        self.metrics = metrics.of(name)
        self.failure: str | None = None
        self._live: PolicyVersion | None = None
        self._resources: dict[PolicyVersion, AsyncExitStack] = {}
        self._space = ObservationSpace(schema.observations)
        self._is_ready: asyncio.Task[bool] | None = None
        self._ready_until = 0.0

    @property
    def live(self) -> PolicyVersion | None:
        """Return the live version; None before one is loaded."""
        return self._live

    @property
    def signature(self) -> PolicySignature | None:
        """Return the live version's signature; None before one is loaded."""
        return None if self._live is None else self._live.signature

    @property
    def space(self) -> ObservationSpace:
        """Return the observations that are taken: by schema alone before a version is loaded."""
        return self._space if self._live is None else self._live.space

    @property
    def width(self) -> int | None:
        """Return how many numbers an observation has; None where that is open or not known yet."""
        return self.schema.width if self.signature is None else self.signature.observation_width

    def current(self) -> PolicyVersion:
        """Return the live version.

        Raises:
            NotReadyError: if none is loaded yet.
        """
        if self._live is None:
            if self.failure is not None:
                raise NotReadyError(f"the policy {self.name} can't be served: {self.failure}")
            raise NotReadyError("the policy is not loaded yet; try again in a few seconds")
        return self._live

    async def start(self) -> None:
        """Load the first version, and make it live.

        Raises:
            PolicyServerError: if it can't be loaded or does not answer.
        """
        try:
            await self.swap(self._open_policy)
        except PolicyServerError as error:
            self.failure = error.message
            raise

    async def swap(self, open_policy: PolicyOpener) -> None:
        """Bring another version up, make it live at once, and drain the one before.

        Until the new version has answered its warm-up, the old one answers all questions; if the
        new one can't be loaded, nothing changes. The old one answers the questions that it has.

        Args:
            open_policy: loads the new version, and unloads it again.

        Raises:
            PolicyServerError: if the new version can't be loaded or does not answer.
        """
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            opened = await stack.enter_async_context(open_policy())
            version = await PolicyVersion.prepare(
                self.name, opened, self.schema, self._settings, self.metrics
            )
            self._resources[version] = stack.pop_all()
        self.metrics.describe_model(
            version=version.digest,
            family=version.signature.family,
            load_seconds=time.monotonic() - started,
        )
        before, self._live, self.failure = self._live, version, None
        # The old version's readiness says nothing of this one.
        self._is_ready = None
        if before is not None:
            await self._end(before)

    async def aclose(self) -> None:
        """Answer the questions that wait, and unload the policy."""
        self._is_ready = None
        if self._live is not None:
            await self._end(self._live)
            self._live = None

    async def is_ready(self) -> bool:
        """Return whether a question would be answered now; asked at most once a second."""
        if self._live is None:
            return False
        if self._is_ready is None or (
            self._is_ready.done() and time.monotonic() >= self._ready_until
        ):
            self._is_ready = asyncio.create_task(self._ask_ready(self._live))
        return await asyncio.shield(self._is_ready)

    async def _ask_ready(self, version: PolicyVersion) -> bool:
        is_ready = await version.scheduler.is_ready()
        self._ready_until = time.monotonic() + _READY_FOR_S
        return is_ready

    async def _end(self, version: PolicyVersion) -> None:
        async with self._resources.pop(version):
            await version.aclose()
