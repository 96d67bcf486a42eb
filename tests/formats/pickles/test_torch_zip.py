"""The tensors of files that PyTorch wrote, read without it."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.pickles.torch_zip import read_tensors
from tests.support.folders import ROOT

POLICY = ROOT / "tests" / "data" / "policies" / "sb3_ppo_gsde" / "policy.zip"
Members = dict[str, bytes]


def members_of(folder: Path) -> Members:
    """Return the members of a real file."""
    with zipfile.ZipFile(POLICY) as archive:
        archive.extract("policy.pth", folder)
    with zipfile.ZipFile(folder / "policy.pth") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(members: Members, path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    """Write a file of these members."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_tensors_are_read_by_name(tmp_path: Path) -> None:
    members_of(tmp_path)

    tensors = read_tensors(tmp_path / "policy.pth")

    assert tensors["mlp_extractor.policy_net.0.weight"].shape == (32, 6)
    assert tensors["log_std"].shape == (32, 2)
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


def _without_storage(members: Members) -> Members:
    return {name: part for name, part in members.items() if name != "archive/data/0"}


def _short_storage(members: Members) -> Members:
    return members | {"archive/data/0": members["archive/data/0"][:8]}


def _beyond_storage(members: Members) -> Members:
    # The shape (32, 6) of the first layer becomes (99, 6).
    content = members["archive/data.pkl"]
    assert content.count(b"K K\x06\x86") == 2
    return members | {"archive/data.pkl": content.replace(b"K K\x06\x86", b"KcK\x06\x86")}


def _big_endian(members: Members) -> Members:
    return members | {"archive/byteorder": b"big"}


def _no_tensors(members: Members) -> Members:
    return members | {"archive/data.pkl": pickle.dumps([1, 2])}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_without_storage, "lacks the storage 0"),
        (_short_storage, "buffer is smaller than requested size"),
        (_beyond_storage, "lies outside of its storage"),
        (_big_endian, "big-endian"),
        (_no_tensors, "holds a list, not tensors by name"),
        (lambda _: {"x": b""}, re.escape("has 0 files data.pkl")),
    ],
)
def test_damaged_file_is_refused_in_one_line(
    change: Callable[[Members], Members], expected: str, tmp_path: Path
) -> None:
    path = written(change(members_of(tmp_path)), tmp_path / "new.pth")

    with pytest.raises(ModelError, match=rf"^new\.pth: [^\n]*{expected}"):
        read_tensors(path)


def test_packed_members_are_refused(tmp_path: Path) -> None:
    path = written(members_of(tmp_path), tmp_path / "new.pth", zipfile.ZIP_DEFLATED)

    with pytest.raises(ModelError, match="packed members"):
        read_tensors(path)


class _Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self._made = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self._made


def test_hostile_description_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    hostile = pickle.dumps({"log_std": _Calls(os.mkdir, str(target))})
    path = written(members_of(tmp_path) | {"archive/data.pkl": hostile}, tmp_path / "new.pth")

    with pytest.raises(ModelError, match=r"^new\.pth: data\.pkl: names posix\.mkdir, a class"):
        read_tensors(path)

    assert not target.exists()
