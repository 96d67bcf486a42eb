"""LitServe: `python -m benchmarks.peers.litserve_server PORT [batching]`.

Annotations stay what they are here, and no text: LitServe reads them.
"""

import sys
from typing import Any

import litserve
import numpy as np

from benchmarks.peers.network import load_network
from benchmarks.peers.observation import Answer, Observation

_MAX_BATCH_SIZE = 256
# With no wait at all its worker spins.
_BATCH_TIMEOUT_S = 0.0005


class PolicyApi(litserve.LitAPI):
    """The policy in LitServe's worker, one observation a call."""

    def setup(self, device: str) -> None:  # noqa: ARG002 -- the base class's own
        """Load the policy."""
        self.network = load_network()

    def decode_request(self, request: Observation) -> list[float]:
        """Return the row of a validated request."""
        return request.row()

    def predict(self, x: Any) -> Any:  # noqa: ANN401 -- the base class's own
        """Draw an action."""
        actions, chances = self.network.draw(np.array([x], np.float32))
        return int(actions[0]), float(chances[0])

    def encode_response(self, output: tuple[int, float]) -> Answer:
        """Return the answer's body."""
        return Answer(actions=[output[0]], probability=output[1])


class BatchingApi(PolicyApi):
    """The same with LitServe's dynamic batching."""

    def batch(self, inputs: list[list[float]]) -> Any:  # noqa: ANN401 -- the base class's own
        """Return float32[B, 6]."""
        return np.array(inputs, np.float32)

    def predict(self, x: Any) -> Any:  # noqa: ANN401 -- the base class's own
        """Draw an action for each row."""
        actions, chances = self.network.draw(x)
        return list(zip(actions.tolist(), chances.tolist(), strict=True))

    def unbatch(self, output: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """Return one answer a request."""
        return output


if __name__ == "__main__":
    api = (
        BatchingApi(max_batch_size=_MAX_BATCH_SIZE, batch_timeout=_BATCH_TIMEOUT_S)
        if "batching" in sys.argv[2:]
        else PolicyApi()
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
