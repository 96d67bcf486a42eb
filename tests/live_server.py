"""A real server on a free port, over a backend that needs no TensorFlow."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.types import ASGIApp

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.policy import (
    ActionComponent,
    ActionOutput,
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
    SignatureTensor,
)
from policy_server.schema import parse_schema
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.fakes import registry_of

__all__ = ["KEY", "SCHEMA", "live_server", "served_app"]

KEY = "secret"
SCHEMA = f"""
observations:
  links: {{type: "List[float]", min_items: 2, max_items: 2}}
  is_open: {{type: bool, example: true}}
parameters: {{api_key: {KEY}}}
"""
_WIDTH = 3
_PROBABILITIES = (0.2, 0.8)


@dataclass(frozen=True)
class _FixedPolicy:
    """Takes action 1 four times out of five, whatever it sees."""

    signature = PolicySignature(
        observation_width=_WIDTH,
        observation_dtype="float32",
        inputs=(SignatureTensor("observations", "float32", (None, _WIDTH)),),
        outputs=(SignatureTensor("actions_0", "int64", (None,)),),
        action_outputs=(ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False),),
        components=(ActionComponent("categorical", 2, first_input=0, first_column=0),),
        basis="structure",
    )

    capacity = 1

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        assert self.signature.components is not None
        distribution = ActionDistribution(self.signature.components)
        values = np.tile(np.log(np.array(_PROBABILITIES, np.float32)), (len(inputs), 1))
        return distribution.answer(
            values, is_deterministic=inputs.is_deterministic, seeds=inputs.seeds
        )

    async def is_ready(self) -> bool:
        return True


@contextlib.contextmanager
def live_server(schema: str = SCHEMA) -> Iterator[str]:
    """Serve the fixed policy until the block ends.

    Args:
        schema: the text of schema.yaml; its observations have three numbers.

    Yields:
        The server's address.
    """
    parsed = parse_schema(schema)
    app = create_app(
        registry_of(_FixedPolicy(), parsed),
        Settings(home=Path("nowhere")),
        api_key=parsed.api_key,
        root_path=parsed.root_path,
    )
    with served_app(app, ws="none") as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def served_app(app: ASGIApp, **options: Any) -> Iterator[int]:  # noqa: ANN401 -- uvicorn's own
    """Serve an application by uvicorn, in a thread, until the block ends.

    Args:
        app: the application.
        **options: uvicorn's.

    Yields:
        The port of 127.0.0.1 that it listens on.
    """
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **options))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.01)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
