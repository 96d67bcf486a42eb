"""MLServer: a custom runtime; the benchmark writes settings.json and model-settings.json."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.network import load_network

__all__ = ["PolicyRuntime"]


class PolicyRuntime(MLModel):
    """The policy; MLServer's adaptive batching joins requests along the first dimension."""

    async def load(self) -> bool:
        """Load the policy."""
        self._network = load_network()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Draw an action for each row of `observations`, FP32 [B, 6]."""
        actions, chances = self._network.draw(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output("actions", actions[:, None]),
                NumpyCodec.encode_output("probability", chances[:, None]),
            ],
        )
