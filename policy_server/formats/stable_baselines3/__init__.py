"""stable-baselines3's own .zip, of PPO, A2C, TRPO, DQN, QRDQN, SAC, TQC, CrossQ, TD3, DDPG and ARS.

Nothing of stable-baselines3, PyTorch or gymnasium is imported, and no code of a file is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from policy_server.formats.stable_baselines3.file_names import (
    DATA_FILE,
    STATISTICS_FILES,
    WEIGHTS_FILE,
)
from policy_server.policy import Policy
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["StableBaselines3Format"]


class StableBaselines3Format:
    """The `Format` of the .zip that stable-baselines3's and sb3-contrib's `model.save` writes."""

    name = "stable-baselines3 policy"
    mark = WEIGHTS_FILE
    library: Engine = "numpy"

    def can_read(self, files: Mapping[str, Path]) -> bool:
        """Return whether the files are the .zip's members; see `Format.can_read`."""
        return DATA_FILE in files and WEIGHTS_FILE in files

    def file_name(self, head: bytes) -> None:
        """Return None: the policy is a zip; see `Format.file_name`."""

    def beside(self, name: str) -> Sequence[str]:  # noqa: ARG002 -- one name for all
        """Return the names of VecNormalize's statistics; see `Format.beside`."""
        return STATISTICS_FILES

    def whole(self, folder: PurePosixPath, paths: Sequence[PurePosixPath]) -> PurePosixPath:  # noqa: ARG002 -- of the format's signature
        """Return the folder itself; see `Format.whole`."""
        return folder

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        """Load the policy; see `Format.load`."""
        from policy_server.formats.stable_baselines3.assembling import load_policy

        return load_policy(files, schema, engine=engine)
