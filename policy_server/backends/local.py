"""The policy in this process: for edge devices, for tests, and where one process is enough."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from policy_server.backends.replica_counts import ReplicaCounts
from policy_server.engine.network import NetworkPolicy
from policy_server.formats import load_policy
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.known_formats import library_of
from policy_server.formats.model_files import Model
from policy_server.metrics import PolicyMetrics
from policy_server.policy import Policy, PolicyInputs, PolicyOutputs, PolicySignature
from policy_server.schema import ServerSchema
from policy_server.settings import Settings

__all__ = ["LocalBackend", "LocalBackends", "open_local_backend"]

logger = logging.getLogger(__name__)

# A shorter call ends before a thread would have begun with it, or nearly; a longer one would delay
# the event loop's other work.
_LONGEST_IN_LOOP_S = 0.5e-3


class LocalBackend:
    """A policy in this process, with one thread for calls too long for the event loop."""

    def __init__(
        self, policy: Policy, executor: ThreadPoolExecutor, *, longest_call_s: float
    ) -> None:
        """Own the policy; the thread belongs to the caller, which ends it.

        Args:
            policy: computes the calls.
            executor: its thread.
            longest_call_s: a call that takes longer hangs, in seconds.
        """
        self._policy = policy
        self._executor = executor
        self._longest_call_s = longest_call_s
        # When the call began that the thread computes.
        self._began: float | None = None
        self._is_told = False

    @property
    def signature(self) -> PolicySignature:
        """Return the signature of the policy that is served."""
        return self._policy.signature

    @property
    def capacity(self) -> int:
        """Return how many calls are computed at the same time: one."""
        return 1

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations; see `PolicyBackend.infer`."""
        if self.is_immediate(len(inputs)):
            return self.infer_at_once(inputs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._compute, inputs)

    def is_immediate(self, rows: int) -> bool:
        """Return whether a call is short; see `ImmediateBackend.is_immediate`."""
        return self._policy.seconds_for(rows) <= _LONGEST_IN_LOOP_S

    def infer_at_once(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations in this thread; see `PolicyBackend.infer`."""
        return self._policy.infer(inputs)

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now: unless a call hangs.

        A thread can't be ended from outside: whoever watches the server has to start it anew.
        """
        began = self._began
        seconds = 0.0 if began is None else time.monotonic() - began
        hangs = seconds > self._longest_call_s
        if hangs and not self._is_told:
            logger.error("policy_hangs", extra={"seconds": round(seconds, 1)})
        self._is_told = hangs
        return not hangs

    def _compute(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations in the policy's own thread."""
        self._began = time.monotonic()
        try:
            return self._policy.infer(inputs)
        finally:
            self._began = None


class LocalBackends:
    """Policies in this process, each with a thread of its own; see `Backends`."""

    addresses: Mapping[str, str] = {}
    metrics_url = None

    def __init__(self, settings: Settings) -> None:
        """Own nothing but the settings: each policy belongs to the block that opens it.

        Args:
            settings: the engine.
        """
        self._settings = settings

    async def shared_records(self) -> None:
        """Return None: the server's folder has it all."""

    def open(
        self,
        model: Model,
        schema: ServerSchema,
        metrics: PolicyMetrics,  # noqa: ARG002 -- no replica can be lost
        replicas: ReplicaCounts,  # noqa: ARG002 -- this process is the only one
    ) -> AbstractAsyncContextManager[LocalBackend]:
        """Load a policy version, and unload it when the block ends; see `Backends.open`."""
        return open_local_backend(model, schema, self._settings)


@asynccontextmanager
async def open_local_backend(
    model: Model, schema: ServerSchema, settings: Settings
) -> AsyncIterator[LocalBackend]:
    """Load the policy in this process.

    Args:
        model: the policy's file.
        schema: the contents of schema.yaml.
        settings: the engine.

    Yields:
        The backend.

    Raises:
        ModelError: if the file can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
        NotReadyError: if compiling the policy fails for another reason.
    """
    compiled = await find_compiled(model, schema, settings)
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
    try:
        if compiled is not None:
            policy: Policy = NetworkPolicy(compiled)
        else:
            policy = await asyncio.get_running_loop().run_in_executor(
                executor,
                partial(load_policy, model.folder, schema, engine=library_of(model.folder)),
            )
        yield LocalBackend(policy, executor, longest_call_s=settings.request_timeout_s)
    finally:
        # Without a wait: a policy that hangs would hold the event loop up, and all others with it.
        executor.shutdown(wait=False, cancel_futures=True)
