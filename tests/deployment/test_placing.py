"""deploy/place-policy.sh: a mounted folder's policies, where the server looks for them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
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


# Root passes over permissions; without these capabilities it is held to them as other users are.
AS_ANY_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
COMMAND = ("echo", "started")


def run_script(
    source: Path, home: Path, *, command: Sequence[str] = COMMAND, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script, as a user who is held to permissions."""
    environment = {"PATH": os.environ["PATH"], "POLICY_SERVER_HOME": str(home), **variables}
    return subprocess.run(
        [*(AS_ANY_USER if os.geteuid() == 0 else ()), "sh", SCRIPT, source, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def place(source: Path, home: Path, **variables: str) -> str:
    """Run the script with a command, and return the command's output."""
    done = run_script(source, home, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refusal(source: Path, home: Path, *, command: Sequence[str] = COMMAND, **variables: str) -> str:
    """Return the line by which the script refuses a folder; the server's folder stays as it was."""
    before = contents(home)
    done = run_script(source, home, command=command, **variables)

    assert (done.returncode, done.stdout) == (1, "")
    assert contents(home) == before
    [line] = done.stderr.splitlines()
    return line.removeprefix("place-policy.sh: ")


def contents(folder: Path) -> dict[str, str]:
    """Return the texts of a folder's files by their names."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


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


# What a shell takes for an option, a separator, an escape, a pattern or a quote.
ODD_NAMES = [
    "-n",
    "-rf",
    " lead",
    "trail ",
    "a\\nb",
    "\\",
    "*",
    "[a]",
    "'",
    '"',
    "$HOME",
    "\t",
    "Á",
]


def test_file_of_any_name_that_has_gone_is_not_served(given: Path, home: Path) -> None:
    for name in ODD_NAMES:
        (given / name).write_text(name)
    place(given, home)
    placed = contents(home)
    for name in ODD_NAMES:
        (given / name).unlink()
    for name in ("a", "b", "n", "lead"):
        (home / name).write_text("the server's own")

    place(given, home)

    assert {name: placed[name] for name in ODD_NAMES} == {name: name for name in ODD_NAMES}
    assert set(contents(home)) == {
        *(".placed", "saved_model.zip", "schema.yaml"),
        *("a", "b", "n", "lead"),
    }


def test_name_with_a_newline_is_refused(given: Path, home: Path) -> None:
    (given / "a\n..").write_text("door")

    assert refusal(given, home) == (
        f"{given}/a?..: expected a name of one line, got one with a newline; rename it"
    )


def test_halves_of_a_name_that_an_earlier_version_recorded_are_passed_over(
    given: Path, home: Path
) -> None:
    beside = home.with_name("beside")
    beside.mkdir()
    (home / "versions.json").write_text("deployed")
    (home / ".placed").write_text(f"\n..\n.\n../{beside.name}\nsaved_model.zip\n")

    place(given, home)

    assert beside.is_dir()
    assert (home / "versions.json").read_text() == "deployed"
    assert (home / "saved_model.zip").read_text() == "mouse"


@pytest.mark.parametrize("left", [[], ["lost+found"], [".hidden"]], ids=["none", "disk", "hidden"])
def test_empty_folder_is_refused_since_docker_makes_one_of_a_mistyped_path(
    tmp_path: Path, home: Path, left: list[str]
) -> None:
    empty = tmp_path / "mistyped"
    empty.mkdir()
    for name in left:
        (empty / name).mkdir()

    assert refusal(empty, home) == (
        f"{empty}: expected schema.yaml and the policy's files, found nothing to take; look at "
        "the path that is mounted there: Docker makes an empty folder of one that does not exist"
    )


def test_empty_folder_is_taken_where_the_server_fetches_schema_yaml(
    tmp_path: Path, home: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    assert place(empty, home, POLICY_SERVER_SCHEMA_URI="s3://a/schema.yaml") == "started\n"


def test_file_in_place_of_the_folder_is_refused(given: Path, home: Path) -> None:
    assert refusal(given / "saved_model.zip", home) == (
        f"{given}/saved_model.zip: expected a folder with schema.yaml and the policy's files, got "
        "a file; mount their folder there"
    )


def test_folder_that_is_missing_is_refused_where_nothing_else_would_be_served(home: Path) -> None:
    """An init container has no command: its server gets what the script places."""
    assert refusal(home / "none", home, command=()) == (
        f"{home}/none: expected a folder with schema.yaml and the policy's files, got none; look "
        "at its path"
    )


@pytest.mark.parametrize(
    "name", [".", "schema.yaml", "saved_model.zip", "policies", "policies/door.zip"]
)
def test_what_the_user_of_the_image_cannot_read_is_refused(
    given: Path, home: Path, name: str
) -> None:
    path = (given / name).resolve()
    mode = path.stat().st_mode & 0o777
    path.chmod(0)
    user = os.geteuid()

    line = refusal(given, home)
    path.chmod(mode)

    assert line == (
        f"{path}: expected to be readable by user {user}, got mode 0 of user {user}; run "
        f"chmod -R a+rX on the folder that is mounted at {given}"
    )


@pytest.mark.parametrize(
    ("name", "variable"),
    [("schema.yaml", "POLICY_SERVER_SCHEMA_URI"), ("saved_model.zip", "POLICY_SERVER_MODEL_URI")],
)
def test_file_that_the_server_fetches_need_not_be_readable(
    given: Path, home: Path, name: str, variable: str
) -> None:
    (given / name).chmod(0)

    assert place(given, home, **{variable: "s3://a/b"}) == "started\n"


@pytest.mark.parametrize("name", ["saved_model.zip", "schema.yaml", "policies/door.zip"])
def test_link_that_leads_out_of_the_mounted_folder_is_refused(
    given: Path, home: Path, name: str
) -> None:
    (given / name).unlink()
    (given / name).symlink_to("/nowhere/model")

    assert refusal(given, home) == (
        f"{given}/{name}: expected a file, got a link to /nowhere/model, which does not exist "
        "here; put the file itself in its place"
    )


def test_server_folder_that_cannot_be_written_is_refused(given: Path, home: Path) -> None:
    home.chmod(0o555)

    line = refusal(given, home)

    assert line == (
        f"{home}: expected to be writable by user {os.geteuid()}, got mode 555 of user "
        f"{os.geteuid()}; mount a volume there that this user may write to"
    )


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
