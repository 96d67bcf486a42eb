"""Keras models as files, and their own answers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.network import NetworkPolicy
from policy_server.formats.known_formats import load_policy
from policy_server.policy import PolicyInputs
from policy_server.schema import parse_schema

Keras = Any  # keras has no types
CONFIG = "config.json"


def save(model: Keras, folder: Path) -> Path:
    """Save a model, and return the folder that its file is unpacked to."""
    path = folder / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the description of an unpacked model."""
    path = folder / CONFIG
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def load(folder: Path, schema: str | None = None) -> NetworkPolicy:
    """Load an unpacked model with the text of a schema.yaml."""
    policy = load_policy(folder, None if schema is None else parse_schema(schema))
    assert isinstance(policy, NetworkPolicy)
    return policy


def numbers(policy: NetworkPolicy, rows: NDArray[Any], state: Keras = None) -> NDArray[Any]:
    """Return the distribution's inputs for rows of observations."""
    found = policy.infer(PolicyInputs.of(rows.astype(np.float32), state=state)).distribution
    assert found is not None
    return found
