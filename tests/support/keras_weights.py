"""Weights of Keras files: read in this process, and such as hold up whoever reads them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from policy_server.formats.keras import stored_weights
from policy_server.formats.keras.stored_weights import Weights
from policy_server.formats.keras.weights_process import write_weights
from tests.support.library_policies import POLICIES

__all__ = ["read_here", "weights_in_a_ring"]


def read_here(path: Path) -> Weights:
    """Read a file of weights as `read_weights` does, without a process for it.

    Args:
        path: the file, which has to be one that the C library reads to its end.
    """
    answer = io.BytesIO()
    write_weights(path, answer)
    answer.seek(0)
    weights = stored_weights._read(answer, path)  # noqa: SLF001 -- the other end of the process
    assert weights is not None, "the answer is whole"
    return weights


def weights_in_a_ring(folder: Path) -> Path:
    """Write the weights of a policy with two bytes changed, in which the C library never ends."""
    with zipfile.ZipFile(POLICIES / "keras_actor_softmax" / "actor.keras") as archive:
        content = bytearray(archive.read("model.weights.h5"))
    content[2021], content[2024] = 96, 0
    path = folder / "model.weights.h5"
    path.write_bytes(content)
    return path
