"""Files named by their contents: real ones of the libraries, and heads that are written here."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from policy_server.formats.recognition import describe_file, describe_names
from policy_server.formats.torch_files import describe_tensors
from tests.support.audit import audited
from tests.support.folders import ROOT
from tests.support.hostile import ATTACKS, BOMBS
from tests.support.library_policies import POLICIES, unzipped
from tests.support.zips import zip_of


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
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code>', "an error page of a store"),
        (b'{"message": "Not Found"}', "a JSON text"),
        (b"\x08\x0a\x12\x07pytorch\x1a", "an ONNX model"),
        (b"\x89HDF\r\n\x1a\nx", "an HDF5 file"),
        (b"\x1c\x00\x00\x00TFL3", "a TensorFlow Lite model"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"BZh91AY", "a bzip2 archive"),
        (b"\xfd7zXZ\x00\x00", "an xz archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07", "a rar archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive"),
        (bytes(257) + b"ustar", "a tar archive"),
        (b"PK\x03\x04" + bytes(40), "a zip that was cut off"),
        (b"\x80\x04\x95", "a pickle"),
        (b"\x80\x04\x95" + bytes(8) + b"\x8c\x13joblib.numpy_pickle", "a joblib file"),
        (b"x\x9c\xab", "a zlib stream"),
        (b"\x80\x04\x95" + bytes(8) + b"}\x8c\x14ctor_args_and_kwargs", "one pickle of an RLlib"),
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":', "a safetensors file"),
        (b"\x81\xa6params\x82", "Flax's msgpack"),
    ],
)
def test_file_is_named_by_its_head(tmp_path: Path, head: bytes, phrase: str) -> None:
    path = tmp_path / "file.zip"
    path.write_bytes(head)

    described = describe_file(path)

    assert described is not None
    assert described.startswith(phrase)


@pytest.mark.parametrize(
    ("name", "phrase", "remedy"),
    [
        ("torchscript.pt", "a TorchScript module", "torch.jit.load('policy.pt')"),
        ("program.pt2", "a torch.export program", "torch.export.load('policy.pt2')"),
        ("state_dict.pth", "a PyTorch file of weights without their network", "torch.onnx.export("),
        ("whole_module.pt", "a whole PyTorch module (__main__.M)", "torch.onnx.export("),
        ("optimizer.pth", "the state of a PyTorch optimizer, without the network", "own file"),
        ("rsl_rl.pt", "a checkpoint of RSL-RL", "runner.export_policy_to_onnx("),
        ("before_1_6.pth", "a PyTorch file of the kind before 1.6", "torch.onnx.export("),
    ],
)
def test_real_file_of_pytorch_is_named_with_what_helps(name: str, phrase: str, remedy: str) -> None:
    described = describe_file(ROOT / "tests" / "data" / "torch_files" / name)

    assert described is not None
    assert described.startswith(phrase)
    assert remedy in described


def test_weights_of_a_policy_of_stable_baselines3_are_told_from_the_policy(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_vecnorm", "policy.zip", tmp_path)

    described = describe_file(folder / "policy.pth")

    assert described is not None
    assert described.startswith("the weights of a stable-baselines3 policy, without its spaces")
    statistics = describe_file(POLICIES / "sb3_ppo_vecnorm" / "vec_normalize.pkl")
    assert statistics is not None
    assert statistics.startswith("VecNormalize's statistics; put them as vec_normalize.pkl")


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["actor_mean.0.weight", "actor_logstd"], "weights as CleanRL saves them"),
        (["actor.preprocess.model.model.0.weight"], "weights as Tianshou saves them"),
        (["model", "a2c_network.actor_mlp.0.weight"], "a checkpoint of rl_games"),
        (["Policy", "Optimizer:critic", "global_step"], "a checkpoint of Unity ML-Agents"),
        (["train_step", "env_steps", "model"], "a checkpoint of Sample Factory"),
        (["encoder.encoder.net.mlp.0.weight"], "the weights of RLlib's RLModule"),
        (["iter", "infos", "model_state_dict"], "a checkpoint of RSL-RL"),
        (["layer.weight"], "a PyTorch file of weights without their network"),
    ],
)
def test_weights_are_named_by_their_library(words: list[str], phrase: str) -> None:
    assert describe_tensors(pickle.dumps(words)).startswith(phrase)


@pytest.mark.parametrize(
    ("names", "words", "phrase", "remedy"),
    [
        (
            ["gymnasium.spaces.box Box", "torch.nn.modules.activation Tanh"],
            ["state_dict", "action_net.weight", "data", "observation_space", "action_space"],
            "a policy of stable-baselines3 as `model.policy.save` writes it: weights with their",
            "give the .zip that `model.save` wrote",
        ),
        (
            ["argparse Namespace"],
            ["args", "actor_mean.0.weight"],
            "weights as CleanRL saves them",
            "torch.onnx.export(",
        ),
        (
            ["omegaconf.dictconfig DictConfig"],
            ["config", "layer.weight"],
            "a PyTorch file of weights, with objects such as omegaconf.dictconfig.DictConfig,",
            "torch.onnx.export(",
        ),
        (
            ["my_code Net", "torch.nn.modules.linear Linear"],
            ["_parameters", "_modules", "action_net.weight"],
            "a whole PyTorch module (my_code.Net), which only its own code can load",
            "torch.onnx.export(",
        ),
        (
            ["torch.nn.modules.container Sequential"],
            ["_parameters", "_modules"],
            "a whole PyTorch module, which only its own code can load",
            "torch.onnx.export(",
        ),
    ],
    ids=["sb3-policy", "cleanrl", "others", "module", "torch-module"],
)
def test_foreign_class_alone_makes_no_module(
    names: list[str], words: list[str], phrase: str, remedy: str
) -> None:
    classes = b"".join(f"c{name}\n".replace(" ", "\n").encode() for name in names)
    content = b"\x80\x02(" + classes + pickle.dumps(words, 2)[2:-1] + b"t."

    described = describe_tensors(content)

    assert described.startswith(phrase)
    assert remedy in described


def test_whole_module_of_rllib_is_sent_to_its_checkpoint() -> None:
    content = b"\x80\x02cray.rllib.models.torch.fcnet\nFullyConnectedNetwork\n)\x81."

    assert describe_tensors(content) == (
        "a whole PyTorch module (ray.rllib.models.torch.fcnet.FullyConnectedNetwork), which only "
        "its own code can load; give the checkpoint that `Algorithm.save` or `save_to_path` writes"
    )


def test_hostile_file_of_pytorch_is_named_and_runs_nothing() -> None:
    for content in (*(it for some in ATTACKS.values() for it in some), *BOMBS.values()):
        with audited() as events:
            assert describe_tensors(content)
        assert events == []


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
        (["metadata.json", "config.json", "model.weights.h5"], "a Keras model"),
        (["policy.onnx", "policy.onnx.data"], "an ONNX model"),
        (["checkpoint", "m.index", "m.data-00000-of-00001"], "a TensorFlow checkpoint"),
        (["_METADATA", "manifest.ocdbt", "d/0"], "an Orbax checkpoint of JAX"),
        (
            ["data", "_stable_baselines3_version", "system_info.txt"],
            "a policy of stable-baselines3 without its policy.pth; save it again; if it is SBX's",
        ),
        (["data", "pytorch_variables.pth"], "a policy of stable-baselines3 without its policy.pth"),
        (["data", "parameters", "parameter_list"], "a policy of Stable Baselines 2"),
        (["w.npy", "b.npy"], "an archive of NumPy arrays"),
    ],
)
def test_archive_is_named_by_its_members(names: list[str], phrase: str) -> None:
    described = describe_names(names)

    assert described is not None
    assert described.startswith(phrase)


def test_members_that_cant_be_told_have_no_name() -> None:
    assert describe_names([]) is None
    assert describe_names(["a.png", "b/c.txt"]) is None
