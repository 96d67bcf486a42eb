"""A format of the tests' own, to hold what the ways to a policy do with any format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from policy_server.policy import Policy
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["NotesFormat"]


class NotesFormat:
    """A policy is a file *.txt that starts with `notes`, or weights.txt in a zip or folder.

    scale.txt may lie beside it. It is never loaded.
    """

    name = "policy of notes"
    mark = "weights.txt"
    library: Engine = "numpy"

    def can_read(self, files: Mapping[str, Path]) -> bool:
        """Return whether the files are notes."""
        return any(name.endswith("weights.txt") for name in files)

    def file_name(self, head: bytes) -> str | None:
        """Return the usual name of a file with the head of notes."""
        return self.mark if head.startswith(b"notes") else None

    def beside(self, name: str) -> Sequence[str]:
        """Return the names of the scale, and of more notes of the same name."""
        return ("scale.txt", f"{name}.more")

    def whole(self, folder: PurePosixPath, paths: Sequence[PurePosixPath]) -> PurePosixPath:  # noqa: ARG002 -- of the format's signature
        """Return the folder itself."""
        return folder

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        """Refuse: a test that finds a policy does not load it."""
        raise AssertionError(f"loaded {list(files)} by {engine} with {schema}")
