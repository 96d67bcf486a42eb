"""The backends of a server's policies: opened once, for any number of policy versions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from policy_server.backends.replica_counts import ReplicaCounts
from policy_server.backends.shared_records import SharedRecords
from policy_server.formats.model_files import Model
from policy_server.metrics import PolicyMetrics
from policy_server.policy import PolicyBackend
from policy_server.schema import ServerSchema
from policy_server.settings import Settings

__all__ = ["Backends", "open_backends"]


class Backends(Protocol):
    """Opens a backend for each policy version."""

    @property
    def addresses(self) -> Mapping[str, str]:
        """Return the addresses of pages that belong to the backends, such as Ray's dashboard."""

    @property
    def metrics_url(self) -> str | None:
        """Return the address of Ray's own metrics; None where it has none, or without Ray."""

    @property
    def healthy_replicas(self) -> int | None:
        """Return how many replicas answer; None where they are not this server's own."""

    async def shared_records(self) -> SharedRecords | None:
        """Return the state that the servers of a cluster share; None where there is no cluster.

        Raises:
            PolicyServerError: if the cluster can't be joined.
        """

    def open(
        self, model: Model, schema: ServerSchema, metrics: PolicyMetrics, replicas: ReplicaCounts
    ) -> AbstractAsyncContextManager[PolicyBackend]:
        """Load a policy version, and unload it when the block ends.

        Args:
            model: the policy's files.
            schema: the contents of schema.yaml.
            metrics: counts its calls, under its name.
            replicas: how many compute it, where the backend has any.

        Raises:
            PolicyServerError: if it can't be loaded, or not in time.
        """


@asynccontextmanager
async def open_backends(settings: Settings) -> AsyncIterator[Backends]:
    """Open the backends that the settings name; they end with the block.

    Args:
        settings: `backend`; the number of replicas, ports and deadlines.

    Yields:
        The backends, for any number of policy versions.
    """
    # Imported here, since neither backend may need the other's library: Ray, TensorFlow.
    if settings.backend == "local":
        from policy_server.backends.local import LocalBackends

        yield LocalBackends(settings)
    else:
        from policy_server.backends.ray.cluster import open_ray_cluster

        async with open_ray_cluster(settings) as cluster:
            yield cluster
