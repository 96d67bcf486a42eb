"""Policies in this process that answer while Ray has died."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.backends.ray.applications import Application
from policy_server.backends.ray.backend import RayBackend
from policy_server.backends.ray.serve_handle import Handle
from policy_server.backends.ray.stand_ins import stand_ins
from policy_server.errors import OverloadedError
from policy_server.formats.compiling_process import find_compiled
from policy_server.policy import PolicyInputs
from policy_server.settings import Settings
from tests.support.fakes import components_of, signature_of
from tests.support.ray_clusters import SETTINGS, check_answers, version_of
from tests.support.waiting import turns


class NoHandle:
    """Ray Serve's handle of an application whose Ray has died."""

    def _init(self, **_: object) -> None: ...

    def options(self, **_: object) -> Any:  # noqa: ANN401 -- no method is called
        """Return nothing that can be called."""


def suspended_backend(application: Application, *, timeout_s: float = 60) -> RayBackend:
    backend = RayBackend(
        Handle(NoHandle()),
        signature_of(components_of(("categorical", 2)), width=4),
        application=application.name,
        replicas=1,
        calls=None,
        timeout_s=timeout_s,
        count_lost=lambda: None,
    )
    backend.suspend()
    return backend


async def test_compiled_policy_answers_as_its_replicas_do(tmp_path: Path) -> None:
    version = version_of("ppo_discrete", tmp_path)
    # As it was compiled before it was deployed.
    assert await find_compiled(version.model, version.schema, SETTINGS) is not None
    application = Application(version, SETTINGS, is_crowded=False)
    backend = suspended_backend(application)

    async with stand_ins([backend], {application.name: application}, SETTINGS):
        await check_answers(backend, version)

        assert await backend.is_ready()


async def test_policy_that_tensorflow_computes_has_no_stand_in(tmp_path: Path) -> None:
    settings = Settings(engine="tensorflow")
    application = Application(version_of("ppo_discrete", tmp_path), settings, is_crowded=False)
    backend = suspended_backend(application, timeout_s=0.2)

    async with stand_ins([backend], {application.name: application}, settings):
        await turns()
        with pytest.raises(OverloadedError, match=r"no replica answered within 0.2 s"):
            await backend.infer(PolicyInputs.of(np.zeros((1, 4), np.float32)))

        assert not await backend.is_ready()
