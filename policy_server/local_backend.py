"""The policy in this process: for edge devices, for tests, and where one process is enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policy_server.policy import (
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyOutputs,
    PolicySignature,
)
from policy_server.saved_model import TensorFlowPolicy, load_policy
from policy_server.schema import ServerSchema

__all__ = ["LocalBackend", "open_local_backend"]


class LocalBackend:
    """A `PolicyBackend` over one policy and one thread, so that the event loop stays free."""

    def __init__(self, policy: TensorFlowPolicy, executor: ThreadPoolExecutor) -> None:
        """Keep the policy and the thread that owns it."""
        self._policy = policy
        self._executor = executor

    @property
    def signature(self) -> PolicySignature:
        """Return the signature of the policy that is served."""
        return self._policy.signature

    async def infer(
        self,
        observations: Float32Array | Float64Array,
        *,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
    ) -> PolicyOutputs:
        """Answer B observations; see `PolicyBackend.infer`."""
        call = partial(
            self._policy.infer, observations, is_deterministic=is_deterministic, seeds=seeds
        )
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now: always, once loaded."""
        return True


@asynccontextmanager
async def open_local_backend(folder: Path, schema: ServerSchema) -> AsyncIterator[LocalBackend]:
    """Load the policy in this process.

    Args:
        folder: holds saved_model.pb.
        schema: what schema.yaml says.

    Yields:
        The backend.

    Raises:
        ModelError: if the file can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy") as executor:
        policy = await asyncio.get_running_loop().run_in_executor(
            executor, load_policy, folder, schema
        )
        yield LocalBackend(policy, executor)
