"""A format of the tests' own, to hold what the ways to a policy do with any format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from policy_server.policy import Policy
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["NotesFormat"]


class NotesFormat:
    """A policy is a file weights.txt; scale.txt may lie beside its zip. It is never loaded."""

    name = "policy of notes"
    mark = "weights.txt"
    beside = "scale.txt"

    def can_read(self, files: Mapping[str, Path]) -> bool:
        """Return whether the files are notes."""
        return self.mark in files

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        """Refuse: a test that finds a policy does not load it."""
        raise AssertionError(f"loaded {list(files)} by {engine} with {schema}")
