"""deploy/place-policy.sh: a mounted folder's policies, where the server looks for them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.folders import ROOT

SCRIPT = ROOT / "deploy/place-policy.sh"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Return a mounted folder with two policies, one of them in a folder of its own."""
    folder = tmp_path / "given"
    (folder / "policies").mkdir(parents=True)
    (folder / "lost+found").mkdir()
    (folder / "schema.yaml").write_text("parameters: {api_key: first}")
    (folder / "saved_model.zip").write_text("mouse")
    (folder / "policies/door.zip").write_text("door")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return the server's folder, as the image has it with its example."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "schema.yaml").write_text("the example's")
    (folder / "saved_model.zip").write_text("the example's")
    return folder


def place(source: Path, home: Path, **variables: str) -> str:
    """Run the script with a command, and return the command's output."""
    environment = {"PATH": os.environ["PATH"], "POLICY_SERVER_HOME": str(home), **variables}
    done = subprocess.run(
        ["sh", str(SCRIPT), str(source), "echo", "started"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_whole_folder_is_placed(given: Path, home: Path) -> None:
    assert place(given, home) == "started\n"

    assert (home / "saved_model.zip").read_text() == "mouse"
    assert (home / "policies/door.zip").read_text() == "door"
    assert (home / "schema.yaml").read_text() == "parameters: {api_key: first}"
    assert not (home / "lost+found").exists()


def test_change_of_the_mounted_schema_is_seen_without_a_restart(given: Path, home: Path) -> None:
    place(given, home)
    (given / "new.yaml").write_text("parameters: {api_key: second}")

    (given / "new.yaml").replace(given / "schema.yaml")

    assert (home / "schema.yaml").read_text() == "parameters: {api_key: second}"


def test_folder_whose_files_are_links_is_placed_by_their_contents(
    given: Path, home: Path, tmp_path: Path
) -> None:
    mounted = tmp_path / "configmap"
    mounted.mkdir()
    (mounted / "..data").symlink_to(given)
    for name in ("schema.yaml", "saved_model.zip"):
        (mounted / name).symlink_to(f"..data/{name}")

    place(mounted, home)

    assert not (home / "saved_model.zip").is_symlink()
    assert (home / "saved_model.zip").read_text() == "mouse"
    assert {path.name for path in home.iterdir()} == {".placed", "saved_model.zip", "schema.yaml"}


def test_file_that_has_gone_is_not_served_and_others_stay(given: Path, home: Path) -> None:
    place(given, home)
    (home / "versions.json").write_text("deployed")
    (given / "saved_model.zip").unlink()

    place(given, home)

    assert not (home / "saved_model.zip").exists()
    assert (home / "versions.json").read_text() == "deployed"
    assert (home / "policies/door.zip").read_text() == "door"


def test_files_that_the_server_fetches_are_left_alone(given: Path, home: Path) -> None:
    place(given, home)
    (home / "saved_model.zip").write_text("fetched")
    (home / "schema.yaml").unlink()
    (home / "schema.yaml").write_text("fetched")
    addresses = {"POLICY_SERVER_MODEL_URI": "s3://a/b", "POLICY_SERVER_SCHEMA_URI": "s3://a/c"}
    place(given, home, **addresses)
    (home / "saved_model.zip").write_text("fetched")

    place(given, home, **addresses)

    assert (home / "saved_model.zip").read_text() == "fetched"
    assert (home / "schema.yaml").read_text() == "fetched"


def test_without_a_mounted_folder_the_images_example_stays(home: Path) -> None:
    assert place(home / "none", home) == "started\n"

    assert (home / "saved_model.zip").read_text() == "the example's"


def test_image_places_what_is_mounted_and_compose_mounts_it_there() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    compose = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    [target] = re.findall(r'place-policy.sh", "([^"]+)"\]', dockerfile)

    assert any(f":{target}:ro" in volume for volume in compose["policy_server"]["volumes"])
    assert not {"entrypoint", "command"} & set(compose["policy_server"])
