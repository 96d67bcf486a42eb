"""The policy in a Ray Serve replica: a process that answers calls."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import ray

from policy_server.backends.call_limit import CallLimit
from policy_server.backends.ray.call_server import CallServer, failure_of
from policy_server.backends.ray.ledger import PolicyFiles
from policy_server.backends.ray.replica_limits import CallWatch, ReplicaLimits, bound_memory
from policy_server.backends.ray.replica_list import announce
from policy_server.engine.cache import decode
from policy_server.engine.network import NetworkPolicy
from policy_server.errors import ModelError, NotReadyError, PolicyServerError
from policy_server.policy import Policy, PolicyInputs, PolicyOutputs, PolicySignature
from policy_server.schema import ServerSchema

__all__ = ["PolicyReplica"]

logger = logging.getLogger(__name__)


class PolicyReplica:
    """The policy in a process of its own.

    A replica that can't load its policy says so, instead of being restarted for ever.
    """

    COMPILED_FILE: ClassVar[str] = "compiled-policy.npz"

    def __init__(
        self,
        files: PolicyFiles,
        schema: ServerSchema,
        digest: str,
        *,
        application: str = "",
        socket_folder: Path | None = None,
        limits: ReplicaLimits | None = None,
    ) -> None:
        """Own the policy for as long as the replica lives.

        Args:
            files: the compiled policy's file, or the model's files for TensorFlow.
            schema: the part of the schema that the policy depends on.
            digest: the digest of all that the compiled policy is made from.
            application: the name of the application that it belongs to; empty for one that takes
                calls by Ray Serve only.
            socket_folder: the folder for the socket that takes direct calls, where all of Ray is on
                this machine; None for a port of its machine's address.
            limits: of its calls; None for none.

        Raises:
            NotReadyError: if no machine has the files at the moment: Ray Serve tries again.
        """
        self._policy: Policy | None = None
        self._failure: PolicyServerError | None = None
        self._calls: CallServer | None = None
        # Why it takes no calls, as the log was told last.
        self._not_taken = ""
        self._application = application
        self._socket_folder = socket_folder
        self._watch: CallWatch | None = None
        self._watching: asyncio.Task[None] | None = None
        with files.opened() as folder:
            try:
                self._policy = _load(folder, schema, digest)
            except PolicyServerError as error:
                self._failure = error
            except Exception as error:
                self._failure = ModelError(
                    f"the policy can't be loaded: {type(error).__name__}: {error}"
                )
                self._failure.__cause__ = error
        if limits is not None:
            usual_s = 0.0 if self._policy is None else self._policy.seconds_for(1)
            self._watch = CallWatch(CallLimit(limits.longest_call_s, usual_s=usual_s))
            bound_memory(limits.call_memory_bytes)

    async def check_health(self) -> None:
        """Take direct calls from now on; Ray Serve asks once a second, and before it calls."""
        if self._watching is None and self._watch is not None:
            # In the event loop that computes the calls.
            self._watching = asyncio.create_task(self._watch.run())
        if self._calls is None and self._application:
            context = ray.get_runtime_context()
            self._calls = CallServer(
                self.infer,
                infer_apart=partial(self.infer, is_apart=True),
                application=self._application,
                replica=str(context.get_actor_id()),
                actor=str(context.get_actor_name()),
            )
            await self._take_calls(self._calls)

    async def describe(self) -> PolicySignature | PolicyServerError:
        """Return the policy's signature, or the error by which loading it failed."""
        try:
            return self._loaded().signature
        except PolicyServerError as error:
            return failure_of(error)

    async def answer(self, inputs: PolicyInputs) -> PolicyOutputs | PolicyServerError:
        """Answer as `infer` does, and return errors: Ray Serve logs those that are raised."""
        try:
            return self.infer(inputs)
        except Exception as error:
            return failure_of(error)

    def infer(self, inputs: PolicyInputs, *, is_apart: bool = False) -> PolicyOutputs:
        """Answer B observations; see `Policy.infer` and `CallWatch.begin`."""
        if self._watch is None:
            return self._loaded().infer(inputs)
        self._watch.begin(len(inputs), is_apart=is_apart)
        started = time.perf_counter()
        try:
            outputs = self._loaded().infer(inputs)
            self._watch.observe(len(inputs), time.perf_counter() - started)
        finally:
            if is_apart:
                self._watch.end_apart()
        return outputs

    async def _take_calls(self, calls: CallServer) -> None:
        try:
            folder = self._socket_folder
            host = "" if folder is not None else ray.util.get_node_ip_address()
            address = await calls.listen(host, folder=folder)
            described = replace(address, description=await self.describe())
            await asyncio.to_thread(announce, described)
        except Exception as error:
            # Calls go by Ray Serve until it is tried again, at the next question for its health.
            if (reason := repr(error)[:300]) != self._not_taken:
                self._not_taken = reason
                logger.warning("direct_calls_not_taken", extra={"reason": reason})
            await calls.aclose()
            self._calls = None

    def _loaded(self) -> Policy:
        if self._policy is None:
            raise self._failure or NotReadyError("the policy is not loaded")
        return self._policy


def _load(folder: Path, schema: ServerSchema, digest: str) -> Policy:
    compiled = folder / PolicyReplica.COMPILED_FILE
    if not compiled.exists():
        # What reads a model's files is more than all else of a replica.
        from policy_server.formats.known_formats import library_of, load_policy

        return load_policy(folder, schema, engine=library_of(folder))
    outcome = decode(compiled.read_bytes(), digest)
    if outcome is None or outcome.compiled is None:
        raise ModelError(f"{compiled.name}: belongs to another policy; deploy it anew")
    return NetworkPolicy(outcome.compiled)
