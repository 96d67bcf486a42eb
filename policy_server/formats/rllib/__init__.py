"""RLlib's checkpoints of both API stacks, as RLlib writes them; no Ray is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

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
_LEARNER = "learner_group"
# The folders and files of a whole checkpoint, one of which tells that it is one.
_PARTS = (
    _LEARNER,
    "env_runner",
    "eval_env_runner",
    "env_to_module_connector",
    "module_to_env_connector",
    "algorithm_state.pkl",
    "algorithm_state.msgpack",
)


class RllibFormat:
    """The `Format` of RLlib's checkpoints: a whole algorithm's, or one policy's alone."""

    name = "RLlib checkpoint"
    mark = "rllib_checkpoint.json, module_state or policy_state"
    library: Engine = "numpy"

    def can_read(self, files: Mapping[str, Path]) -> bool:
        """Return whether the files are an RLlib checkpoint's; see `Format.can_read`."""
        return any(mark in files for mark in _MARKS) or any(
            name.startswith(f"{_LEARNER}/") and PurePosixPath(name).name in _MARKS for name in files
        )

    def file_name(self, head: bytes) -> None:
        """Return None: the policy is never one file; see `Format.file_name`."""

    def beside(self, name: str) -> Sequence[str]:  # noqa: ARG002 -- of the format's signature
        """Return no names; see `Format.beside`."""
        return ()

    def whole(self, folder: PurePosixPath, paths: Sequence[PurePosixPath]) -> PurePosixPath:
        """Return the checkpoint's folder where the policy's is a part of one; see `Format.whole`.

        Without its rllib_checkpoint.json too, since its filters belong to the policy.
        """
        levels = [above for above in (folder, *folder.parents) if above.name == _LEARNER]
        if not levels:
            return folder
        checkpoint = levels[0].parent
        others = [path for path in paths if not path.is_relative_to(folder)]
        is_there = any(path.is_relative_to(checkpoint / part) for part in _PARTS for path in others)
        return checkpoint if is_there else folder

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        """Load the policy; see `Format.load`."""
        from policy_server.formats.rllib.restoring import load_policy

        return load_policy(files, schema, engine=engine)
