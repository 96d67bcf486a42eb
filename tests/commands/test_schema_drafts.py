"""The schema.yaml that is drafted from a model: one policy, or all of a file that holds several."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from policy_server.commands.model_report import inspect_model
from policy_server.commands.schema_drafts import draft_schema, write_draft
from policy_server.errors import ModelError, SchemaError
from policy_server.schema import AgentPolicies, parse_schema, parse_schema_file
from policy_server.settings import Settings
from tests.support.folders import ROOT
from tests.support.library_policies import POLICIES, unzipped

MOUSE = ROOT / "examples" / "mouse_and_cheese"


def test_a_draft_names_the_module_of_a_file_that_holds_several(
    tmp_path: Path,
) -> None:
    settings = Settings(home=tmp_path)
    folder = unzipped("rllib_ppo_multiagent", "checkpoint.zip", tmp_path)

    text = draft_schema(folder, settings, module="right")
    write_draft(text, folder / "schema.yaml", overwrite=False)

    assert parse_schema(text).module == "right"
    assert inspect_model(folder, settings).problem is None
    with pytest.raises(ModelError, match="holds 2 RLModules"):
        draft_schema(folder, settings, module="middle")


def test_a_draft_is_not_written_over_a_file_unasked(tmp_path: Path) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text("old")

    with pytest.raises(SchemaError, match=r"schema\.yaml: exists; .*--overwrite"):
        write_draft("new", file, overwrite=False)
    assert file.read_text() == "old"
    write_draft("new", file, overwrite=True)
    assert file.read_text() == "new"


def test_draft_takes_the_place_of_an_examples_schema_only_while_that_is_unchanged(
    tmp_path: Path,
) -> None:
    file = Path(shutil.copyfile(MOUSE / "schema.yaml", tmp_path / "schema.yaml"))

    write_draft("mine", file, overwrite=False)
    with pytest.raises(SchemaError, match="exists; give another file"):
        write_draft("new", file, overwrite=False)

    assert file.read_text() == "mine"


def test_a_draft_for_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="can't be written: No such file"):
        write_draft("new", tmp_path / "no" / "schema.yaml", overwrite=False)


@pytest.mark.parametrize(
    ("name", "archive"),
    [("rllib_ppo_multiagent", "checkpoint.zip"), ("rllib_old", "multi.zip")],
    ids=["new API stack", "old API stack"],
)
def test_a_draft_of_a_file_that_holds_several_policies_is_that_of_a_team(
    name: str, archive: str, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path)
    folder = unzipped(name, archive, tmp_path / "policies")

    text = draft_schema(folder, settings)
    write_draft(text, tmp_path / "schema.yaml", overwrite=False)

    file = parse_schema_file(text)
    left, right = file
    assert (left.name, left.model, left.schema.module) == ("left", "policies", "left")
    assert (right.name, right.model, right.schema.module) == ("right", "policies", "right")
    assert file.agents == AgentPolicies({"left": "left", "right": "right"})
    assert file.api_key
    for policy in ("left", "right"):
        assert inspect_model(None, settings, policy=policy).problem is None


def test_a_draft_of_policies_beside_another_folder_names_their_whole_path(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    folder = unzipped("rllib_ppo_multiagent", "checkpoint.zip", tmp_path / "policies")

    text = draft_schema(folder, Settings(home=home))

    assert {policy.model for policy in parse_schema_file(text)} == {str(folder.resolve())}


def test_a_teams_models_are_named_from_the_folder_of_the_schema(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    (tmp_path / "mine").mkdir()
    policy = Path(
        shutil.copy(
            POLICIES / "rllib_ppo_multiagent" / "checkpoint.zip", tmp_path / "mine" / "team.zip"
        )
    )

    text = draft_schema(policy, settings, folder=tmp_path / "mine")

    assert [section.model for section in parse_schema_file(text)] == ["team.zip"] * 2
    text = draft_schema(policy, settings)
    assert [section.model for section in parse_schema_file(text)] == ["mine/team.zip"] * 2
