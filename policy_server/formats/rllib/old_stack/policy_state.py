"""Finding one policy in a checkpoint of RLlib's old API stack, and reading its state.

Source: `ray.rllib.policy.policy.Policy.export_checkpoint`, which writes `policy_state.pkl` or, by
msgpack_numpy, `policy_state.msgpck`. `Algorithm.save` has one in `policies/NAME/` for each policy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from policy_server.errors import ModelError, SeveralPoliciesError
from policy_server.formats.pickles.spaces import Space
from policy_server.formats.pickles.unpickling import Stub, unpickle
from policy_server.formats.rllib.checkpoint import (
    ANY_NAME,
    refuse_namesakes,
    unpack_msgpack,
    weight_of,
)
from policy_server.formats.rllib.old_stack.written_spaces import read_written_space

__all__ = ["OldPolicy", "is_old_checkpoint", "name_of", "read_policy"]

Array = NDArray[Any]

_STATE = "policy_state"
_KINDS = (".pkl", ".msgpck")
_DESCRIPTION = "rllib_checkpoint.json"
_ALGORITHM = "algorithm_state.pkl"


@dataclass(frozen=True)
class OldPolicy:
    """A policy of the old API stack, as its state describes it.

    Attributes:
        subject: its name for messages, such as `the policy 'default_policy'`.
        name: its name in the checkpoint; None for one that was saved alone.
        path: its class: a name that RLlib knows, such as `PPOTorchPolicy`, or a dotted path.
        ray_version: the Ray that wrote it; empty where that is not told.
        model_space: the space of the observations that the network takes.
        observation_space: the environment's space, ahead of RLlib's preprocessor.
        action_space: the environment's.
        settings: the algorithm's settings, with those of the network under `model`.
        weights: its arrays by name; by position, as text, where the file has no names.
        agent_connectors: the connectors ahead of the network in order, by class and state; None
            where the state has none.
        action_connectors: the same behind the network.
        filters: the observation filters that lie beside the policies, by policy; empty where the
            connectors hold them.
    """

    subject: str
    name: str | None
    path: str
    ray_version: str
    model_space: Space
    observation_space: Space
    action_space: Space
    settings: Mapping[str, Any]
    weights: Mapping[str, Array]
    agent_connectors: tuple[tuple[str, Any], ...] | None
    action_connectors: tuple[tuple[str, Any], ...] | None
    filters: Mapping[str, Any]


def is_old_checkpoint(files: Mapping[str, Path]) -> bool:
    """Return whether the files hold a policy of the old API stack.

    Args:
        files: the files by their names below the checkpoint's folder.
    """
    return any(True for _ in _states(files))


def read_policy(files: Mapping[str, Path], *, name: str | None = None) -> OldPolicy:
    """Read a policy of a checkpoint.

    Args:
        files: the files by their names below the checkpoint's folder.
        name: the policy to serve; None for the only one.

    Raises:
        ModelError: if they hold no such policy, or are damaged.
    """
    path = _choose(list(_states(files)), name)
    found = path.parent.name or None
    subject = "the policy" if found is None else f"the policy {found!r}"
    state = _read(files, path)
    try:
        spec, settings = state["policy_spec"], state["policy_spec"]["config"]
        spaces = spec["observation_space"], spec["action_space"]
        weights = state["weights"]
        kind = spec["policy_class"]
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: is not a policy's state with its settings; save it with Ray 2.3 or later"
        ) from error
    if isinstance(settings, Stub):
        # An AlgorithmConfig, whose attributes they are.
        settings = settings.state
    if not isinstance(settings, Mapping):
        raise ModelError(f"{path}: expected settings, got {name_of(settings)}; save it anew")
    model_space, original = read_written_space(spaces[0], f"{path}: observation_space")
    has_filter = settings.get("observation_filter", "NoFilter") != "NoFilter"
    connectors = _connectors(state, path, "agent")
    return OldPolicy(
        subject,
        found,
        _class_of(kind),
        _ray_version(files, path.parent),
        model_space,
        original,
        read_written_space(spaces[1], f"{path}: action_space")[0],
        settings,
        _arrays(weights, path),
        connectors,
        _connectors(state, path, "action"),
        _filters(files, path) if has_filter and connectors is None else {},
    )


def _states(files: Mapping[str, Path]) -> Iterator[PurePosixPath]:
    for name in files:
        path = PurePosixPath(name)
        if path.stem == _STATE and path.suffix in _KINDS:
            yield path


def _choose(states: list[PurePosixPath], name: str | None) -> PurePosixPath:
    refuse_namesakes(path.parent for path in states)
    by_name = {path.parent.name: path for path in states}
    if name in by_name:
        return by_name[name]
    if len(by_name) > 1:
        names = ", ".join(sorted(map(repr, by_name)))
        raise SeveralPoliciesError(
            f"the RLlib checkpoint: holds {len(by_name)} policies ({names}), and schema.yaml "
            f"{'names none' if name is None else f'names {name!r}'}; write `module: NAME` of the "
            "one to serve at its top",
            sorted(by_name),
        )
    return states[0]


def _read(files: Mapping[str, Path], path: PurePosixPath) -> Mapping[str, Any]:
    content = files[str(path)].read_bytes()
    # The settings name a person's environment, callbacks and functions: each is a stand-in.
    if path.suffix == ".pkl":
        state = unpickle(content, str(path), library=ANY_NAME)
    else:
        state = unpack_msgpack(content, str(path))
    if not isinstance(state, Mapping):
        raise ModelError(f"{path}: expected a dictionary, got {name_of(state)}; save it anew")
    return state


def name_of(found: object) -> str:
    """Return a name that a file states, or that of a stand-in's class with its module.

    Args:
        found: a value of a policy's state.
    """
    if isinstance(found, str):
        return found
    if isinstance(found, Stub) and found.path.endswith("._make_skeleton_class"):
        return f"a person's own class {found.arguments[1]}"
    if isinstance(found, Stub) or (isinstance(found, type) and issubclass(found, Stub)):
        return found.path
    return type(found).__name__


def _class_of(found: object) -> str:
    """Return a policy's class: one of RLlib's by its name alone."""
    path = name_of(found)
    return path.rpartition(".")[2] if path.startswith("ray.rllib.algorithms.") else path


def _ray_version(files: Mapping[str, Path], folder: PurePosixPath) -> str:
    """Return the version of Ray by the description beside the state, or by the algorithm's."""
    for place in (folder, folder.parent.parent):
        try:
            return str(json.loads(files[str(place / _DESCRIPTION)].read_bytes())["ray_version"])
        except (KeyError, TypeError, ValueError, RecursionError):
            continue
    return ""


def _arrays(found: object, path: PurePosixPath) -> Mapping[str, Array]:
    """Return the weights by name; TensorFlow's eager policies have a list of them."""
    if isinstance(found, Mapping):
        items = {str(name): value for name, value in found.items()}
    elif isinstance(found, list | tuple):
        items = {str(place): value for place, value in enumerate(found)}
    else:
        raise ModelError(f"{path}: weights: expected arrays by name, got {name_of(found)}")
    weights = {}
    for name, value in items.items():
        weights[name] = weight_of(
            value, f"{path}: weights: {name}", "save an earlier state of the policy"
        )
    return weights


def _connectors(
    state: Mapping[str, Any], path: PurePosixPath, pipeline: str
) -> tuple[tuple[str, Any], ...] | None:
    """Return class and state of a pipeline's connectors; None where there is no pipeline."""
    try:
        found = (state.get("connector_configs") or {}).get(pipeline)
        return None if found is None else tuple((str(name), own) for name, own in found[1])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: connector_configs: is no pipeline of connectors; save it anew"
        ) from error


def _filters(files: Mapping[str, Path], path: PurePosixPath) -> Mapping[str, Any]:
    """Return the filters by policy, which Ray before 2.5 keeps in the algorithm's state."""
    name = str(path.parent.parent.parent / _ALGORITHM)
    if name not in files:
        return {}
    state = unpickle(files[name].read_bytes(), name, library=ANY_NAME)
    worker = state.get("worker") if isinstance(state, Mapping) else None
    filters = worker.get("filters") if isinstance(worker, Mapping) else None
    return filters if isinstance(filters, Mapping) else {}
