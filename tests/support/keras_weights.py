"""Weights of Keras files that hold up whoever reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.support.library_policies import POLICIES

__all__ = ["weights_in_a_ring"]


def weights_in_a_ring(folder: Path) -> Path:
    """Write the weights of a policy with two bytes changed, in which the C library never ends."""
    with zipfile.ZipFile(POLICIES / "keras_actor_softmax" / "actor.keras") as archive:
        content = bytearray(archive.read("model.weights.h5"))
    content[2021], content[2024] = 96, 0
    path = folder / "model.weights.h5"
    path.write_bytes(content)
    return path
