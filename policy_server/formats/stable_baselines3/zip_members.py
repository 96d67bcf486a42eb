"""The policy that stable-baselines3's `model.save` wrote, as data: classes, spaces and weights."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import SPACE_NAMES, Space, read_space
from policy_server.formats.pickles.torch_zip import read_tensors
from policy_server.formats.pickles.unpickling import unpickle
from policy_server.formats.stable_baselines3.file_names import DATA_FILE, WEIGHTS_FILE

__all__ = ["LIBRARY", "SavedPolicy", "class_path", "read_saved_policy"]

_VERSION_FILE = "_stable_baselines3_version"
LIBRARY = re.compile(
    rf"{SPACE_NAMES}|(stable_baselines3|sb3_contrib)\.[\w.]+|torch\.(nn\.modules|optim)\.[\w.]+"
)
_PICKLED = ":serialized:"
_CLASS = re.compile(r"<class '([\w.]+)'>")
_FUNCTION = re.compile(r"<?((?:function|bound method) [\w.<>]+|functools\.partial)")


@dataclass(frozen=True, eq=False)
class SavedPolicy:
    """A policy's description and weights.

    Attributes:
        class_path: the name of its class, such as
            `stable_baselines3.common.policies.ActorCriticPolicy`.
        arguments: the `policy_kwargs` that the class was made with; classes are types of `Stub`.
        observation_space: the space of the observations that the network takes.
        action_space: the space of its actions.
        weights: the tensors by name.
        version: the version of stable-baselines3 that wrote the file.
        has_sde: it explores by noise that depends on the state (gSDE).
        last: the last observation that the policy saw in training; None where it saw none.
        original: the last observation as the environment gave it; None where none was kept.
    """

    class_path: str
    arguments: Mapping[str, Any]
    observation_space: Space
    action_space: Space
    weights: Mapping[str, NDArray[Any]]
    version: str
    has_sde: bool
    last: Any = None
    original: Any = None

    @property
    def class_name(self) -> str:
        """Return the name of its class without the module."""
        return self.class_path.rpartition(".")[2]

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a setting of `policy_kwargs` that is true or false.

        Args:
            name: the setting's.
            default: its value where the file states none.

        Raises:
            ModelError: if it is neither.
        """
        stated = self.arguments.get(name, default)
        return default if stated is None else _flag(stated, f"policy_kwargs: {name}")

    def number(self, name: str, default: float) -> float:
        """Return a setting of `policy_kwargs` that is a number.

        Args:
            name: the setting's.
            default: its value where the file states none.

        Raises:
            ModelError: if it is none, or none that is finite.
        """
        stated = self.arguments.get(name, default)
        if not isinstance(stated, int | float | np.number) or not np.isfinite(stated):
            raise ModelError(
                f"{DATA_FILE}: policy_kwargs: {name}: expected a number, got {str(stated)[:40]!r}; "
                "save the policy anew"
            )
        return float(stated)

    def is_older_than(self, *version: int) -> bool:
        """Return whether an older stable-baselines3 wrote the file; False where it says none.

        Args:
            version: the major and the minor number.
        """
        found = [int(part) for part in re.findall(r"\d+", self.version)[: len(version)]]
        return bool(found) and found < [*version]


def read_saved_policy(files: Mapping[str, Path]) -> SavedPolicy:
    """Read the members of a .zip of stable-baselines3; replay buffers and schedules stay packed.

    Args:
        files: its members by name.

    Raises:
        ModelError: if a member is damaged or names classes of somebody's own.
    """
    data = _Data(files[DATA_FILE])
    policy_class = class_path(data.value("policy_class"))
    if policy_class is None:
        raise ModelError(f"{DATA_FILE}: holds no policy_class; expected what model.save writes")
    arguments = data.value("policy_kwargs") or {}
    if not isinstance(arguments, dict):
        raise ModelError(f"{DATA_FILE}: policy_kwargs: expected a dictionary")
    version = files.get(_VERSION_FILE)
    return SavedPolicy(
        policy_class,
        arguments,
        read_space(data.value("observation_space"), f"{DATA_FILE}: observation_space"),
        read_space(data.value("action_space"), f"{DATA_FILE}: action_space"),
        read_tensors(files[WEIGHTS_FILE]),
        "of another version" if version is None else version.read_text(errors="replace").strip(),
        has_sde=any(
            _flag(value, name)
            for name, value in (
                ("use_sde", data.value("use_sde")),
                ("policy_kwargs: use_sde", arguments.get("use_sde")),
            )
            if value is not None
        ),
        last=data.value("_last_obs"),
        original=data.value("_last_original_obs"),
    )


def _flag(stated: object, subject: str) -> bool:
    is_flag = isinstance(stated, bool | np.bool_) or (type(stated) is int and stated in (0, 1))
    if not is_flag:
        raise ModelError(
            f"{DATA_FILE}: {subject}: expected true or false, got {str(stated)[:40]!r}; save the "
            "policy anew"
        )
    return bool(stated)


def class_path(found: object) -> str | None:
    """Return the name of a class that a pickle stated; None where it is no class.

    Args:
        found: as `unpickle` gave it.
    """
    return getattr(found, "path", None) if isinstance(found, type) else None


class _Data:
    """The member `data`: JSON, with pickles in base64 beside a description of each."""

    def __init__(self, path: Path) -> None:
        """Own the parsed JSON, for one reading.

        Args:
            path: the member.
        """
        try:
            self._parts = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{DATA_FILE}: is no JSON that can be read: {error}") from error
        if not isinstance(self._parts, dict):
            raise ModelError(f"{DATA_FILE}: expected the settings that model.save writes")

    def value(self, key: str) -> Any:  # noqa: ANN401 -- a pickle may hold anything
        """Return a setting; None where there is none."""
        part = self._parts.get(key)
        if not isinstance(part, dict) or _PICKLED not in part:
            return part
        own = next(_own_code(part), None)
        if own is not None:
            raise ModelError(
                f"{DATA_FILE}: {key}: uses {own}, which is not stable-baselines3's own, and no "
                "code of a file is run; train with the library's own classes"
            )
        try:
            content = base64.b64decode(part[_PICKLED])
        except (binascii.Error, TypeError, ValueError) as error:
            raise ModelError(f"{DATA_FILE}: {key}: is damaged: {error}") from error
        return unpickle(content, f"{DATA_FILE}: {key}", library=LIBRARY)


def _own_code(part: Mapping[str, Any]) -> Iterator[str]:
    """Give the classes and functions in the readable description that are not the libraries'."""
    module = part.get("__module__")
    if isinstance(module, str) and not LIBRARY.fullmatch(f"{module}.X"):
        yield f"a class of {module}"
    # A class's own methods stand in its description too.
    is_settings = part.get(":type:") == "<class 'dict'>"
    for key, value in part.items():
        if key.startswith((":", "__")) or not isinstance(value, str):
            continue
        function = _FUNCTION.match(value) if is_settings else None
        if function is not None:
            yield f"{function[1]} as {key}"
        for name in _CLASS.findall(value):
            if "." in name and not LIBRARY.fullmatch(name) and not name.startswith("numpy."):
                yield name
