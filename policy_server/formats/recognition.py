"""Recognising a file by its first bytes or by its members' names, so that a refusal can name it."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from policy_server.files.archives import is_bounded, is_cut_off, is_zip
from policy_server.files.regular import open_file
from policy_server.formats.torch_files import (
    PROGRAM,
    SCRIPT,
    describe_tensors,
    describe_torch_file,
    is_torch_program,
    is_torch_script,
)

__all__ = ["ONNX_HEAD", "describe_file", "describe_names"]

_HEAD_BYTES = 512
_MOST_SETTINGS_BYTES = 16 * 1024 * 1024
_WEB_PAGE = re.compile(rb"\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)\b", re.I | re.S)
# ONNX's ModelProto starts with its field ir_version, and the producer's name or the graph follows.
ONNX_HEAD = re.compile(rb"\x08[\x03-\x14](\x12|\x3a|\x42)", re.S)
_SAFETENSORS = re.compile(rb".{6}\x00\x00\{\s*\"", re.S)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_TAR_MARK_AT = 257
_REPACK = "unpack it, and pack the policy's folder as a zip: `zip -r policy.zip FOLDER`"
_CUT_OFF = "a zip that was cut off or is damaged; copy it again"
_HEADS: Mapping[bytes, str] = {
    b"version https://git-lfs": "a Git LFS pointer; get the file itself with `git lfs pull`",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, such as Keras's weights without their network; give the "
    ".keras file that Keras 3's `model.save` writes, or the SavedModel of `model.export(FOLDER)`",
    b"\x1f\x8b": f"a gzip archive, such as a .tar.gz; {_REPACK}",
    b"BZh": f"a bzip2 archive; {_REPACK}",
    b"\xfd7zXZ\x00": f"an xz archive; {_REPACK}",
    b"7z\xbc\xaf\x27\x1c": f"a 7z archive; {_REPACK}",
    b"Rar!": f"a rar archive; {_REPACK}",
    b"\x28\xb5\x2f\xfd": f"a zstd archive; {_REPACK}",
    b"PK\x03\x04": _CUT_OFF,
    # Its first pickle is a number that tells PyTorch its own files.
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": "a PyTorch file of the kind before 1.6; "
    f"{describe_tensors(b'').partition('; ')[2]}",
}
_CODE = "a pickle, which could run any code"
_PATTERNS: Mapping[re.Pattern[bytes], str] = {
    _WEB_PAGE: "a web page; the address asks for a login, or shows the file instead of giving it",
    re.compile(
        rb"\s*(<\?xml.*?>\s*)?<Error>", re.S
    ): "an error page of a store; the address or the credentials are wrong",
    re.compile(rb"\s*[{\[]\s*[\"{\]}]"): "a JSON text, such as an error page or a model's settings",
    ONNX_HEAD: "an ONNX model",
    re.compile(
        rb".{4}TFL3", re.S
    ): "a TensorFlow Lite model; give the SavedModel that it was made of",
    _SAFETENSORS: "a safetensors file: weights without their network; "
    f"{describe_tensors(b'').partition('; ')[2]}",
    re.compile(rb"[\x80-\x8f\xde\xdf].{0,4}[\xa5\xa6](params|model)", re.S): "Flax's msgpack of "
    "weights, without their network",
    re.compile(rb"\x80[\x02-\x05].*vec_normalize", re.S): "VecNormalize's statistics; put them as "
    "vec_normalize.pkl beside the .zip of their policy",
    re.compile(rb"\x80[\x02-\x05].*(class_and_ctor_args|ctor_args_and_kwargs|rllib)", re.S): "one "
    "pickle of an RLlib checkpoint; give the whole folder",
    re.compile(rb"\x80[\x02-\x05].*joblib", re.S): f"a joblib file: {_CODE}",
    re.compile(rb"x[\x01\x5e\x9c\xda]", re.S): f"a zlib stream, such as joblib's: {_CODE}",
    _PICKLE: f"{_CODE}; give the training library's own checkpoint",
}
# stable-baselines3 names the policy's class, whose module is the algorithm's for most.
_ALGORITHMS = {
    name.lower(): name for name in ("ARS", "CrossQ", "DQN", "QRDQN", "SAC", "TD3", "TQC")
} | {"maskable": "MaskablePPO", "recurrent": "RecurrentPPO"}


def describe_file(path: Path) -> str | None:
    """Return a phrase that names a file by its contents, such as `a stable-baselines3 PPO`.

    No pickle is read, nothing is unpacked.

    Args:
        path: the file, of any size.

    Returns:
        The phrase, with a remedy where there is one; None for a file that can't be told.

    Raises:
        ModelError: if the disk fails to give what tells a zip.
    """
    try:
        with open_file(path) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    if not head:
        return "an empty file"
    if is_zip(path):
        return _describe_zip(path)
    for start, phrase in _HEADS.items():
        if head.startswith(start):
            return phrase
    if head[_TAR_MARK_AT:].startswith(b"ustar"):
        return f"a tar archive; {_REPACK}"
    return next((phrase for pattern, phrase in _PATTERNS.items() if pattern.match(head)), None)


def describe_names(names: Collection[str]) -> str | None:
    """Return a phrase that names an archive or folder by its members, such as `a Keras file`.

    Args:
        names: its files, such as `config.json`, below the archive's root or the folder.

    Returns:
        The phrase; None for members that can't be told.
    """
    known = set(names)
    # PyTorch puts its members in a folder that is named after the file, as does whoever zips one.
    while len({name.partition("/")[0] for name in known}) == 1 and all("/" in n for n in known):
        known = {name.partition("/")[2] for name in known}
    return next((phrase for phrase, is_it in _MEMBERS.items() if is_it(known)), None)


def _has(*names: str) -> Callable[[Collection[str]], bool]:
    return lambda known: all(name in known for name in names)


def _has_state(known: Collection[str]) -> bool:
    return "class_and_ctor_args.pkl" in known and ("state.pkl" in known or "state.msgpack" in known)


def _is_orbax(known: Collection[str]) -> bool:
    marks = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
    return any(name.rpartition("/")[2] in marks for name in known)


def _is_onnx(known: Collection[str]) -> bool:
    return any(name.endswith(".onnx") for name in known)


def _is_tensorflow_checkpoint(known: Collection[str]) -> bool:
    return any(name.endswith(".index") for name in known) and any(
        ".data-0" in name for name in known
    )


def _lacks_network(known: Collection[str]) -> bool:
    """Return whether it is stable-baselines3's `model.save` without the weights of PyTorch.

    SBX, which has networks of JAX, writes it so.
    """
    marks = ("_stable_baselines3_version", "system_info.txt", "pytorch_variables.pth")
    return "data" in known and "policy.pth" not in known and any(name in known for name in marks)


_MEMBERS: Mapping[str, Callable[[Collection[str]], bool]] = {
    "a TensorFlow SavedModel": _has("saved_model.pb"),
    "a stable-baselines3 policy": _has("data", "policy.pth"),
    "a policy of stable-baselines3 without its policy.pth; save it again; if it is SBX's, whose "
    "network of JAX is pickled among its settings, train it with stable-baselines3, or write its "
    "actor as a SavedModel by `jax2tf`": _lacks_network,
    "a policy of Stable Baselines 2: weights without their network; load it there, and write its "
    "action probabilities or its action as a SavedModel by "
    "`tf.compat.v1.saved_model.simple_save`": _has("data", "parameters", "parameter_list"),
    "an RLlib policy of the old API stack": _has("rllib_checkpoint.json", "policy_state.pkl"),
    "an RLlib checkpoint": _has("rllib_checkpoint.json"),
    "an RLlib module": lambda known: any("module_state." in name for name in known),
    "the folder of the optimizer or of the environment runner in an RLlib checkpoint, without the "
    "network; give the whole checkpoint": _has_state,
    SCRIPT: is_torch_script,
    PROGRAM: is_torch_program,
    describe_tensors(b""): _has("data.pkl"),
    "a Keras model": _has("config.json", "model.weights.h5"),
    "an ONNX model": _is_onnx,
    "a TensorFlow checkpoint: weights without their network": _is_tensorflow_checkpoint,
    "an Orbax checkpoint of JAX: weights without their network": _is_orbax,
    "an archive of NumPy arrays: weights without their network": lambda known: (
        bool(known) and all(name.endswith(".npy") for name in known)
    ),
}


_ZIP_ERRORS = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


def _describe_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            if is_cut_off(archive, path):
                return _CUT_OFF
            names = archive.namelist()
            if {"data", "policy.pth"} <= set(names):
                return f"a stable-baselines3 {_algorithm_in(archive)}"
            return describe_torch_file(archive) or describe_names(names) or _describe_inner(names)
    except _ZIP_ERRORS:
        return None


def _describe_inner(names: Collection[str]) -> str | None:
    """Return a phrase for a zip of zips, which is not unpacked twice."""
    inner = next((name for name in names if name.lower().endswith(".zip")), None)
    return None if inner is None else f"a zip that holds the zip {inner!r}; unzip it once"


def _algorithm_in(archive: zipfile.ZipFile) -> str:
    """Return the algorithm of a stable-baselines3 policy, or `policy` where it can't be told."""
    member = archive.getinfo("data")
    if member.file_size > _MOST_SETTINGS_BYTES or not is_bounded(member):
        return "policy"
    try:
        data = json.loads(archive.read("data"))
        module = data["policy_class"]["__module__"]
    except (ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile):
        return "policy"
    for part in str(module).split("."):
        if part in _ALGORITHMS:
            return _ALGORITHMS[part]
    if "cg_max_steps" in data:
        return "TRPO"
    return "PPO" if "clip_range" in data else "A2C" if "n_steps" in data else "policy"
