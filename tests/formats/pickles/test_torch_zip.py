"""The tensors of files that PyTorch wrote, read without it."""

from __future__ import annotations

import copy
import os
import pickle
import random
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.pickles.torch_zip import read_tensors
from tests.support.audit import audited
from tests.support.folders import ROOT

POLICY = ROOT / "tests" / "data" / "policies" / "sb3_ppo_gsde" / "policy.zip"
Members = dict[str, bytes]
HUGE = (2**70).to_bytes(9, "little")


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


def _of_dimensions(size: bytes, count: int) -> Callable[[Members], Members]:
    def changed(members: Members) -> Members:
        content = members["archive/data.pkl"]
        shape, strides = b"K K\x06\x86", b"K\x06K\x01\x86"
        assert content.index(shape) < content.index(strides)
        content = content.replace(shape, b"(" + size * count + b"t", 1)
        content = content.replace(strides, b"(" + b"K\x00" * count + b"t", 1)
        return members | {"archive/data.pkl": content}

    return changed


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
        # The product of the first took a minute.
        (_of_dimensions(b"J\xff\xff\xff\x7f", 80_000), "lies outside of its storage"),
        (_of_dimensions(b"K\x01", 33), "lies outside of its storage"),
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


@pytest.mark.parametrize("name", ["archive/data/0", "archive/version", "archive/byteorder"])
def test_member_that_is_there_twice_is_refused(tmp_path: Path, name: str) -> None:
    """Readers differ in the one that counts, so that two of them would serve two policies."""
    members = members_of(tmp_path)
    path = written(members, tmp_path / "new.pth")
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
        for _ in range(2 if name not in members else 1):
            archive.writestr(name, members.get(name, b"little"))

    with pytest.raises(ModelError, match=f"^new\\.pth: [^\n]*has the member '{name}' 2 times"):
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


def _described(tensors: Mapping[str, tuple[bytes, ...]]) -> bytes:
    """Return a description of tensors: each of a storage, an offset, a shape and strides."""
    parts = [b"\x80\x02}"]
    for name, (storage, *places) in tensors.items():
        parts += [b"X", len(name).to_bytes(4, "little"), name.encode()]
        parts += [b"ctorch._utils\n_rebuild_tensor_v2\n(", storage, *places, b"tRs"]
    return b"".join([*parts, b"."])


def _storage(key: bytes, size: int, kind: bytes = b"FloatStorage") -> bytes:
    key_text = b"X" + len(key).to_bytes(4, "little") + key
    where = b"X\x03\x00\x00\x00cpuJ" + size.to_bytes(4, "little")
    return b"(X\x07\x00\x00\x00storagectorch\n%b\n%b%btQ" % (kind, key_text, where)


def test_tensors_that_copy_one_storage_many_times_are_refused(tmp_path: Path) -> None:
    size = 250_000
    place = (
        _storage(b"0", size),
        b"K\x00",
        b"J" + size.to_bytes(4, "little") + b"\x85",
        b"K\x01\x85",
    )
    shared = {f"part {number}": place for number in range(4)}
    many = {f"part {number}": place for number in range(1000)}
    content = bytes(4 * size)

    good = {"archive/data.pkl": _described(shared), "archive/data/0": content}
    assert len(read_tensors(written(good, tmp_path / "good.pth"))) == 4
    bad = {"archive/data.pkl": _described(many), "archive/data/0": content}
    with pytest.raises(ModelError, match="more than 8 tensors of the same numbers"):
        read_tensors(written(bad, tmp_path / "new.pth"))


@pytest.mark.parametrize(
    ("storage", "place"),
    [
        (_storage(b"0", 4), (b"K\x00", b"K\x04", b"K\x01")),
        (_storage(b"0", 4), (b"N", b"K\x04\x85", b"K\x01\x85")),
        (_storage(b"0", 4), (b"K\x00", b"J\xff\xff\xff\x7f\x85", b"K\x00\x85")),
        (_storage(b"0", 4), (b"K\x00", b"J\xff\xff\xff\xff\x85", b"K\x01\x85")),
        (_storage(b"0", 0), (b"K\x00", b"(\x8a\x09%bK\x00t" % HUGE, b"(K\x00K\x01t")),
        (_storage(b"0", 2**30), (b"K\x00", b"K\x04\x85", b"K\x01\x85")),
        (_storage(b"../data.pkl", 4), (b"K\x00", b"K\x04\x85", b"K\x01\x85")),
        (_storage(b"0", 4, b"UntypedStorage"), (b"K\x00", b"K\x04\x85", b"K\x01\x85")),
        (b"NQ", (b"K\x00", b"K\x04\x85", b"K\x01\x85")),
        (_storage(b"0", 4), ()),
    ],
)
def test_tensor_that_states_anything_is_refused_in_one_line(
    storage: bytes, place: tuple[bytes, ...], tmp_path: Path
) -> None:
    members = {
        "archive/data.pkl": _described({"x": (storage, *place)}),
        "archive/data/0": bytes(16),
    }

    with pytest.raises(ModelError, match=r"^new\.pth: [^\n]+$"):
        read_tensors(written(members, tmp_path / "new.pth"))


def test_members_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    """A storage of a megabyte that a hundred names in the archive's directory lead to."""
    names = [str(number) for number in range(100)]
    content = bytes(1 << 20)
    tensors = {
        name: (_storage(name.encode(), 4), b"K\x00", b"K\x04\x85", b"K\x01\x85") for name in names
    }
    path = tmp_path / "new.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _described(tensors))
        archive.writestr("archive/data/0", content)
        first = archive.getinfo("archive/data/0")
        for name in names[1:]:
            other = copy.copy(first)
            other.filename = f"archive/data/{name}"
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other

    with pytest.raises(ModelError, match=r"^new\.pth: [^\n]*(over each other|[Oo]verlap|differ)"):
        read_tensors(path)


def test_any_damage_is_one_line_or_harmless(tmp_path: Path) -> None:
    """A few hundred files with changed bytes; the seed is fixed."""
    members_of(tmp_path)
    good = (tmp_path / "policy.pth").read_bytes()
    chance = random.Random(7)  # noqa: S311 -- no secret is drawn
    refused = 0

    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path = tmp_path / "new.pth"
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        with audited() as events:
            try:
                read_tensors(path)
            except ModelError as error:
                assert "\n" not in error.message  # noqa: PT017 -- many files pass
                refused += 1
        assert [event for event in events if str(path) not in event] == []

    assert 100 < refused < 300
