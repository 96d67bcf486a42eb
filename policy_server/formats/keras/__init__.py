"""Keras 3's `.keras` files, as `model.save` writes them: Sequential and Functional models.

Neither Keras nor TensorFlow is imported, and no code of a file is run. h5py reads the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from policy_server.policy import Policy
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["KerasFormat"]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


class KerasFormat:
    """The `Format` of the `.keras` file that Keras 3 writes, which is a zip."""

    name = "Keras model"
    mark = _WEIGHTS
    library: Engine = "numpy"

    def file_name(self, head: bytes) -> str | None:  # noqa: ARG002 -- `Format` has it
        """Return None: a policy of this format is a zip; see `Format.file_name`."""
        return None

    def beside(self, name: str) -> Sequence[str]:  # noqa: ARG002 -- `Format` has it
        """Return nothing: the zip holds all of it; see `Format.beside`."""
        return ()

    def can_read(self, files: Mapping[str, Path]) -> bool:
        """Return whether the files are a Keras file's members; see `Format.can_read`."""
        return _CONFIG in files and _WEIGHTS in files

    def whole(self, folder: PurePosixPath, paths: Sequence[PurePosixPath]) -> PurePosixPath:  # noqa: ARG002 -- of the format's signature
        """Return the folder itself; see `Format.whole`."""
        return folder

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        """Load the policy; see `Format.load`."""
        from policy_server.formats.keras.keras_policy import load_policy

        return load_policy(
            files[_CONFIG], files[_WEIGHTS], files.get(_METADATA), schema, engine=engine
        )
