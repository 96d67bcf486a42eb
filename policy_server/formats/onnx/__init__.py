"""ONNX models, as PyTorch's exporters, RSL-RL, ML-Agents, Godot RL and others write them.

The package onnx reads them; NumPy computes them where that is proved equal, onnxruntime elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from policy_server.formats.recognition import ONNX_HEAD
from policy_server.policy import Policy
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["OnnxFormat"]

_SUFFIX = ".onnx"


class OnnxFormat:
    """The `Format` of an .onnx file, with the file of its weights beside it where it has one."""

    name = "ONNX model"
    mark = "policy.onnx"
    library: Engine = "onnxruntime"

    def file_name(self, head: bytes) -> str | None:
        """Return `policy.onnx` for the head of an ONNX model; see `Format.file_name`."""
        return self.mark if ONNX_HEAD.match(head) else None

    def beside(self, name: str) -> Sequence[str]:
        """Return the names that exporters give to the file of the weights; see `Format.beside`."""
        stem = name.removesuffix(_SUFFIX)
        return (f"{name}.data", f"{name}_data", f"{stem}.data", f"{stem}.bin", f"{stem}.yaml")

    def can_read(self, files: Mapping[str, Path]) -> bool:
        """Return whether a file ends in .onnx; see `Format.can_read`."""
        return any(name.endswith(_SUFFIX) and "/" not in name for name in files)

    def whole(self, folder: PurePosixPath, paths: Sequence[PurePosixPath]) -> PurePosixPath:  # noqa: ARG002 -- of the format's signature
        """Return the folder itself; see `Format.whole`."""
        return folder

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        """Load the policy; see `Format.load`."""
        from policy_server.formats.onnx.model_loading import load_policy

        return load_policy(files, schema, engine=engine)
