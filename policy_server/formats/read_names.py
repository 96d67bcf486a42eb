"""The names of the files that the formats read in a policy's folder."""

from __future__ import annotations

from pathlib import PurePosixPath

__all__ = ["is_read"]

# TensorFlow SavedModels, the zips of stable-baselines3 and Keras. What a format reads only beside
# another file of these, such as `data` beside policy.pth, need not be here.
_IN_FOLDER = frozenset(
    (
        "saved_model.pb",
        *("policy.pth", "_stable_baselines3_version", "vec_normalize.pkl", "vecnormalize.pkl"),
        *("model.weights.h5", "metadata.json"),
    )
)
_VARIABLES = "variables/variables."
# ONNX models, their weights and descriptions.
_ONNX_ENDS = (".onnx", ".onnx_data", ".data", ".bin", ".yaml", ".yml")
# RLlib's checkpoints, in each of their folders.
_RLLIB_STEMS = frozenset(
    ("algorithm_state", "class_and_ctor_args", "module_state", "policy_state", "state")
)
_RLLIB_ENDS = frozenset((".pkl", ".pt", ".msgpack", ".msgpck"))
_RLLIB_DESCRIPTIONS = frozenset(("rllib_checkpoint.json", "metadata.json"))


def is_read(name: str) -> bool:
    """Return whether a format would read a file that is added to a policy's folder, by its name.

    Examples are `vec_normalize.pkl`, and `saved_model.pb` of another policy; README.txt, Thumbs.db
    and files in `__pycache__/` are not read.

    Args:
        name: the file's path below the folder.
    """
    path = PurePosixPath(name)
    if path.name in _RLLIB_DESCRIPTIONS:
        return True
    if path.suffix in _RLLIB_ENDS and path.stem in _RLLIB_STEMS:
        return True
    if name.startswith(_VARIABLES):
        return True
    return path.name == name and (name in _IN_FOLDER or name.endswith(_ONNX_ENDS))
