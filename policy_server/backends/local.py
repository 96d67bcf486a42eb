"""The policy in this process: for edge devices, for tests, and where one process is enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.network import NetworkPolicy
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.model_files import Model
from policy_server.policy import (
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyOutputs,
    PolicySignature,
)
from policy_server.schema import ServerSchema
from policy_server.settings import Settings

if TYPE_CHECKING:
    from policy_server.formats.saved_model import LoadedPolicy

__all__ = ["LocalBackend", "open_local_backend"]

_MOST_ROWS_AT_ONCE = 512


class LocalBackend:
    """A `PolicyBackend` over one policy, and one thread for what would hold the event loop up."""

    def __init__(self, policy: LoadedPolicy, executor: ThreadPoolExecutor) -> None:
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
        if isinstance(self._policy, NetworkPolicy) and len(observations) <= _MOST_ROWS_AT_ONCE:
            # Some ten microseconds, less than handing it to a thread takes.
            return self._policy.infer(observations, is_deterministic=is_deterministic, seeds=seeds)
        call = partial(
            self._policy.infer, observations, is_deterministic=is_deterministic, seeds=seeds
        )
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now: always, once loaded."""
        return True


@asynccontextmanager
async def open_local_backend(
    model: Model, schema: ServerSchema, settings: Settings
) -> AsyncIterator[LocalBackend]:
    """Load the policy in this process.

    Args:
        model: the policy's file.
        schema: what schema.yaml says.
        settings: which engine computes the policy.

    Yields:
        The backend.

    Raises:
        ModelError: if the file can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
        NotReadyError: if compiling the policy fails for another reason.
    """
    compiled = await find_compiled(model, schema, settings)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy") as executor:
        if compiled is not None:
            policy: LoadedPolicy = NetworkPolicy(compiled)
        else:
            policy = await asyncio.get_running_loop().run_in_executor(
                executor, _load_with_tensorflow, model.folder, schema
            )
        yield LocalBackend(policy, executor)


def _load_with_tensorflow(folder: Path, schema: ServerSchema) -> LoadedPolicy:
    # Only where it is needed: it takes seconds and hundreds of megabytes.
    from policy_server.formats.saved_model import load_policy

    return load_policy(folder, schema, engine="tensorflow")
