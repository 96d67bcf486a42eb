"""TensorFlow SavedModels as RLlib exports them: load, check and export.

The only package that imports TensorFlow, and only when a policy is loaded or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from policy_server.policy import Policy
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["SavedModelFormat"]

_MODEL_FILE = "saved_model.pb"


class SavedModelFormat:
    """The `Format` of TensorFlow's SavedModels."""

    name = "TensorFlow SavedModel"
    mark = _MODEL_FILE
    library: Engine = "tensorflow"

    def can_read(self, files: Mapping[str, Path]) -> bool:
        """Return whether the files are a SavedModel's; see `Format.can_read`."""
        return _MODEL_FILE in files

    def file_name(self, head: bytes) -> None:
        """Return None: the policy is never one file; see `Format.file_name`."""

    def beside(self, name: str) -> Sequence[str]:  # noqa: ARG002 -- of the format's signature
        """Return no names; see `Format.beside`."""
        return ()

    def whole(self, folder: PurePosixPath, paths: Sequence[PurePosixPath]) -> PurePosixPath:  # noqa: ARG002 -- of the format's signature
        """Return the folder itself; see `Format.whole`."""
        return folder

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        """Load the policy; see `Format.load`."""
        # TensorFlow takes seconds to import, and some 400 MB for as long as the process lives.
        from policy_server.formats.saved_model.graph import as_model_errors
        from policy_server.formats.saved_model.loading import load_policy

        with as_model_errors():
            return load_policy(files[_MODEL_FILE].parent, schema, engine=engine)
