"""RLlib's checkpoints of both API stacks, as RLlib writes them; no Ray is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from policy_server.policy import Policy
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["RllibFormat"]

_MARKS = (
    "rllib_checkpoint.json",
    "module_state.pkl",
    "module_state.msgpack",
    "module_state.pt",
    "policy_state.pkl",
    "policy_state.msgpck",
)


class RllibFormat:
    """The `Format` of RLlib's checkpoints: a whole algorithm's, or one policy's alone."""

    name = "RLlib checkpoint"
    mark = "rllib_checkpoint.json, module_state or policy_state"
    library: Engine = "numpy"

    def can_read(self, files: Mapping[str, Path]) -> bool:
        """Return whether the files are an RLlib checkpoint's; see `Format.can_read`."""
        return any(mark in files for mark in _MARKS)

    def file_name(self, head: bytes) -> None:
        """Return None: the policy is never one file; see `Format.file_name`."""

    def beside(self, name: str) -> Sequence[str]:  # noqa: ARG002 -- of the format's signature
        """Return no names; see `Format.beside`."""
        return ()

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        """Load the policy; see `Format.load`."""
        from policy_server.formats.rllib.restoring import load_policy

        return load_policy(files, schema, engine=engine)
