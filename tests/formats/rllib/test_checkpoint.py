"""Checkpoints that can't give a policy are refused by name, and hostile ones run nothing."""

from __future__ import annotations

import abc
import os
import pickle
import shutil
import types
from pathlib import Path
from typing import Any

import msgpack
import pytest
from ray import cloudpickle

from policy_server.errors import ModelError, SchemaError
from policy_server.formats import load_policy
from policy_server.formats.finding import prepare_policy
from policy_server.formats.known_formats import FORMATS
from policy_server.formats.model_files import files_of_model
from policy_server.formats.rllib import RllibFormat
from policy_server.schema import parse_schema
from policy_server.settings import Settings
from tests.support.library_policies import unzipped

MODULE = Path("learner_group/learner/rl_module/default_policy")
CONNECTORS = Path("env_runner/env_to_module_connector/class_and_ctor_args.pkl")


class _Runs:
    """A pickle of it calls `os.system` when it is loaded as code."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self._command,)


def refusal_of(folder: Path) -> str:
    """Return the one line that refuses a checkpoint."""
    with pytest.raises(ModelError) as refused:
        load_policy(folder)
    assert "\n" not in refused.value.message
    return refused.value.message


def test_several_modules_are_refused_by_their_names(tmp_path: Path) -> None:
    says = "holds 2 RLModules ('left', 'right'), and schema.yaml names none; write `module: NAME`"

    assert says in refusal_of(unzipped("rllib_ppo_multiagent", "checkpoint.zip", tmp_path))


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        ("checkpoint.zip", "holds 2 RLModules ('left', 'right'), and schema.yaml names 'middle'"),
        ("module_left.zip", "module: is 'middle', the policy's file names none"),
    ],
)
def test_module_that_is_not_there_is_refused(tmp_path: Path, archive: str, says: str) -> None:
    folder = unzipped("rllib_ppo_multiagent", archive, tmp_path)

    with pytest.raises((ModelError, SchemaError)) as refused:
        load_policy(folder, parse_schema("module: middle"))

    assert says in refused.value.message


def test_several_modules_are_served_where_one_is_left(tmp_path: Path) -> None:
    folder = unzipped("rllib_ppo_multiagent", "checkpoint.zip", tmp_path)
    shutil.rmtree(folder / "learner_group/learner/rl_module/right")

    assert load_policy(folder).signature.family == "categorical(4)"


@pytest.mark.parametrize(
    ("name", "archive", "policy"),
    [
        ("rllib_ppo_box", "checkpoint.zip", MODULE),
        ("rllib_old", "multi.zip", Path("policies/left")),
    ],
    ids=["new stack", "old stack"],
)
def test_two_policies_of_one_name_are_refused(
    tmp_path: Path, name: str, archive: str, policy: Path
) -> None:
    folder = unzipped(name, archive, tmp_path)
    other = policy.parent / "other" / policy.name
    shutil.copytree(folder / policy, folder / other)

    assert f"{other} and {policy} are policies of one name" in refusal_of(folder).replace(
        f"{policy} and {other}", f"{other} and {policy}"
    )


def test_checkpoint_without_a_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rllib_checkpoint.json").write_text('{"type": "Algorithm"}')
    (tmp_path / "algorithm_state.pkl").write_bytes(pickle.dumps({}))

    assert "is a checkpoint without a policy" in refusal_of(tmp_path)


def test_weights_without_their_description_are_refused(tmp_path: Path) -> None:
    folder = unzipped("rllib_dqn", "module.zip", tmp_path)
    (folder / "class_and_ctor_args.pkl").unlink()

    assert "class_and_ctor_args.pkl: is missing" in refusal_of(folder)


@pytest.mark.parametrize("module", ["left", "right"])
def test_description_without_its_weights_is_refused(tmp_path: Path, module: str) -> None:
    folder = unzipped("rllib_ppo_multiagent", "checkpoint.zip", tmp_path)
    (lost,) = (folder / MODULE.parent / module).glob("module_state.*")
    lost.unlink()

    assert f"{MODULE.parent / module}/module_state: is missing" in refusal_of(folder)


@pytest.mark.parametrize("pipeline", ["env_to_module_connector", "module_to_env_connector"])
@pytest.mark.parametrize("name", [".", "class_and_ctor_args.pkl"])
def test_whole_checkpoint_that_lost_its_connectors_is_refused(
    tmp_path: Path, pipeline: str, name: str
) -> None:
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path)
    lost = folder / "env_runner" / pipeline / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()

    message = refusal_of(folder)

    assert message.startswith(f"env_runner/{pipeline}/class_and_ctor_args.pkl: is missing beside ")


def test_whole_checkpoint_that_lost_its_environment_runner_is_refused(tmp_path: Path) -> None:
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path)
    shutil.rmtree(folder / "env_runner")

    assert refusal_of(folder) == (
        "env_runner/env_to_module_connector/class_and_ctor_args.pkl: is missing beside the "
        "checkpoint's other files; copy the whole checkpoint"
    )


@pytest.mark.parametrize(
    "settings",
    [{"_is_online": False, "input_": "sampler"}, {"input_": "/data"}, {"input_": ["/a", "/b"]}],
    ids=["told", "earlier Ray", "two paths"],
)
def test_checkpoint_of_an_algorithm_without_an_environment_is_read(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path)
    shutil.rmtree(folder / "env_runner")
    described: dict[str, object] = {"class": "MARWIL", "ctor_args_and_kwargs": ((settings,), {})}
    (folder / "class_and_ctor_args.pkl").write_bytes(pickle.dumps(described))

    assert any("RLModule alone" in finding for finding in load_policy(folder).signature.findings)


# A lone RLModule may lie in the folders that it had in its checkpoint.
@pytest.mark.parametrize(
    ("lost", "beside", "end"),
    [
        (["rllib_checkpoint.json"], "", "whole"),
        (["env_runner"], "", "refused"),
        (["rllib_checkpoint.json", "env_runner"], "algorithm_state.pkl", "refused"),
        (["rllib_checkpoint.json", "env_runner"], "learner_group/metadata.json", "refused"),
        (["rllib_checkpoint.json", "env_runner"], "", "alone"),
    ],
)
@pytest.mark.parametrize("archive", ["", "zip"], ids=["folder", "zip"])
@pytest.mark.parametrize("above", ["", "runs/7/"], ids=["", "deeper"])
def test_part_of_a_checkpoint_is_told_by_what_lies_beside_it(
    tmp_path: Path, lost: list[str], beside: str, end: str, archive: str, above: str
) -> None:
    whole = load_policy(unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path / "whole"))
    source = tmp_path / "source"
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", source / above)
    for name in lost:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in filter(None, ("schema.yaml", beside)):
        (folder / name).write_text("{}")
    if archive:
        source = Path(shutil.make_archive(str(tmp_path / "policy"), archive, source))

    found = prepare_policy(source, tmp_path / "models", Settings(home=tmp_path))

    if end == "refused":
        assert "copy the whole checkpoint" in refusal_of(found)
        return
    findings = load_policy(found).signature.findings
    assert (findings == whole.signature.findings) == (end == "whole")
    assert any("RLModule alone" in finding for finding in findings) == (end == "alone")


def test_connectors_of_a_checkpoint_without_a_local_env_runner_are_read(tmp_path: Path) -> None:
    whole = load_policy(unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path / "whole"))
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path / "remote")
    for pipeline in ("env_to_module_connector", "module_to_env_connector"):
        (folder / "env_runner" / pipeline).rename(folder / pipeline)
    shutil.rmtree(folder / "env_runner")

    assert load_policy(folder).signature.findings == whole.signature.findings


@pytest.mark.parametrize(
    "name",
    [
        MODULE / "module_state.pkl",
        MODULE / "class_and_ctor_args.pkl",
        CONNECTORS,
        Path("env_runner/env_to_module_connector/MeanStdFilter/state.pkl"),
    ],
    ids=lambda name: f"{name.parent.name}/{name.name}",
)
def test_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, name: Path) -> None:
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path / "policy")
    mark = tmp_path / "ran"
    hostile = pickle.dumps({"class": [_Runs(f"touch {mark}")]})
    (folder / name).write_bytes(hostile)

    message = refusal_of(folder)

    assert f"{name}: names {os.system.__module__}.system" in message
    assert not mark.exists()
    pickle.loads(hostile)  # noqa: S301 -- the test's own: it shows that the pickle does run
    assert mark.exists()


@pytest.mark.parametrize(
    "name", [MODULE / "module_state.pkl", MODULE / "class_and_ctor_args.pkl", CONNECTORS]
)
def test_truncated_pickle_is_refused(tmp_path: Path, name: Path) -> None:
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path)
    whole = (folder / name).read_bytes()

    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        (folder / name).write_bytes(whole[:size])
        assert str(name) in refusal_of(folder)


def test_msgpack_that_is_nested_without_end_is_refused_with_its_reason(tmp_path: Path) -> None:
    folder = unzipped("rllib_ppo_discrete", "module_msgpack.zip", tmp_path)
    (folder / "module_state.msgpack").write_bytes(b"\x91" * 100_000 + b"\x90")

    assert refusal_of(folder) == (
        "module_state.msgpack: is damaged: msgpack's StackError; save the checkpoint anew"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 2]),
        msgpack.packb({"w": {b"nd": True, b"type": "|O8", b"shape": [1], b"data": b"12345678"}}),
        msgpack.packb({"w": {b"nd": True, b"type": "<f4", b"shape": [10**9], b"data": b"1234"}}),
        msgpack.packb({"w": "text"}),
        msgpack.packb({"w": [[1, 2], [3]]}),
    ],
    ids=["empty", "no msgpack", "list", "objects", "too few numbers", "text", "uneven lists"],
)
def test_damaged_msgpack_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = unzipped("rllib_ppo_discrete", "module_msgpack.zip", tmp_path)
    (folder / "module_state.msgpack").write_bytes(content)

    assert "module_state" in refusal_of(folder)


@pytest.mark.parametrize(
    ("known", "foreign"),
    [
        (b"rllib.algorithms.ppo.torch", b"rllib.algorithms.xyz.torch"),
        (b"DefaultPPOTorchRLModule", b"DefaultXYZTorchRLModule"),
        (b"ray.rllib.algorithms.ppo.ppo_catalog", b"my_own.modules_of_my_own.my_catalogs"),
    ],
    ids=["module", "class", "catalog"],
)
def test_class_that_is_not_rllibs_own_is_refused_by_name(
    tmp_path: Path, known: bytes, foreign: bytes
) -> None:
    folder = unzipped("rllib_ppo_box", "module.zip", tmp_path)
    path = folder / "class_and_ctor_args.pkl"
    assert len(known) == len(foreign)
    assert known in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(known, foreign))

    assert foreign.decode() in refusal_of(folder)


@pytest.mark.parametrize(
    ("known", "foreign"),
    [
        (b"MeanStdFilter", b"FrameStackin_"),
        (b"ray.rllib.connectors.env", b"somebodys.own_code.of.it"),
    ],
    ids=["of RLlib", "of somebody's own"],
)
def test_connector_that_is_no_default_piece_is_refused_by_name(
    tmp_path: Path, known: bytes, foreign: bytes
) -> None:
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path)
    path = folder / CONNECTORS
    assert len(known) == len(foreign)
    path.write_bytes(path.read_bytes().replace(known, foreign))

    assert foreign.decode() in refusal_of(folder)


@pytest.mark.parametrize("archive", ["module.zip", "module_msgpack.zip", "checkpoint.zip"])
def test_rllibs_files_are_told_from_others(tmp_path: Path, archive: str) -> None:
    rllib = files_of_model(unzipped("rllib_ppo_discrete", archive, tmp_path))

    assert [form.name for form in FORMATS if form.can_read(rllib)] == ["RLlib checkpoint"]
    assert not RllibFormat().can_read({"saved_model.pb": tmp_path / "saved_model.pb"})


@pytest.mark.parametrize("bases", [(), (abc.ABC,)], ids=["plain", "abstract"])
def test_class_that_was_pickled_with_its_code_is_refused_by_name(
    tmp_path: Path, bases: tuple[type, ...]
) -> None:
    folder = unzipped("rllib_ppo_box", "module.zip", tmp_path)

    described = {"observation_space": None, "action_space": None}
    kind = types.new_class("MyRLModule", bases, {}, _of_main)
    content = cloudpickle.dumps({"class": kind, "ctor_args_and_kwargs": ((), described)})
    (folder / "class_and_ctor_args.pkl").write_bytes(content)

    assert "a person's own class MyRLModule" in refusal_of(folder)


def test_connector_that_was_pickled_with_its_code_is_refused_by_name(tmp_path: Path) -> None:
    folder = unzipped("rllib_ppo_box", "checkpoint.zip", tmp_path)

    kind = types.new_class("Halved", (abc.ABC,), {}, _of_main)
    described: dict[str, Any] = {"connectors": [(kind, [], {})]}
    content = cloudpickle.dumps({"class": kind, "ctor_args_and_kwargs": ((), described)})
    (folder / CONNECTORS).write_bytes(content)

    assert "the env-to-module pipeline: has a person's own class Halved" in refusal_of(folder)


def _of_main(namespace: dict[str, Any]) -> None:
    namespace["__module__"] = "__main__"


def test_function_that_the_policy_does_not_depend_on_is_never_looked_for(tmp_path: Path) -> None:
    folder = unzipped("rllib_agents", "checkpoint.zip", tmp_path)

    policy = load_policy(folder, parse_schema("module: mouse"))

    assert b"own_mod" in (folder / CONNECTORS).read_bytes()
    assert policy.signature.family == "normal(2)"
