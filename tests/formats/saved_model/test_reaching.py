"""Graphs that would touch files, other processes or the server's own: nothing of them is run."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from policy_server.errors import ModelError
from policy_server.formats.saved_model.loading import load_policy
from tests.fuzz.harmful_graphs import HARMS, with_harm
from tests.support.folders import EXPORTS
from tests.support.hand_built import V1Policy

REFUSED = r"has the operation \w+ \('harm/.*, which reaches beyond the policy's own numbers"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return V1Policy().save(tmp_path_factory.mktemp("saved") / "model")


def put_harm(folder: Path, harm: str, path: Path, *, in_function: bool = False) -> None:
    """Change the saved_model.pb of a folder."""
    file = folder / "saved_model.pb"
    file.write_bytes(with_harm(file.read_bytes(), harm, str(path), in_function=in_function))


@pytest.mark.parametrize("harm", HARMS)
def test_harmful_operation_is_refused_by_its_name(saved: Path, harm: str, tmp_path: Path) -> None:
    folder, written = shutil.copytree(saved, tmp_path / "model"), tmp_path / "written"
    written.mkdir()
    put_harm(folder, harm, written / "file")

    with pytest.raises(ModelError, match=REFUSED):
        load_policy(folder)

    assert [*written.iterdir()] == []


@pytest.mark.parametrize("harm", ["WriteFile", "ReadFile", "PrintV2 to a file"])
def test_harmful_operation_in_a_function_is_refused(harm: str, tmp_path: Path) -> None:
    folder, path = tmp_path / "model", tmp_path / "written"
    with zipfile.ZipFile(EXPORTS / "ray29_tf2_ppo_discrete" / "saved_model.zip") as archive:
        archive.extractall(folder)
    put_harm(next(folder.rglob("saved_model.pb")).parent, harm, path, in_function=True)

    with pytest.raises(ModelError, match=REFUSED):
        load_policy(next(folder.rglob("saved_model.pb")).parent)

    assert not path.exists()


def test_line_to_the_log_is_no_harm(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    put_harm(folder, "a line", tmp_path / "written")

    assert load_policy(folder).signature.family == "categorical(3)"
