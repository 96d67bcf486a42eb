"""BentoML: `bentoml serve benchmarks.peers.bentoml_service:PolicyService` or `:BatchingService`."""

from __future__ import annotations

import bentoml
import numpy as np

from benchmarks.peers.network import load_network
from benchmarks.peers.observation import Answer, Observation

_MAX_BATCH_SIZE = 256
_MAX_LATENCY_MS = 1000


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class PolicyService:
    """The policy in BentoML's one worker, one observation a call."""

    def __init__(self) -> None:
        """Load the policy."""
        self.network = load_network()

    @bentoml.api
    async def predict(self, observation: Observation) -> Answer:
        """Draw an action."""
        actions, chances = self.network.draw(np.array([observation.row()], np.float32))
        return Answer(actions=[int(actions[0])], probability=float(chances[0]))


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class BatchingService:
    """The same with BentoML's adaptive batching, which joins arrays.

    A list of pydantic models can be joined too; that answered half as much.
    """

    def __init__(self) -> None:
        """Load the policy."""
        self.network = load_network()

    @bentoml.api(batchable=True, max_batch_size=_MAX_BATCH_SIZE, max_latency_ms=_MAX_LATENCY_MS)
    async def predict(self, observations: np.ndarray) -> np.ndarray:
        """Draw an action for each row: action and probability."""
        actions, chances = self.network.draw(observations.astype(np.float32))
        return np.stack([actions, chances], axis=1)
