"""What the web side costs by itself: a bare ASGI application, and ours without its fast path."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.floor import CONSTANT_ACTION, CONSTANT_BODY, CONSTANT_PROBABILITY
from policy_server.backends.local import open_local_backend
from policy_server.formats.finding import prepare_model
from policy_server.formats.model_files import identify_model
from policy_server.metrics import Metrics
from policy_server.observations import ObservationSpace
from policy_server.policy import (
    DEFAULT_POLICY,
    ActionComponent,
    ActionOutput,
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
    SignatureTensor,
)
from policy_server.schema import ServerSchema, read_schema
from policy_server.servable import resolve_api_key
from policy_server.serving import OpenedPolicy, PolicyOpener, PolicyRegistry, PolicySlot
from policy_server.settings import Settings, read_settings
from policy_server.telemetry import configure_logging
from policy_server.web import Application, create_app

__all__ = ["ConstantBackend", "bare_asgi", "without_fast_path"]

_WIDTH, _ACTIONS = 6, 4


class ConstantBackend:
    """A `PolicyBackend` that computes nothing."""

    signature = PolicySignature(
        observation_width=_WIDTH,
        observation_dtype="float32",
        inputs=(SignatureTensor("observations", "float32", (None, _WIDTH)),),
        outputs=(SignatureTensor("action_dist_inputs", "float32", (None, _ACTIONS)),),
        action_outputs=(ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False),),
        components=(ActionComponent("categorical", _ACTIONS, first_input=0, first_column=0),),
        basis="structure",
    )

    capacity = 1

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations alike."""
        rows = len(inputs)
        action, probability = CONSTANT_ACTION, CONSTANT_PROBABILITY
        return PolicyOutputs(
            np.full((rows, 1), float(action)),
            np.full(rows, math.log(probability)),
            np.zeros((rows, _ACTIONS), np.float32),
        )

    async def is_ready(self) -> bool:
        """Return True."""
        return True


def bare_asgi() -> ASGIApp:
    """Build an application that validates an observation, and answers a constant."""
    space = ObservationSpace(read_schema(read_settings().schema_path).observations)
    length = b"%d" % len(CONSTANT_BODY)
    headers = [(b"content-length", length), (b"content-type", b"application/json")]

    async def answer(_scope: Scope, receive: Receive, send: Send) -> None:
        parts, message = [], await receive()
        while message.get("more_body"):
            parts.append(message["body"])
            message = await receive()
        space.parse_named(b"".join([*parts, message.get("body", b"")]))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": CONSTANT_BODY})

    return answer


def without_fast_path() -> Application:
    """Build the application over the local backend, with FastAPI's own routes alone."""

    def opener(schema: ServerSchema, settings: Settings) -> PolicyOpener:
        @asynccontextmanager
        async def open_local() -> AsyncIterator[OpenedPolicy]:
            model = identify_model(prepare_model(settings))
            async with open_local_backend(model, schema, settings) as backend:
                yield OpenedPolicy(backend, model.version)

        return open_local

    settings = read_settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    schema = read_schema(settings.schema_path)
    metrics, open_policy = Metrics(), opener(schema, settings)
    slot = PolicySlot(DEFAULT_POLICY, schema, open_policy, settings=settings, metrics=metrics)
    return create_app(
        PolicyRegistry([slot]),
        settings,
        api_key=resolve_api_key(settings, schema),
        root_path=schema.root_path,
        has_fast_path=False,
        metrics=metrics,
    )
