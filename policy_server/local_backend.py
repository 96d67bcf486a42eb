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

from policy_server.compiled_cache import digest_of, read_compiled, write_compiled
from policy_server.model_store import read_model_files
from policy_server.numpy_network import NetworkPolicy
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
    from policy_server.saved_model import LoadedPolicy

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
    folder: Path, schema: ServerSchema, settings: Settings
) -> AsyncIterator[LocalBackend]:
    """Load the policy in this process.

    Args:
        folder: holds saved_model.pb.
        schema: what schema.yaml says.
        settings: which engine computes the policy.

    Yields:
        The backend.

    Raises:
        ModelError: if the file can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy") as executor:
        policy = await asyncio.get_running_loop().run_in_executor(
            executor, _load, folder, schema, settings
        )
        yield LocalBackend(policy, executor)


def _load(folder: Path, schema: ServerSchema, settings: Settings) -> LoadedPolicy:
    digest = digest_of(read_model_files(folder), schema)
    compiled = None if settings.engine == "tensorflow" else read_compiled(folder, digest)
    if compiled is not None:
        return NetworkPolicy(compiled)
    # TensorFlow takes seconds to import: only where it is needed.
    from policy_server.saved_model import load_policy

    policy = load_policy(folder, schema, engine=settings.engine)
    if policy.compiled is not None:
        write_compiled(folder, digest, policy.compiled)
    return policy
