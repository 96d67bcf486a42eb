"""Policies on a Ray that a test has started."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from policy_server.backends.ray.backend import RayBackend
from policy_server.backends.ray.cluster import VersionDescription
from policy_server.backends.replica_counts import ReplicaCounts
from policy_server.engine.network import NetworkPolicy
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.model_files import identify_model
from policy_server.formats.unpacking import unpack_model
from policy_server.policy import PolicyInputs
from policy_server.schema import read_schema
from policy_server.settings import Settings
from tests.support.folders import EXPORTS
from tests.support.processes import command_line, descendants

__all__ = ["SETTINGS", "check_answers", "processes_of", "version_of"]

# More than any machine has: on a Ray of its own a server sets none aside.
SETTINGS = Settings(dashboard_port=0, replica_cpus=4096)


def version_of(
    export: str, models: Path, *, name: str = "default", settings: Settings = SETTINGS
) -> VersionDescription:
    """Return a version of a real export."""
    folder = unpack_model(EXPORTS / export / "saved_model.zip", models / export, max_bytes=10**9)
    schema = read_schema(EXPORTS / export / "schema.yaml")
    return VersionDescription(name, identify_model(folder), schema, ReplicaCounts.of(settings))


async def check_answers(backend: RayBackend, version: VersionDescription) -> None:
    """Hold a backend's modes against those that the policy has in this process."""
    compiled = await find_compiled(version.model, version.schema, SETTINGS)
    assert compiled is not None, "the policies here are computed by NumPy"
    width = backend.signature.observation_width
    assert width is not None
    rows = np.random.default_rng(0).random((20, width), np.float32)
    inputs = PolicyInputs.of(rows, is_deterministic=True)

    outputs = await backend.infer(inputs)

    expected = NetworkPolicy(compiled).infer(inputs)
    assert (outputs.actions == expected.actions).all()
    assert (outputs.log_probability == expected.log_probability).all()


def processes_of(kind: str) -> list[int]:
    """Return the processes below this one of a kind, such as `gcs_server`."""
    return [pid for pid in descendants(os.getpid()) if kind in command_line(pid)]
