"""The store's deployment of one policy, as a process knows it, and when it is carried out."""

from __future__ import annotations

import asyncio
import logging
import time

from policy_server.files.file_work import finish_in_thread
from policy_server.serving.deployment import Deployment
from policy_server.serving.deployment_store import DeploymentStore
from policy_server.serving.slot import PolicySlot

__all__ = ["StoredDeployment"]

logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 1.0
# A deployment that can't be carried out, or only in parts, is tried again, later each time.
_LONGEST_DELAY_S = 60.0


class StoredDeployment:
    """Reads and writes the deployment that processes share.

    Attributes:
        known: the store's latest deployment that was carried out here, or planned; None for none.
    """

    def __init__(self, slot: PolicySlot, store: DeploymentStore) -> None:
        """Own nothing: the store belongs to all processes.

        Args:
            slot: the policy's slot.
            store: keeps deployments.
        """
        self.known: Deployment | None = None
        self._slot = slot
        self._store = store
        self._overruled: Deployment | None = None
        self._refused: Deployment | None = None
        self._delay_s = 0.0
        self._retry_at = 0.0

    def begin(self) -> Deployment | None:
        """Return the deployment to begin with; None for that of schema.yaml."""
        self.known = self._store.read(self._slot.name)
        return self.known

    @property
    def in_force(self) -> Deployment | None:
        """Return the deployment that is known; None for none, or one that is overruled."""
        return None if self.known == self._overruled else self.known

    def overrule(self, deployment: Deployment) -> None:
        """Have the policy's own files win over the store's deployment, until that is changed.

        Args:
            deployment: the store's.
        """
        self._overruled = deployment
        logger.warning(
            "deployment_not_used",
            extra={
                "policy": self._slot.name,
                "reason": "none of its versions can be loaded; the policy's own files are served",
            },
        )

    async def read(self) -> Deployment | None:
        """Return the store's deployment; None for none."""
        reading = asyncio.create_task(asyncio.to_thread(self._store.read, self._slot.name))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            # The store may not be there any more when the server has ended.
            await asyncio.wait([reading])
            raise

    async def write(self, deployment: Deployment) -> None:
        """Keep a deployment; see `DeploymentStore.write`.

        Whoever is cancelled meanwhile returns from here all the same where it is kept, and ends at
        the next thing that it waits for: what is kept has to be carried out.

        Args:
            deployment: the one that follows the one that is there.
        """
        await finish_in_thread(self._store.write, self._slot.name, deployment)

    async def latest(self) -> Deployment | None:
        """Return the deployment that a change is made of; None where none was made before.

        It may have versions that this process could not load.
        """
        kept = await self.read()
        # A store that was lost may have one again that is older than the one that is known here.
        if kept is None or (self.known is not None and kept.serial < self.known.serial):
            kept = self.known
        return None if kept == self._overruled else kept

    async def due(self) -> Deployment | None:
        """Return the deployment that is to be carried out now; None for none.

        It is another process's, or one of which some versions could not be loaded yet.
        """
        kept = await self.read()
        if kept is None or not (self.is_newer(kept) or self._is_in_parts(kept)):
            return None
        is_refused = kept == self._refused and time.monotonic() < self._retry_at
        return None if is_refused else kept

    def is_newer(self, kept: Deployment) -> bool:
        """Return whether the store's deployment is another one than that which was carried out.

        A store that was lost may have been given another one with the same serial.

        Args:
            kept: what the store has.
        """
        known = self.known
        return known is None or (kept.serial >= known.serial and kept != known)

    def postpone(self, deployment: Deployment) -> None:
        """Try a deployment again that could not be carried out, or only in parts.

        Args:
            deployment: the deployment.
        """
        is_again = deployment == self._refused
        self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S) if is_again else _FIRST_DELAY_S
        self._refused, self._retry_at = deployment, time.monotonic() + self._delay_s

    def _is_in_parts(self, kept: Deployment) -> bool:
        return kept == self.in_force and not kept.names <= self._slot.versions.keys()
