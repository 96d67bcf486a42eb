"""Files named by their contents: real ones of the libraries, and heads that are written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from policy_server.formats.recognition import describe_file, describe_names
from tests.support.folders import ROOT
from tests.support.zips import zip_of

POLICIES = ROOT / "tests" / "data" / "policies"


@pytest.mark.parametrize("folder", ["sb3_ppo_vecnorm", "sb3_v18_ppo_discrete"])
def test_real_policy_of_stable_baselines3_is_named_by_its_algorithm(folder: str) -> None:
    assert describe_file(POLICIES / folder / "policy.zip") == "a stable-baselines3 PPO"


@pytest.mark.parametrize(
    ("module", "settings", "name"),
    [
        ("stable_baselines3.common.policies", {"n_steps": 5}, "A2C"),
        ("stable_baselines3.common.policies", {"cg_max_steps": 5, "n_steps": 1}, "TRPO"),
        ("stable_baselines3.sac.policies", {}, "SAC"),
        ("sb3_contrib.qrdqn.policies", {}, "QRDQN"),
        ("sb3_contrib.common.maskable.policies", {"clip_range": 1}, "MaskablePPO"),
        ("sb3_contrib.common.recurrent.policies", {"clip_range": 1}, "RecurrentPPO"),
        ("__main__", {}, "policy"),
    ],
)
def test_algorithm_of_stable_baselines3_is_told(
    tmp_path: Path, module: str, settings: dict[str, int], name: str
) -> None:
    data = json.dumps({"policy_class": {"__module__": module}, **settings}).encode()

    path = zip_of(tmp_path / "p.zip", {"data": data, "policy.pth": b"x"})

    assert describe_file(path) == f"a stable-baselines3 {name}"


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"[" * 100_000])
def test_settings_that_cant_be_read_are_a_policy_without_a_name(
    tmp_path: Path, data: bytes
) -> None:
    path = zip_of(tmp_path / "p.zip", {"data": data, "policy.pth": b"x"})

    assert describe_file(path) == "a stable-baselines3 policy"


@pytest.mark.parametrize(
    ("head", "phrase"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\n <!-- x --> <HTML lang=en>", "a web page"),
        (b"<!doctype html>", "a web page"),
        (b"\x08\x0a\x12\x07pytorch\x1a", "an ONNX model"),
        (b"\x89HDF\r\n\x1a\nx", "an HDF5 file"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (bytes(257) + b"ustar", "a tar archive"),
        (b"\x80\x04\x95", "a pickle"),
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":', "a safetensors file"),
    ],
)
def test_file_is_named_by_its_head(tmp_path: Path, head: bytes, phrase: str) -> None:
    path = tmp_path / "file.zip"
    path.write_bytes(head)

    described = describe_file(path)

    assert described is not None
    assert described.startswith(phrase)


def test_file_that_cant_be_told_or_read_has_no_name(tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(b"a note")

    assert describe_file(tmp_path / "notes") is None
    assert describe_file(tmp_path / "absent") is None
    assert describe_file(zip_of(tmp_path / "notes.zip", {"a": b"x"})) is None


@pytest.mark.parametrize(
    ("names", "phrase"),
    [
        (["x/saved_model.pb", "x/variables/variables.index"], "a TensorFlow SavedModel"),
        (["rllib_checkpoint.json", "algorithm_state.pkl"], "an RLlib checkpoint"),
        (["c/rllib_checkpoint.json", "c/policy_state.pkl"], "an RLlib policy of the old API"),
        (["class_and_ctor_args.pkl", "metadata.json", "module_state.pkl"], "an RLlib module"),
        (["class_and_ctor_args.pkl", "metadata.json", "state.pkl"], "the folder of the optimizer"),
        (["p/data.pkl", "p/code/a.py", "p/constants.pkl"], "a TorchScript module"),
        (["p/data.pkl", "p/data/0", "p/version"], "a PyTorch file of weights"),
        (["p/archive_format", "p/models/model.json"], "a torch.export program"),
        (["metadata.json", "config.json", "model.weights.h5"], "a Keras file"),
        (["policy.onnx", "policy.onnx.data"], "an archive of an ONNX model"),
        (["checkpoint", "m.index", "m.data-00000-of-00001"], "a TensorFlow checkpoint"),
    ],
)
def test_archive_is_named_by_its_members(names: list[str], phrase: str) -> None:
    described = describe_names(names)

    assert described is not None
    assert described.startswith(phrase)


def test_members_that_cant_be_told_have_no_name() -> None:
    assert describe_names([]) is None
    assert describe_names(["a.png", "b/c.txt"]) is None
