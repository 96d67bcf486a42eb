"""Ray Serve's own HTTP ingress over FastAPI: `python -m benchmarks.peers.ray_http_server PORT`."""

import signal
import sys
import tempfile
import threading
from typing import Any

import numpy as np
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import LoggingConfig

from benchmarks.peers.network import load_network
from benchmarks.peers.observation import Answer, Observation

_MAX_BATCH_SIZE = 256
_MAX_ONGOING_REQUESTS = 1024

app = FastAPI()


class Policy:
    """The policy, with Ray Serve's dynamic batching."""

    def __init__(self) -> None:
        """Load the policy in Ray Serve's replica."""
        self._network = load_network()

    @app.post("/predict")
    async def predict(self, observation: Observation) -> Answer:
        """Draw an action."""
        answer: Answer = await self._draw(observation.row())
        return answer

    @serve.batch(max_batch_size=_MAX_BATCH_SIZE, batch_wait_timeout_s=0)
    async def _draw(self, rows: list[Any]) -> list[Answer]:
        actions, chances = self._network.draw(np.array(rows, np.float32))
        return [
            Answer(actions=[action], probability=chance)
            for action, chance in zip(actions.tolist(), chances.tolist(), strict=True)
        ]


def _serve(port: int) -> None:
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=tempfile.mkdtemp(prefix="bench-ray-"),
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    deployment = serve.deployment(
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        logging_config=quiet,
    )(serve.ingress(app)(Policy))
    serve.run(deployment.bind(), route_prefix="/")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    ray.shutdown()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
