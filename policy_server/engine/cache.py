"""A compiled policy as a file, so that the next start needs no TensorFlow.

The file lies beside the model. A digest in it stands for everything that it was made of: the
model's files, schema.yaml, and the versions of this program and of NumPy; with another digest it is
not used. A policy that needs TensorFlow has a file too, which says so. It holds arrays and JSON,
no code.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tokenize
import zipfile
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from policy_server import __version__
from policy_server.engine.network import CompiledPolicy, NumpyNetwork, Step
from policy_server.files.atomic import write_whole
from policy_server.files.regular import open_file
from policy_server.policy import (
    ActionComponent,
    ActionOutput,
    ObservationPart,
    PolicySignature,
    SignatureTensor,
    StateTensor,
)
from policy_server.schema import ServerSchema

__all__ = [
    "OUTCOME_FILE",
    "Outcome",
    "carry_outcome",
    "decode",
    "digest_of",
    "encode",
    "read_outcome",
    "read_signature",
    "write_outcome",
]

logger = logging.getLogger(__name__)

# The name of the compiled policy beside the files of its model.
OUTCOME_FILE = ".compiled-policy.npz"
# The types in the file: one that was written with other fields is not read.
_KEPT = (
    PolicySignature,
    SignatureTensor,
    ActionComponent,
    ActionOutput,
    ObservationPart,
    StateTensor,
    NumpyNetwork,
    Step,
)
# Raised with each change by which the same files become another policy.
_READING = 4
_DOCUMENT, _DIGEST = "document", "digest"
# Python's own tokenizer stands behind NumPy's reader of headers.
_DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, SyntaxError, TypeError),
    *(tokenize.TokenError, zipfile.BadZipFile, ValidationError),
)


@dataclass(frozen=True)
class Outcome:
    """The outcome of compiling a policy.

    Attributes:
        compiled: the policy; None where TensorFlow has to compute it.
    """

    compiled: CompiledPolicy | None


def digest_of(model: str, schema: ServerSchema) -> str:
    """Return the digest of all that a compiled policy is made from.

    Args:
        model: the digest of the model's files.
        schema: the contents of schema.yaml, of which only the part counts that answers depend on.
    """
    layout = [item.name for kind in _KEPT for item in fields(kind)]
    made_of = f"{__version__} {_READING} {np.__version__} {layout} {model} {schema.policy_part()!r}"
    return hashlib.sha256(made_of.encode()).hexdigest()


def encode(outcome: Outcome, digest: str) -> bytes:
    """Return an outcome as bytes.

    Args:
        outcome: the outcome of compiling.
        digest: of all that it was made from.
    """
    document: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    if (compiled := outcome.compiled) is not None:
        network = compiled.network
        document = {
            "signature": asdict(compiled.signature),
            "steps": [asdict(step) for step in network.steps],
            "result": network.result,
            "registers": network.registers,
            "is_row_by_row": network.is_row_by_row,
        }
        arrays = {str(key): value for key, value in network.constants.items()}
    buffer = io.BytesIO()
    arrays |= {_DOCUMENT: json.dumps(document), _DIGEST: digest}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def decode(content: bytes, digest: str) -> Outcome | None:
    """Return the outcome that `encode` wrote.

    Args:
        content: the bytes that `encode` returned.
        digest: the digest that the outcome must have.

    Returns:
        The outcome; None where it has another digest.

    Raises:
        ValueError: if the content is damaged.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if str(arrays[_DIGEST]) != digest:
                return None
            document = json.loads(str(arrays[_DOCUMENT]))
            if not document:
                return Outcome(None)
            constants = {int(name): arrays[name] for name in arrays.files if name.isdigit()}
        signature = read_signature(document["signature"])
        steps = TypeAdapter(tuple[Step, ...]).validate_python(_with_tuples(document["steps"]))
        network = NumpyNetwork(
            constants, steps, document["result"], document["registers"], document["is_row_by_row"]
        )
    except _DAMAGE as error:
        raise ValueError(str(error)) from error
    return Outcome(CompiledPolicy(signature, network))


def read_signature(document: Any) -> PolicySignature:  # noqa: ANN401 -- a value of JSON
    """Return the signature whose fields, with those of its parts, are in a document.

    Args:
        document: the signature by `dataclasses.asdict`, as JSON has it.

    Raises:
        ValueError: if it is none.
    """
    return TypeAdapter(PolicySignature).validate_python(document)


def _with_tuples(value: Any) -> Any:  # noqa: ANN401 -- a value of JSON
    """Return a value with tuples for its lists: attributes had them, and JSON has lists alone."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def read_outcome(folder: Path, digest: str) -> Outcome | None:
    """Return the outcome that an earlier start wrote.

    Args:
        folder: the unzipped policy's.
        digest: the digest that it must have.

    Returns:
        The outcome; None where there is none, or it has another digest.
    """
    path = folder / OUTCOME_FILE
    try:
        with open_file(path) as file:
            content = file.read()
        return decode(content, digest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, MemoryError, RuntimeError, zlib.error) as error:
        # What zipfile and NumPy raise for a damaged file; NotImplementedError is a RuntimeError.
        logger.warning("compiled_policy_unusable", extra={"path": str(path), "reason": str(error)})
        return None


def carry_outcome(source: Path, target: Path) -> None:
    """Copy the outcome of compiling a model to another folder of the same model.

    Args:
        source: a folder of the unzipped policy, where it may have been compiled.
        target: the folder that a server will look in.
    """
    if (source / OUTCOME_FILE).is_file():
        write_outcome(target, (source / OUTCOME_FILE).read_bytes())


def write_outcome(folder: Path, content: bytes) -> None:
    """Write an outcome for the next start; a folder that can't be written is no error.

    Args:
        folder: the unzipped policy's.
        content: the outcome, encoded.
    """
    try:
        write_whole(folder / OUTCOME_FILE, content)
    except OSError as error:
        logger.info("compiled_policy_not_kept", extra={"path": str(folder), "reason": str(error)})
