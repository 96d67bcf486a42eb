"""PyTriton: `python -m benchmarks.peers.pytriton_server HTTP_PORT GRPC_PORT METRICS_PORT`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.network import load_network

_MAX_BATCH_SIZE = 256


def _serve(http_port: int, grpc_port: int, metrics_port: int) -> None:
    network = load_network()

    @batch
    def infer(observations: Any) -> dict[str, Any]:  # noqa: ANN401 -- PyTriton is untyped
        actions, chances = network.draw(observations)
        return {"actions": actions[:, None], "probability": chances[:, None].astype(np.float32)}

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="policy",
            infer_func=infer,
            inputs=[Tensor(name="observations", dtype=np.float32, shape=(6,))],
            outputs=[
                Tensor(name="actions", dtype=np.int64, shape=(1,)),
                Tensor(name="probability", dtype=np.float32, shape=(1,)),
            ],
            config=ModelConfig(
                max_batch_size=_MAX_BATCH_SIZE,
                batcher=DynamicBatcher(max_queue_delay_microseconds=0),
            ),
        )
        triton.serve()


if __name__ == "__main__":
    _serve(*(int(port) for port in sys.argv[1:4]))
