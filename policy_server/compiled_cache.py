"""A compiled policy on disk, so that the next start needs no TensorFlow.

It lies beside the model and is bound by a digest to everything it was made of: the model's files,
schema.yaml, and the versions of this program and of NumPy. The file holds arrays and JSON, nothing
that could run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from policy_server import __version__
from policy_server.numpy_network import CompiledPolicy, NumpyNetwork, Step
from policy_server.policy import PolicySignature
from policy_server.schema import ServerSchema

__all__ = ["digest_of", "read_compiled", "write_compiled"]

logger = logging.getLogger(__name__)

_FILE = ".compiled-policy.npz"
_DOCUMENT, _DIGEST = "document", "digest"


def digest_of(files: Mapping[str, bytes], schema: ServerSchema) -> str:
    """Return what a compiled policy is bound to.

    Args:
        files: the SavedModel's files by relative path.
        schema: what schema.yaml says.
    """
    digest = hashlib.sha256(f"{__version__} {np.__version__} {schema!r}".encode())
    for name in sorted(files):
        digest.update(f"\0{name}\0{len(files[name])}\0".encode() + files[name])
    return digest.hexdigest()


def read_compiled(folder: Path, digest: str) -> CompiledPolicy | None:
    """Return the compiled policy that an earlier start kept.

    Args:
        folder: the unzipped policy's.
        digest: what it has to be bound to.

    Returns:
        The policy; None where there is none, or it belongs to something else.
    """
    path = folder / _FILE
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays[_DIGEST]) != digest:
                return None
            document = json.loads(str(arrays[_DOCUMENT]))
            constants = {int(name): arrays[name] for name in arrays.files if name.isdigit()}
        signature = TypeAdapter(PolicySignature).validate_python(document["signature"])
        steps = TypeAdapter(tuple[Step, ...]).validate_python(document["steps"])
        network = NumpyNetwork(constants, steps, document["result"], document["registers"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, ValidationError) as error:
        logger.warning("compiled_policy_unusable", extra={"path": str(path), "reason": str(error)})
        return None
    return CompiledPolicy(signature, network)


def write_compiled(folder: Path, digest: str, compiled: CompiledPolicy) -> None:
    """Keep a compiled policy for the next start; a folder that can't be written is no error.

    Args:
        folder: the unzipped policy's.
        digest: what it is bound to.
        compiled: the policy.
    """
    network = compiled.network
    document = {
        "signature": asdict(compiled.signature),
        "steps": [asdict(step) for step in network.steps],
        "result": network.result,
        "registers": network.registers,
    }
    arrays: dict[str, Any] = {str(key): value for key, value in network.constants.items()}
    arrays |= {_DOCUMENT: json.dumps(document), _DIGEST: digest}
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".compiled-", suffix=".npz")
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **arrays)
        Path(name).replace(folder / _FILE)
    except OSError as error:
        logger.info("compiled_policy_not_kept", extra={"path": str(folder), "reason": str(error)})
