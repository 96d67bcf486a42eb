"""BentoML: `bentoml serve benchmarks.peers.bentoml_service:PolicyService`."""

from __future__ import annotations

import bentoml
import numpy as np

from benchmarks.peers.network import load_network
from benchmarks.peers.observation import Answer, Observation


@bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 4096})
class PolicyService:
    """The policy, with BentoML's adaptive batching."""

    def __init__(self) -> None:
        """Load the policy in BentoML's worker."""
        self.network = load_network()

    @bentoml.api(batchable=True, max_batch_size=256, max_latency_ms=10_000)
    async def predict(self, observations: list[Observation]) -> list[Answer]:
        """Draw an action for each observation of one or more requests."""
        rows = np.array([observation.row() for observation in observations], np.float32)
        actions, chances = self.network.draw(rows)
        return [
            Answer(actions=[action], probability=chance)
            for action, chance in zip(actions.tolist(), chances.tolist(), strict=True)
        ]
