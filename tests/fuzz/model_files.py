"""Model files of every format with changes that nobody means: loaded, or refused in one line.

Nothing is written but the unpacked folder, which is there whole or not at all; nothing runs.
"""

from __future__ import annotations

import base64
import io
import json
import pickletools
import random
import resource
import shutil
import stat
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from policy_server.errors import PolicyServerError
from policy_server.formats import load_policy
from policy_server.formats.unpacking import unpack_model
from policy_server.policy import Policy, PolicyInputs
from tests.fuzz.schema_texts import is_clear
from tests.support.folders import ROOT
from tests.support.hostile import ATTACKS, BOMBS
from tests.support.library_policies import POLICIES

__all__ = ["SOURCES", "changed", "end_of", "load_files", "zipped"]

_MOST_BYTES = 64 << 20
_LONGEST_S = 20.0
_MOST_GROWTH = 1 << 30
_LARGEST_SOURCE = 200_000
SOURCES: dict[str, Sequence[Path]] = {
    "stable-baselines3": sorted(POLICIES.glob("sb3_*/policy.zip")),
    "RLlib": sorted(POLICIES.glob("rllib_*/*.zip")),
    "ONNX": sorted(POLICIES.glob("onnx_*/policy.onnx")),
    "Keras": sorted(POLICIES.glob("keras_*/*.keras")),
}
Change = Callable[[bytes, random.Random], bytes]


def _cut(content: bytes, choose: random.Random) -> bytes:
    return content[: choose.randrange(len(content) + 1)]


def _flipped(content: bytes, choose: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(choose.choice([1, 1, 2, 4, 16]) if changed else 0):
        changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
    return bytes(changed)


def _moved(content: bytes, choose: random.Random) -> bytes:
    """Return content with a part doubled, missing, zeroed or of other bytes."""
    at, size = choose.randrange(len(content) + 1), choose.choice([1, 4, 8, 64, 4096])
    part = content[at : at + size]
    new = choose.choice([b"", part * 2, bytes(len(part)), b"\xff" * len(part), part[::-1]])
    return content[:at] + new + content[at + size :]


def _grown(content: bytes, choose: random.Random) -> bytes:
    """Return content with a length or number that is huge: of protobuf, msgpack, pickle, HDF5."""
    at = choose.randrange(len(content) + 1)
    huge = choose.choice(
        [
            *(b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", b"\xff\xff\xff\x7f"),
            *(b"\xdd\xff\xff\xff\xff", (1 << 40).to_bytes(8, "little"), b"\x80" * 12),
        ]
    )
    return content[:at] + huge + content[at + len(huge) :]


def _hostile(_content: bytes, choose: random.Random) -> bytes:
    """Return a pickle that calls or fills something."""
    attacks = choose.choice(list(ATTACKS.values()))
    return choose.choice([choose.choice(attacks), choose.choice(list(BOMBS.values()))])


def _operations(content: bytes, choose: random.Random) -> bytes:
    """Return a pickle with some operations less, more, or in other places."""
    try:
        starts = [start for _, _, start in pickletools.genops(content) if start is not None]
    except ValueError:
        return _moved(content, choose)
    ends = [*starts[1:], len(content)]
    parts = [content[start:end] for start, end in zip(starts, ends, strict=True)]
    for _ in range(choose.choice([1, 1, 2, 4, 8])):
        at, other = choose.randrange(len(parts)), choose.choice(parts)
        parts[at] = choose.choice([b"", parts[at] * 2, other, choose.choice(_PLAIN), parts[at]])
        if choose.random() < 0.1:
            parts[at] += choose.choice(choose.choice(list(ATTACKS.values())))[2:-1]
    return b"".join(parts)


_PLAIN = [
    b"N",
    b"K\x01",
    b"]",
    b"}",
    b")",
    b"J\xff\xff\xff\xff",
    b"\x88",
    b"G" + b"\x7f\xf8" * 4,
    b"0",
]
_PICKLED = ":serialized:"


def _json(content: bytes, choose: random.Random) -> bytes:
    """Return JSON with other values, in its pickles too; other content as it is changed else."""
    try:
        document = json.loads(content)
    except ValueError:
        return _flipped(content, choose)
    places = list(_places(document)) if isinstance(document, dict | list) else []
    pickles = [place for place in places if place[1] == _PICKLED]
    for _ in range(choose.choice([1, 1, 2]) if places else 0):
        holder, key = choose.choice(pickles if pickles and choose.random() < 0.7 else places)
        if key == _PICKLED and isinstance(holder[key], str) and choose.random() < 0.8:
            content = base64.b64decode(holder[key])
            content = choose.choice([_operations, _operations, _hostile])(content, choose)
            holder[key] = base64.b64encode(content).decode()
        else:
            holder[key] = choose.choice(_VALUES)
    return json.dumps(document).encode()


_VALUES: list[Any] = [
    *(None, True, 0, -1, 10**30, 1e308, float("nan"), "", "x", "a" * 5000, "../x", "/etc/passwd"),
    *([], {}, [[]], [None], [0], [-1, 2**40], {"a": 1}, {":type:": "x", ":serialized:": "gASVAAA"}),
]


def _places(found: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401 -- anything of JSON
    items: list[tuple[Any, Any]] = []
    for key in list(found) if isinstance(found, dict) else range(len(found)):
        items.append((found, key))
        if isinstance(found[key], dict | list):
            items.extend(_places(found[key]))
    return items


_CHANGES: list[Change] = [_cut, _flipped, _flipped, _moved, _grown, _json]


def _inside(content: bytes, choose: random.Random) -> bytes:
    """Return an archive in which one file is another, and whose checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = choose.choice([name for name in members if not name.endswith("/")])
    inner = members[name]
    if inner[:4] == b"PK\x03\x04" and choose.random() < 0.8:
        members[name] = _inside(inner, choose)
    else:
        of_pickles = [_hostile] * 2 + [_operations] * 8 if name.endswith(".pkl") else [_hostile]
        members[name] = choose.choice([*_CHANGES, *of_pickles])(inner, choose)
    return zipped(members)


def zipped(members: dict[str, bytes]) -> bytes:
    """Return an archive of files."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, item in members.items():
            archive.writestr(name, item)
    return written.getvalue()


_NAMES = [
    *("../canary", "/canary", "a/../../canary", "..\\canary", "C:\\canary", "\\\\host\\canary"),
    *("a\x00b", "a" * 300, "/".join("a" * 200), "\x1b[31m", "\u202ename", "a\nb", "CON", " ", "."),
    *("", "/", "policy.pth", "POLICY.PTH", "saved_model.pb", "Saved_Model.pb", "models/x", "~/x"),
    *(".source-sha256", "policy.onnx", "rllib_checkpoint.json", "config.json", "\udcff"),
]
_KINDS = [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR]


def _archived(content: bytes, choose: random.Random) -> bytes:
    """Return an archive with a member of any name, kind, size or way of packing."""
    written = io.BytesIO(content)
    with zipfile.ZipFile(written, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        info = zipfile.ZipInfo(choose.choice([*_NAMES, choose.choice(archive.namelist())]))
        info.filename = choose.choice([info.filename, choose.choice(_NAMES)])
        if choose.random() < 0.4:
            info.external_attr = (choose.choice(_KINDS) | 0o777) << 16
        info.compress_type = choose.choice([0, 8, 8, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
        inner = choose.choice([b"x", b"/etc/passwd", bytes(1 << 20), content, b""])
        try:
            archive.writestr(info, inner)
        except (UnicodeEncodeError, IndexError):
            return _flipped(content, choose)
    return written.getvalue()


def _listed(content: bytes, choose: random.Random) -> bytes:
    """Return an archive whose list of members lies: sizes, offsets, flags, methods, checksums."""
    changed = bytearray(content)
    start = int.from_bytes(changed[-6:-2], "little")
    end = len(changed)
    for _ in range(choose.choice([1, 2, 4])):
        at = choose.randrange(min(start, end - 1), end)
        changed[at] = choose.choice([0, 1, 0xFF, choose.randrange(256)])
    return bytes(changed)


_OF_ARCHIVES: list[Change] = [*[_inside] * 8, _archived, _archived, _listed]


def changed(content: bytes, choose: random.Random) -> bytes:
    """Return a file with other bytes; of an archive, also with other members."""
    is_archive = content[:4] == b"PK\x03\x04"
    return choose.choice([*_CHANGES, *(_OF_ARCHIVES if is_archive else _CHANGES)])(content, choose)


def load_files(cases: int, seed: int, *, formats: Sequence[str] = tuple(SOURCES)) -> Counter[str]:
    """Load many changed files, as a start would.

    Returns:
        How many of each format were loaded, and how many refused.
    """
    choose = random.Random(seed)  # noqa: S311 -- reproducible files, no secret
    ends: Counter[str] = Counter()
    for number in range(cases):
        form = choose.choice(formats)
        source = choose.choice(
            [path for path in SOURCES[form] if path.stat().st_size < _LARGEST_SOURCE]
        )
        content = changed(source.read_bytes(), choose)
        ends[end_of(form, content, source, (seed, number))] += 1
    return ends


def end_of(
    form: str,
    content: bytes,
    source: Path,
    case: tuple[int, int],
    *,
    longest_s: float = _LONGEST_S,
) -> str:
    """Return whether a file is loaded or refused, and hold that it is one of both.

    Args:
        form: the name of its format, which the end begins with.
        content: the file's.
        source: the file that it was made of.
        case: seed and number, for messages.
        longest_s: the CPU time that it may take.
    """
    where = (*case, str(source.relative_to(ROOT)))
    with TemporaryDirectory(prefix="models-") as folder:
        began, peak = time.process_time(), _peak()
        refused = _refusal(content, source, Path(folder) / "home" / "in" / source.name)
        took = time.process_time() - began
        assert refused is None or is_clear(refused.replace(folder, "")), (where, refused)
        left = {path.name for path in Path(folder).rglob("*") if "models" not in path.parts}
        beside = {path.name for path in source.parent.glob("policy.onnx.data")}
        assert left <= {"home", "in", source.name, ".models.lock", *beside}, (where, left)
    assert took < longest_s, (where, took)
    assert _peak() - peak < _MOST_GROWTH, where
    return f"{form} {'loaded' if refused is None else 'refused'}"


def _refusal(content: bytes, source: Path, path: Path) -> str | None:
    """Return the line that refuses a model's file; None where it is loaded, and answers."""
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    for beside in source.parent.glob("policy.onnx.data"):
        shutil.copyfile(beside, path.parent / beside.name)
    models = path.parent / "models"
    try:
        unpack_model(path, models, max_bytes=_MOST_BYTES)
    except PolicyServerError as error:
        assert not models.exists(), "half of it was unpacked"
        return error.message
    try:
        _answer(load_policy(models))
    except PolicyServerError as error:
        return error.message
    return None


def _answer(policy: Policy) -> None:
    """Hold that a policy answers two rows, as a start asks it."""
    state = np.zeros((2, policy.signature.memory_width), np.float32)
    policy.infer(
        PolicyInputs.of(
            np.ones((2, policy.signature.observation_width or 3), np.float32),
            is_deterministic=True,
            seeds=np.full(2, -1),
            state=state if policy.signature.memory else None,
        )
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
