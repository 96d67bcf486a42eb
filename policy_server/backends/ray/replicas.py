"""Ray Serve replicas of the policy, and the backend that calls them.

Ray's HTTP proxies stay off: uvicorn is the only HTTP server, and one call of a deployment handle
carries a whole batch.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from policy_server.backends.ray.direct_calls import (
    CallServer,
    ConnectionLostError,
    DirectCalls,
    ReplicaAddress,
    answer_or_error,
)
from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.errors import (
    NotReadyError,
    OverloadedError,
    PolicyFailedError,
    PolicyServerError,
)
from policy_server.formats import load_policy
from policy_server.metrics import PolicyMetrics
from policy_server.policy import (
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
)
from policy_server.schema import ServerSchema

__all__ = ["PolicyReplica", "RayBackend", "cause_of"]

logger = logging.getLogger(__name__)

_READY_TIMEOUT_S = 2.0
_MOST_TRIES = 3


class PolicyReplica:
    """The policy in a process of its own.

    A replica that can't load its policy says so, instead of being restarted for ever.
    """

    def __init__(
        self, schema: ServerSchema, compiled: CompiledPolicy | None, files: Mapping[str, bytes]
    ) -> None:
        """Load the policy.

        Args:
            schema: what schema.yaml says.
            compiled: the policy as NumPy computes it; None leaves it to TensorFlow.
            files: the SavedModel's files by relative path, for TensorFlow: a replica may run on a
                machine without them.
        """
        self._policy: Any = None if compiled is None else NetworkPolicy(compiled)
        self._failure: PolicyServerError | None = None
        if compiled is None:
            self._load(files, schema)
        self._calls: CallServer | None = None

    def _load(self, files: Mapping[str, bytes], schema: ServerSchema) -> None:
        with tempfile.TemporaryDirectory(prefix="policy-") as folder:
            for name, content in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            try:
                self._policy = load_policy(Path(folder), schema, engine="tensorflow")
            except PolicyServerError as error:
                self._failure = error
            except Exception as error:
                logger.exception("policy_not_loaded")
                self._failure = PolicyFailedError(
                    f"the policy can't be loaded: {type(error).__name__}: {error}"
                )

    async def describe(self) -> PolicySignature:
        """Return the policy's signature.

        Raises:
            PolicyServerError: why the policy could not be loaded.
        """
        signature: PolicySignature = self._loaded().signature
        return signature

    async def address(self) -> ReplicaAddress:
        """Return where this replica takes calls that come straight to it."""
        if self._calls is None:
            self._calls = CallServer(self.infer, ray.util.get_node_ip_address())
        return await self._calls.address()

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations; see `PolicyBackend.infer`."""
        outputs: PolicyOutputs = self._loaded().infer(inputs)
        return outputs

    async def answer(self, inputs: PolicyInputs) -> PolicyOutputs | PolicyServerError:
        """Answer as `infer` does, and return errors: Ray Serve logs those that are raised."""
        return await answer_or_error(self.infer, inputs)

    def _loaded(self) -> Any:  # noqa: ANN401 -- naming the type would import TensorFlow here
        if self._policy is None:
            raise self._failure or NotReadyError("the policy is not loaded")
        return self._policy


class RayBackend:
    """A `PolicyBackend` over the replicas of one Ray Serve deployment."""

    def __init__(
        self,
        handle: Any,  # noqa: ANN401 -- Ray's handle is generic
        signature: PolicySignature,
        places: Mapping[str, str],
        metrics: PolicyMetrics,
        *,
        direct: DirectCalls | None,
        timeout_s: float,
    ) -> None:
        """Keep the handle.

        Args:
            handle: Ray Serve's handle of the deployment.
            signature: what the replicas serve.
            places: where people find what Ray serves, by name.
            metrics: where lost replicas are counted.
            direct: calls that go straight to a replica; None sends all of them by Ray Serve.
            timeout_s: the longest that a call may take, in seconds.
        """
        self.places = places
        self._direct = direct
        self._metrics = metrics
        self._answer = handle.options(method_name="answer", _by_reference=False)
        self._describe = handle.options(method_name="describe", _by_reference=False)
        self._signature = signature
        self._timeout_s = timeout_s

    @property
    def signature(self) -> PolicySignature:
        """Return the signature of the policy that is served."""
        return self._signature

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations with one call of one replica; see `PolicyBackend.infer`.

        A replica that dies meanwhile is no error: a prediction has no side effect, so another one
        is asked.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                for _ in range(_MOST_TRIES - 1):
                    try:
                        return await self._call(inputs)
                    except (RayError, ConnectionLostError) as error:
                        logger.warning("replica_lost", extra={"reason": type(error).__name__})
                        self._metrics.count_replica_lost()
                return await self._call_by_serve(inputs)
        except TimeoutError as error:
            raise OverloadedError(
                f"no replica answered within {self._timeout_s:g} s; try again in a second"
            ) from error
        except (RayError, RayServeException) as error:
            raise NotReadyError(
                "no replica of the policy is alive; try again in a few seconds"
            ) from error

    @property
    def capacity(self) -> int:
        """Return how many calls are computed at the same time: one a replica."""
        return 1

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self._describe.remote()
        except (TimeoutError, RayError, RayServeException, PolicyServerError):
            return False
        return True

    async def _call(self, inputs: PolicyInputs) -> PolicyOutputs:
        if self._direct is not None and self._direct.is_connected:
            return await self._direct.infer(inputs)
        return await self._call_by_serve(inputs)

    async def _call_by_serve(self, inputs: PolicyInputs) -> PolicyOutputs:
        try:
            answer: PolicyOutputs | PolicyServerError = await self._answer.remote(inputs)
        except RayTaskError as error:
            raise cause_of(error) from error
        if isinstance(answer, PolicyServerError):
            raise answer
        return answer


def cause_of(error: RayTaskError) -> PolicyServerError:
    """Return the error that a replica raised."""
    if isinstance(error.cause, PolicyServerError):
        return error.cause
    return PolicyFailedError(
        "the policy failed on this observation; the server's log has the reason"
    )
