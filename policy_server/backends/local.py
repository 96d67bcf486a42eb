"""The policy in this process: for edge devices, for tests, and where one process is enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from policy_server.backends.call_limit import SHARE_APART, SHARE_OF_DEADLINE, CallLimit
from policy_server.backends.policy_thread import PolicyThread, policy_executor
from policy_server.backends.replica_counts import ReplicaCounts
from policy_server.backends.suspects import Suspects
from policy_server.engine.network import NetworkPolicy
from policy_server.errors import PolicyHangsError
from policy_server.formats import load_policy
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.known_formats import library_of
from policy_server.formats.model_files import Model
from policy_server.metrics import PolicyMetrics
from policy_server.policy import Policy, PolicyInputs, PolicyOutputs, PolicySignature
from policy_server.schema import ServerSchema
from policy_server.settings import Settings

__all__ = ["LocalBackend", "LocalBackends", "local_backend", "open_local_backend"]

# A shorter call ends before a thread would have begun with it, or nearly; a longer one would delay
# the event loop's other work.
_LONGEST_IN_LOOP_S = 0.5e-3
# Calls that have all hung for as long, each past its own limit before, don't come back.
_LOST_AFTER_S = 60.0


class LocalBackend:
    """A policy in this process, with one thread for calls too long for the event loop."""

    def __init__(
        self,
        policy: Policy,
        limit: CallLimit,
        *,
        look_every_s: float = 0.5,
        lost_after_s: float = _LOST_AFTER_S,
    ) -> None:
        """Own the policy and its thread, until `close`.

        Args:
            policy: computes the calls.
            limit: how long a call may take, before its thread is left to it.
            look_every_s: how much later than that the thread is left at most, in seconds.
            lost_after_s: how long no thread may be left until the policy is lost, in seconds.
        """
        self._lost_after_s = lost_after_s
        self._policy = policy
        self._suspects = Suspects()
        suspect = partial(self._suspects.suspect, was_computed=True, hangs=True)
        self._thread = PolicyThread(policy.infer, limit, suspect, look_every_s=look_every_s)
        # For observations at which the policy may hang, so that they hold up no others.
        self._apart = PolicyThread(
            policy.infer, limit, suspect, share=SHARE_APART, look_every_s=look_every_s
        )

    @property
    def signature(self) -> PolicySignature:
        """Return the signature of the policy that is served."""
        return self._policy.signature

    @property
    def capacity(self) -> int:
        """Return how many calls are computed at the same time: one."""
        return 1

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations; see `PolicyBackend.infer`.

        Raises:
            OverloadedError: if the policy takes too long, or has taken too long for the one row.
            PolicyFailedError: if it has taken too long for one of the rows, and each has to be
                asked alone.
        """
        if self.is_immediate(len(inputs)):
            return self.infer_at_once(inputs)
        suspicion = self._suspects.check(inputs)
        try:
            outputs = await (self._apart if suspicion else self._thread).compute(inputs)
        except PolicyHangsError:
            self._suspects.check(inputs)
            raise
        if suspicion:
            self._suspects.clear(inputs)
        return outputs

    def is_immediate(self, rows: int) -> bool:
        """Return whether a call is short; see `ImmediateBackend.is_immediate`."""
        return self._policy.seconds_for(rows) <= _LONGEST_IN_LOOP_S

    def infer_at_once(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations in this thread; see `PolicyBackend.infer`."""
        return self._policy.infer(inputs)

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now: unless a call hangs."""
        return not self._thread.hangs()

    def is_lost(self) -> bool:
        """Return whether no thread is left, and none will be; see `LosableBackend.is_lost`."""
        return not self.is_immediate(1) and self._thread.stuck_s() > self._lost_after_s

    def close(self) -> None:
        """End the thread after its last call, without a wait for it."""
        self._thread.close()
        self._apart.close()


class LocalBackends:
    """Policies in this process, each with a thread of its own; see `Backends`."""

    addresses: Mapping[str, str] = {}
    metrics_url = None
    healthy_replicas = None

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
    if compiled is not None:
        policy: Policy = NetworkPolicy(compiled)
    else:
        policy = await _loaded(model, schema)
    backend = local_backend(policy, settings)
    try:
        yield backend
    finally:
        backend.close()


def local_backend(policy: Policy, settings: Settings) -> LocalBackend:
    """Return a backend over a policy in this process, for its owner to close.

    Args:
        policy: computes the calls.
        settings: the deadline, by which calls hang.
    """
    longest_s = SHARE_OF_DEADLINE * settings.request_timeout_s
    return LocalBackend(policy, CallLimit(longest_s, usual_s=policy.seconds_for(1)))


async def _loaded(model: Model, schema: ServerSchema) -> Policy:
    """Load a policy that its library computes, in a thread."""
    executor = policy_executor()
    try:
        return await asyncio.get_running_loop().run_in_executor(
            executor, partial(load_policy, model.folder, schema, engine=library_of(model.folder))
        )
    finally:
        # Without a wait: a load that hangs would hold the event loop up, and all others with it.
        executor.shutdown(wait=False, cancel_futures=True)
