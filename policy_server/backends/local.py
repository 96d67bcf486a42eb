"""The policy in this process: for edge devices, for tests, and where one process is enough."""

from __future__ import annotations

import asyncio
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

# A shorter call ends before a thread would have begun with it, or nearly; a longer one would delay
# the event loop's other work.
_LONGEST_IN_LOOP_S = 0.5e-3


class LocalBackend:
    """A policy in this process, with one thread for calls too long for the event loop."""

    def __init__(self, policy: Policy, executor: ThreadPoolExecutor) -> None:
        """Own the policy; the thread belongs to the caller, which ends it."""
        self._policy = policy
        self._executor = executor

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
        return await loop.run_in_executor(self._executor, self._policy.infer, inputs)

    def is_immediate(self, rows: int) -> bool:
        """Return whether a call is short; see `ImmediateBackend.is_immediate`."""
        return self._policy.seconds_for(rows) <= _LONGEST_IN_LOOP_S

    def infer_at_once(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations in this thread; see `PolicyBackend.infer`."""
        return self._policy.infer(inputs)

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now: always, once loaded."""
        return True


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
        yield LocalBackend(policy, executor)
    finally:
        # Without a wait: a policy that hangs would hold the event loop up, and all others with it.
        executor.shutdown(wait=False, cancel_futures=True)
