"""Finding an RLModule in a checkpoint, and reading its description, weights and connectors.

Source: `ray.rllib.utils.checkpoints.Checkpointable`, whose `save_to_path` writes for each part of
an algorithm a folder with `class_and_ctor_args.pkl` and a state, as a pickle or by msgpack_numpy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError, SeveralPoliciesError
from policy_server.formats.pickles.spaces import SPACE_NAMES, Space, read_space
from policy_server.formats.pickles.unpickling import Stub, unpickle

__all__ = [
    "ANY_NAME",
    "Checkpoint",
    "Connector",
    "RlModule",
    "read_checkpoint",
    "refuse_namesakes",
    "unpack_msgpack",
    "weight_of",
]

Array = NDArray[Any]

# cloudpickle writes a person's own functions and classes, which are named and never made.
_LIBRARY = re.compile(
    rf"ray\.rllib\.[\w.]+|torch\.device|torch\.nn\.[\w.]+|{SPACE_NAMES}"
    r"|(ray\.)?cloudpickle\.cloudpickle\.\w+|types\.\w+|builtins\.type"
)
ANY_NAME = re.compile(r"[\w.]+")
_OWN_CLASS = "._make_skeleton_class"
_DESCRIPTION = "class_and_ctor_args.pkl"
# Ray 2.40 gives an RLModule's pickle the ending of PyTorch's files.
_PICKLES = ("pkl", "pt")
_STATES = (*_PICKLES, "msgpack")
_LEARNER = "learner_group"
# A list may state more items than there is memory for.
_MSGPACK_ERRORS = (
    *(ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError, OSError),
    msgpack.UnpackException,
)
_NUMBERS = re.compile(r"[<>|=]?[fiub]\d{1,2}")
# RLlib's own connectors are named by their modules.
_OWN_CONNECTOR = "ray.rllib.connectors."


@dataclass(frozen=True)
class Connector:
    """One piece of a connector pipeline.

    Attributes:
        name: its class, such as `FlattenObservations`.
        settings: the keyword arguments that it was made with.
        state: what it learned in training, where the checkpoint has that.
    """

    name: str
    settings: Mapping[str, Any]
    state: Mapping[Any, Any] | None = None


@dataclass(frozen=True)
class RlModule:
    """An RLModule: the network, and the settings that it was built from.

    Attributes:
        subject: its name for messages, such as `RLModule 'default_policy'`.
        name: its name in the checkpoint; None for one that was saved alone.
        path: the class, with its Python module.
        observation_space: the space that the network takes, after all connectors.
        action_space: the environment's.
        settings: its `model_config`.
        weights: its arrays by name.
        ray_version: the Ray that wrote it; empty where that is not told.
    """

    subject: str
    name: str | None
    path: str
    observation_space: Space
    action_space: Space
    settings: Mapping[str, Any]
    weights: Mapping[str, Array]
    ray_version: str


@dataclass(frozen=True)
class Checkpoint:
    """A policy as RLlib saved it.

    Attributes:
        module: the RLModule.
        env_to_module: the connectors ahead of the network in order; None for an RLModule alone.
        module_to_env: the connectors behind it; None for an RLModule alone.
        environment_space: the environment's own observation space; None where it is not told.
    """

    module: RlModule
    env_to_module: tuple[Connector, ...] | None
    module_to_env: tuple[Connector, ...] | None
    environment_space: Space | None = None


def read_checkpoint(files: Mapping[str, Path], *, name: str | None = None) -> Checkpoint:
    """Read the checkpoint that the files are.

    Args:
        files: the files by their names below the checkpoint's folder.
        name: the RLModule to serve; None for the only one.

    Raises:
        ModelError: if they hold no such RLModule of the new API stack, or are damaged.
    """
    folder = _module_folder(files, name)
    module = _read_module(files, folder)
    parts = folder.parts
    if _LEARNER not in parts:
        return Checkpoint(module, None, None)
    root = PurePosixPath(*parts[: parts.index(_LEARNER)])
    env_to_module = _pipeline_folder(files, root, "env_to_module_connector")
    module_to_env = _pipeline_folder(files, root, "module_to_env_connector")
    return Checkpoint(
        module,
        _read_connectors(files, env_to_module),
        _read_connectors(files, module_to_env),
        _read_environment_space(files, env_to_module),
    )


def _module_folder(files: Mapping[str, Path], name: str | None) -> PurePosixPath:
    """Return the folder of the RLModule of that name, or of the only one."""
    states = [PurePosixPath(name) for name in files]
    folders = {path.parent for path in states if path.stem == "module_state"}
    _check_whole(states, folders)
    # A MultiRLModule's own folder has the folders of its modules in it.
    folders = {one for one in folders if not any(one in other.parents for other in folders)}
    folders = {one for one in folders if _LEARNER in one.parts} or folders
    if not folders:
        raise ModelError(
            "rllib_checkpoint.json: is a checkpoint without a policy: there is no module_state of "
            "an RLModule, and no policy_state of RLlib's old API stack; copy the whole folder"
        )
    refuse_namesakes(folders)
    by_name = {one.name: one for one in folders}
    if name in by_name:
        return by_name[name]
    if len(folders) > 1:
        names = ", ".join(sorted(map(repr, by_name)))
        raise SeveralPoliciesError(
            f"the RLlib checkpoint: holds {len(folders)} RLModules ({names}), and schema.yaml "
            f"{'names none' if name is None else f'names {name!r}'}; write `module: NAME` of the "
            "one to serve at its top",
            sorted(by_name),
        )
    return folders.pop()


def refuse_namesakes(folders: Iterable[PurePosixPath]) -> None:
    """Refuse a checkpoint that holds two policies of one name, of which schema.yaml can name none.

    Args:
        folders: the folders of its policies.

    Raises:
        ModelError: naming both folders.
    """
    known: dict[str, PurePosixPath] = {}
    for one in sorted({*folders}):
        if known.setdefault(one.name, one) != one:
            raise ModelError(
                f"the RLlib checkpoint: {known[one.name]} and {one} are policies of one name; copy "
                "the folder of one checkpoint"
            )


def _check_whole(paths: Iterable[PurePosixPath], folders: Collection[PurePosixPath]) -> None:
    """Refuse a MultiRLModule one of whose modules has a description and no weights."""
    described = {path.parent for path in paths if path.name == _DESCRIPTION}
    for one in sorted(described):
        if one.parent in folders and one not in folders and one != one.parent:
            raise ModelError(
                f"{one}/module_state: is missing beside the RLModule's description; copy the whole "
                "folder"
            )


def _pipeline_folder(
    files: Mapping[str, Path], root: PurePosixPath, name: str
) -> PurePosixPath | None:
    """Return the folder of a connector pipeline; None where the checkpoint has none.

    It lies below the environment runner's, or in the checkpoint itself where all runners were
    remote (`create_local_env_runner=False`). An algorithm that was trained on recorded data alone
    has none.
    """
    runner = root / "env_runner"
    for folder in (runner / name, root / name):
        if str(folder / _DESCRIPTION) in files:
            return folder
    if not _is_offline(files, root):
        raise ModelError(
            f"{runner / name / _DESCRIPTION}: is missing beside the checkpoint's other files; copy "
            "the whole checkpoint"
        )
    return None


def _is_offline(files: Mapping[str, Path], root: PurePosixPath) -> bool:
    """Return whether a checkpoint says that its algorithm had no environment.

    Source: `is_online` and `is_offline` of `ray.rllib.algorithms.algorithm_config`.
    """
    name = str(root / _DESCRIPTION)
    if name not in files:
        return False
    try:
        settings = _read_description(files, name)["ctor_args_and_kwargs"][0][0]
    except (IndexError, KeyError, TypeError, ModelError):
        return False
    if not isinstance(settings, Mapping):
        return False
    source = settings.get("input_")
    first = source[0] if isinstance(source, list) and source else source
    is_recorded = isinstance(first, str) and first != "sampler"
    return not settings.get("_is_online", not is_recorded)


def _read_module(files: Mapping[str, Path], folder: PurePosixPath) -> RlModule:
    name = str(folder / _DESCRIPTION)
    if name not in files:
        raise ModelError(f"{name}: is missing beside the RLModule's weights; copy the whole folder")
    subject = "the RLModule" if folder.name in ("", ".") else f"the RLModule {folder.name!r}"
    described = _read_description(files, name)
    try:
        kind = described["class"]
        values = described["ctor_args_and_kwargs"][1]
        spaces = values["observation_space"], values["action_space"]
        settings = values.get("model_config")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ModelError(
            f"{name}: is not an RLModule's description; save it with Ray 2.40 or later"
        ) from error
    catalog = values.get("catalog_class")
    for found in (kind, catalog):
        if found is not None and not _path_of(found).startswith("ray.rllib."):
            raise ModelError(
                f"{subject}: is made by {_path_of(found)}, which is not RLlib's own, and no code "
                "of a checkpoint is run; train RLlib's default network"
            )
    return RlModule(
        subject,
        folder.name or None,
        _path_of(kind),
        read_space(spaces[0], f"{name}: observation_space"),
        read_space(spaces[1], f"{name}: action_space"),
        _settings_of(settings, name),
        _read_weights(files, folder),
        _ray_version(files, folder),
    )


def _path_of(found: object) -> str:
    """Return the name of a stand-in with its module; of a plain value, its type."""
    if isinstance(found, Stub) and found.path.endswith(_OWN_CLASS) and len(found.arguments) > 1:
        return f"a person's own class {found.arguments[1]}"
    if isinstance(found, Stub) or (isinstance(found, type) and issubclass(found, Stub)):
        return found.path
    return type(found).__name__


def _settings_of(found: object, name: str) -> Mapping[str, Any]:
    """Return a `model_config`: a dictionary, or RLlib's dataclass of all settings."""
    if found is None:
        return {}
    if isinstance(found, Stub) and found.path.endswith(".DefaultModelConfig"):
        return found.state
    if isinstance(found, Mapping):
        return found
    raise ModelError(f"{name}: model_config: expected a dictionary, got {_path_of(found)}")


def _read_weights(files: Mapping[str, Path], folder: PurePosixPath) -> Mapping[str, Array]:
    state = _read_state(files, folder / "module_state")
    weights = {}
    for key, value in state.items():
        weights[str(key)] = weight_of(
            value, f"{folder / 'module_state'}: {key}", "save the checkpoint anew"
        )
    return weights


def weight_of(value: object, subject: str, remedy: str) -> Array:
    """Return a weight as an array of finite numbers.

    Args:
        value: as the file has it.
        subject: the file and the weight's name, for messages.
        remedy: the advice in messages.

    Raises:
        ModelError: if it is none.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ModelError(
            f"{subject}: expected finite numbers, got lists of several lengths; {remedy}"
        ) from error
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        raise ModelError(f"{subject}: expected finite numbers, got {array.dtype}; {remedy}")
    return array


def _ray_version(files: Mapping[str, Path], folder: PurePosixPath) -> str:
    path = files.get(str(folder / "metadata.json"))
    if path is None:
        return ""
    try:
        return str(json.loads(path.read_bytes())["ray_version"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""


def _read_connectors(
    files: Mapping[str, Path], folder: PurePosixPath | None
) -> tuple[Connector, ...] | None:
    """Return the pieces of a pipeline; None where the checkpoint has none."""
    if folder is None:
        return None
    name = str(folder / _DESCRIPTION)
    described = _read_description(files, name)
    try:
        pieces = described["ctor_args_and_kwargs"][1]["connectors"]
        return tuple(
            _connector(files, folder, kind, settings) for kind, _arguments, settings in pieces
        )
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{name}: is not the description of a connector pipeline; save it with Ray 2.40 or "
            "later"
        ) from error


def _read_environment_space(
    files: Mapping[str, Path], folder: PurePosixPath | None
) -> Space | None:
    """Return the observation space that a pipeline begins with; None where it tells none."""
    if folder is None:
        return None
    name = str(folder / _DESCRIPTION)
    try:
        found = _read_description(files, name)["ctor_args_and_kwargs"][0][0]
        return read_space(found, f"{name}: observation_space")
    except (IndexError, KeyError, TypeError, ModelError):
        # Only the parts of an observation are told by it.
        return None


def _connector(
    files: Mapping[str, Path], folder: PurePosixPath, kind: object, settings: Mapping[str, Any]
) -> Connector:
    path = _path_of(kind)
    name = path.rpartition(".")[2] if path.startswith(_OWN_CONNECTOR) else path
    has_state = any(f"{folder / name / 'state'}.{end}" in files for end in _STATES)
    state = _read_state(files, folder / name / "state") if has_state else None
    return Connector(name, settings, state)


def _read_state(files: Mapping[str, Path], path: PurePosixPath) -> Mapping[Any, Any]:
    """Return the dictionary that a state is, from a pickle or from msgpack."""
    pickles = [name for name in (f"{path}.{end}" for end in _PICKLES) if name in files]
    if pickles:
        name = pickles[0]
        state = _read_pickle(files, name)
    else:
        name = f"{path}.msgpack"
        state = unpack_msgpack(files[name].read_bytes(), name)
    if not isinstance(state, Mapping):
        raise ModelError(f"{name}: expected a dictionary, got {type(state).__name__}")
    return state


def _read_description(files: Mapping[str, Path], name: str) -> Any:  # noqa: ANN401 -- see below
    """Return the class of a part, and the arguments that it was made with.

    They may hold a person's own classes and functions, such as the one that maps agents to
    RLModules: stand-ins, as all others are. Those that a policy depends on are refused later, by
    their names.
    """
    try:
        return _read_pickle(files, name)
    except ModelError:
        described = unpickle(files[name].read_bytes(), name, library=ANY_NAME)
        if isinstance(described, Mapping) and "ctor_args_and_kwargs" in described:
            return described
        raise


def unpack_msgpack(content: bytes, subject: str) -> Any:  # noqa: ANN401 -- any value
    """Return the value that msgpack_numpy wrote, with its arrays.

    Args:
        content: the file's bytes.
        subject: the file, for messages.

    Raises:
        ModelError: if it is damaged.
    """
    try:
        return msgpack.unpackb(content, object_hook=_array_of, strict_map_key=False)
    except _MSGPACK_ERRORS as error:
        # Some have no words, such as that of values in values without end.
        reason = str(error) or f"msgpack's {type(error).__name__}"
        raise ModelError(f"{subject}: is damaged: {reason}; save the checkpoint anew") from error


def _read_pickle(files: Mapping[str, Path], name: str) -> Any:  # noqa: ANN401 -- a pickle's content
    return unpickle(files[name].read_bytes(), name, library=_LIBRARY)


def _array_of(item: dict[Any, Any]) -> object:
    """Return the array or number that msgpack_numpy wrote as a dictionary; others as they are."""
    if b"nd" not in item:
        return item
    kind = item[b"type"]
    if not isinstance(kind, str) or not _NUMBERS.fullmatch(kind):
        raise ValueError("an array of something other than numbers")
    values: Array = np.frombuffer(item[b"data"], kind)
    return values.reshape(item[b"shape"]) if item[b"nd"] else values[0]
