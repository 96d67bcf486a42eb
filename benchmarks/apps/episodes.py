"""One recurrent policy twice in one server: with its memory, and answering from the zero state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from policy_server.backends.local import LocalBackend, open_local_backend
from policy_server.formats.finding import prepare_model
from policy_server.formats.model_files import identify_model
from policy_server.metrics import Metrics
from policy_server.policy import PolicyInputs, PolicyOutputs, PolicySignature
from policy_server.schema import ServerSchema, read_schema
from policy_server.servable import resolve_api_key
from policy_server.serving import OpenedPolicy, PolicyRegistry, PolicySlot
from policy_server.settings import Settings, read_settings
from policy_server.web import Application, create_app

__all__ = ["FORGETTING", "REMEMBERING", "both"]

REMEMBERING, FORGETTING = "remembering", "forgetting"


class _Forgetting:
    """A backend of a recurrent policy whose signature tells of no memory.

    It computes the same network from the zero state: what is left out is the memory's way.
    """

    capacity = 1

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self.signature: PolicySignature = replace(backend.signature, memory=())

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        return await self._backend.infer(inputs)

    def is_immediate(self, rows: int) -> bool:
        return self._backend.is_immediate(rows)

    def infer_at_once(self, inputs: PolicyInputs) -> PolicyOutputs:
        return self._backend.infer_at_once(inputs)

    async def is_ready(self) -> bool:
        return True


def both() -> Application:
    """Build the application over the policy of the home folder."""
    settings = read_settings()
    schema, metrics = read_schema(settings.schema_path), Metrics()
    slots = [
        PolicySlot(
            name,
            schema,
            partial(_opened, schema, settings, name),
            settings=settings,
            metrics=metrics,
        )
        for name in (REMEMBERING, FORGETTING)
    ]
    return create_app(
        PolicyRegistry(slots),
        settings,
        api_key=resolve_api_key(settings, schema),
        metrics=metrics,
    )


@asynccontextmanager
async def _opened(
    schema: ServerSchema, settings: Settings, name: str
) -> AsyncIterator[OpenedPolicy]:
    model = identify_model(prepare_model(settings))
    async with open_local_backend(model, schema, settings) as backend:
        used = backend if name == REMEMBERING else _Forgetting(backend)
        yield OpenedPolicy(used, model.version)
