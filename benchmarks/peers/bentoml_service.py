"""BentoML: `bentoml serve benchmarks.peers.bentoml_service:PolicyService`.

Without its adaptive batching, which costs such a small policy more than it saves: see
docs/benchmarks.md.
"""

from __future__ import annotations

import bentoml
import numpy as np

from benchmarks.peers.network import load_network
from benchmarks.peers.observation import Answer, Observation


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class PolicyService:
    """The policy in BentoML's one worker."""

    def __init__(self) -> None:
        """Load the policy."""
        self.network = load_network()

    @bentoml.api
    async def predict(self, observation: Observation) -> Answer:
        """Draw an action."""
        actions, chances = self.network.draw(np.array([observation.row()], np.float32))
        return Answer(actions=[int(actions[0])], probability=float(chances[0]))
