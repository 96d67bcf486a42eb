"""Write a policy that NumPy computes as one .onnx file that says all about itself.

The file is put in place only after it has been read back as a server reads it, and has answered as
the policy does: by NumPy, and by onnxruntime or the reference that comes with the package onnx.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from policy_server.engine.network import NetworkPolicy
from policy_server.errors import ExportError, ModelError
from policy_server.files.atomic import scratch_folder, write_whole
from policy_server.formats import load_policy
from policy_server.formats.onnx.graph_writing.model_writing import model_bytes
from policy_server.formats.onnx.policy_vectors import PolicyVectors, compare
from policy_server.installation import is_installed
from policy_server.observation_fit import fit_observations
from policy_server.onnx_export.probes import probe_vectors
from policy_server.policy import ObservationPart, PolicySignature
from policy_server.schema import ObservationField, ServerSchema, find_example_of
from policy_server.settings import Engine

__all__ = ["export_onnx"]

_VECTORS = 20
_PROBES = 256
_REFUSED = "the policy can't be written as ONNX"


def export_onnx(
    folder: Path, schema: ServerSchema | None, target: Path, *, overwrite: bool = False
) -> None:
    """Write a policy as an .onnx file, with what schema.yaml says of its actions and observations.

    Args:
        folder: holds the policy's files.
        schema: the contents of schema.yaml; None where there is none.
        target: the .onnx file; its folder is made if it is missing.
        overwrite: replace the file if it exists.

    Raises:
        ExportError: if the file exists, NumPy can't compute the policy, an operation of it has no
            exact form in ONNX, or the file answers otherwise than the policy. Nothing is written.
        ModelError: if the policy can't be read.
        SchemaError: if schema.yaml does not fit it.
    """
    if target.exists() and not overwrite and find_example_of(target) is None:
        raise ExportError(
            f"{target}: exists; give another folder, or overwrite it with --overwrite"
        )
    policy = _loaded(folder, schema)
    signature = _with_parts(policy.signature, schema)
    policy = NetworkPolicy(replace(policy.compiled, signature=signature))
    try:
        probes = probe_vectors(policy, most=_PROBES)
        content = model_bytes(policy.compiled, probes.first(_VECTORS))
    except ExportError as error:
        raise ExportError(f"{_REFUSED}: {error.message}") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target) as scratch:
            (scratch / target.name).write_bytes(content)
            _prove(scratch, policy, probes)
        write_whole(target, content, is_durable=True)
    except OSError as error:
        raise ExportError(f"{target}: can't be written: {error.strerror or error}") from error


def _loaded(folder: Path, schema: ServerSchema | None) -> NetworkPolicy:
    """Return the policy as NumPy computes it."""
    policy = load_policy(folder, schema)
    if isinstance(policy, NetworkPolicy):
        return policy
    signature = policy.signature
    try:
        # Some that NumPy can compute are faster by the format's own library.
        forced = load_policy(folder, schema, engine="numpy")
    except ModelError as error:
        raise ExportError(
            f"{_REFUSED}: {signature.engine} computes it, since {signature.engine_reason}; only "
            "what NumPy computes can be written"
        ) from error
    assert isinstance(forced, NetworkPolicy), "NumPy was asked for"
    return forced


def _with_parts(signature: PolicySignature, schema: ServerSchema | None) -> PolicySignature:
    """Return the signature with the parts of the observation as schema.yaml names them.

    Raises:
        ExportError: if schema.yaml normalizes observations, which the file would leave out.
    """
    fields = (None if schema is None else fit_observations(schema, signature)) or ()
    for field in fields:
        if field.normalize is not None:
            raise ExportError(
                f"{_REFUSED}: schema.yaml normalizes {field.name!r} outside of it, which the file "
                "would leave out; remove `normalize` and export a policy that takes normalized "
                "numbers"
            )
    if signature.observation_parts or not all(field.has_fixed_length for field in fields):
        return signature
    return replace(signature, observation_parts=tuple(map(_part_of, fields)))


def _part_of(field: ObservationField) -> ObservationPart:
    shape = field.shape or ((field.min_items,) if field.is_list else ())
    low, high = (
        None if bound is None else float(bound) for bound in (field.minimum, field.maximum)
    )
    is_integer = field.kind != "float"
    if field.one_hot is None:
        kind: Literal["binary", "box"] = "binary" if field.kind == "bool" else "box"
        return ObservationPart(field.name, kind, shape, is_integer=is_integer, low=low, high=high)
    items = field.min_items if field.is_list else 1
    sizes = field.one_hot if len(field.one_hot) > 1 else field.one_hot * items
    if field.first:
        # Integers that don't count from 0 have no form of their own: their columns are told.
        return ObservationPart(field.name, "box", (sum(sizes),), is_integer=True, low=0, high=1)
    return ObservationPart(field.name, "one_hot", shape, sizes, is_integer=is_integer)


def _prove(folder: Path, policy: NetworkPolicy, probes: PolicyVectors) -> None:
    """Compare the policy with the file in a folder, as a server reads it and as a runtime does.

    Raises:
        ExportError: if it can't be read, or answers otherwise.
    """
    # Without onnxruntime, reading the file compares NumPy with the reference that onnx has.
    engines: tuple[Engine, ...] = ("auto", "onnxruntime")
    for engine in engines if is_installed("onnxruntime") else engines[:1]:
        try:
            written = load_policy(folder, engine=engine)
        except ModelError as error:
            raise ExportError(f"{_REFUSED}: {error.message}") from error
        _, problem = compare(probes, written)
        # The file has one input, of a type that holds the numbers of all the policy's own.
        signature = replace(policy.signature, observation_columns=())
        problem = problem or signature.difference(written.signature)
        if problem is not None:
            raise ExportError(f"{_REFUSED}: the written file answers otherwise: {problem}")
