"""The names of the files that formats read, held against the formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy_server.formats.known_formats import FORMATS, Format, format_of
from policy_server.formats.model_files import files_of_model
from policy_server.formats.read_names import is_read
from policy_server.schema import read_schema
from tests.support.library_policies import POLICIES, unzipped, unzipped_sb3

# Read only beside policy.pth or model.weights.h5, which are named.
READ_BESIDE_OTHERS = {"data", "config.json"}


class Files(dict[str, Path]):
    """A model's files, with the names of those that a format took."""

    def __init__(self, folder: Path) -> None:
        super().__init__(files_of_model(folder))
        self.taken: set[str] = set()

    def __getitem__(self, name: str) -> Path:
        self.taken.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_files_that_a_format_knows_beside_its_own_are_read(form: Format) -> None:
    assert [name for name in form.beside("policy.onnx") if not is_read(name)] == []


@pytest.mark.parametrize(
    "name", ["sb3_ppo_vecnorm", "rllib_ppo_meanstd", "keras_actor_softmax", "onnx_rsl_rl_lstm"]
)
def test_each_file_that_a_policy_is_loaded_from_is_known(tmp_path: Path, name: str) -> None:
    if name.startswith("sb3"):
        folder = unzipped_sb3(name, tmp_path)
    elif name.startswith("rllib"):
        folder = unzipped(name, "checkpoint.zip", tmp_path)
    elif name.startswith("keras"):
        folder = unzipped(name, "actor.keras", tmp_path)
    else:
        folder = POLICIES / name
    schema = POLICIES / name / "schema.yaml"
    files = Files(folder)
    form = format_of(files)
    assert form is not None

    form.load(files, read_schema(schema) if schema.exists() else None, engine="auto")

    assert len(files.taken) > 0
    assert {item for item in files.taken if not is_read(item)} <= READ_BESIDE_OTHERS


@pytest.mark.parametrize(
    "name",
    [
        "saved_model.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        "policy.pth",
        "vecnormalize.pkl",
        "other.onnx",
        "learner_group/learner/rl_module/default_policy/module_state.pkl",
        "policies/default_policy/policy_state.msgpck",
        "model.weights.h5",
    ],
)
def test_file_of_another_policy_is_read(name: str) -> None:
    assert is_read(name)


@pytest.mark.parametrize(
    "name",
    ["README.txt", "Thumbs.db", "desktop.ini", "__pycache__/a.pyc", "@eaDir/policy.onnx", "a.json"],
)
def test_file_of_another_program_is_not_read(name: str) -> None:
    assert not is_read(name)
