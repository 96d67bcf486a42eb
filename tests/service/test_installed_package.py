"""The package as pip installs it, in a folder that has nothing of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from tests.support.folders import ROOT
from tests.support.server_processes import KEY, running_server
from tests.support.servers import status_of

PROGRAM = (
    "import sys\n"
    "from policy_server.commands.installed_program import installed_program as program\n"
)
OBSERVATION = [5, 0, 1, 4, 3, 2]

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder as site-packages has it: the package, with the examples in it."""
    folder = tmp_path_factory.mktemp("site")
    # Tests that run beside this one write what Python compiles there.
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "policy_server", folder / "policy_server", ignore=without)
    shutil.copytree(ROOT / "examples", folder / "policy_server" / "examples", ignore=without)
    return folder


@pytest.fixture
def settings(site: Path) -> Mapping[str, str]:
    return {"PYTHONPATH": str(site), "POLICY_SERVER_BACKEND": "local"}


def command(*arguments: str) -> list[str]:
    """Return what the console script `policy-server` runs."""
    return [sys.executable, "-P", "-c", f"{PROGRAM}sys.exit(program())", *arguments]


@pytest.mark.parametrize("options", [[], ["--workers", "2"]], ids=["one", "workers"])
def test_example_is_served_from_an_empty_folder(
    options: list[str], tmp_path: Path, settings: Mapping[str, str]
) -> None:
    # A module that stands there by chance takes nobody's place.
    (tmp_path / "uvicorn.py").write_text("raise SystemExit('the wrong uvicorn')")
    copied = subprocess.run(
        command("copy_server_files", "examples/mouse_and_cheese"),
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert copied.stderr == ""
    assert copied.stdout.splitlines()[-2:] == [
        "serve the policy:  policy-server serve",
        "look into it:      policy-server inspect",
    ]

    starting = running_server(
        tmp_path, *options, environment=settings, command=command("serve"), cwd=tmp_path
    )
    with starting as server, server.client() as client:
        answer = client.post("/predict_deterministic_raw", json={"obs": OBSERVATION})

    assert answer.json()["actions"] == [0]


def test_folder_without_a_policy_is_told_the_commands_that_there_are(
    tmp_path: Path, settings: Mapping[str, str]
) -> None:
    shutil.copy(ROOT / "examples" / "lpoc" / "schema.yaml", tmp_path)

    ended = subprocess.run(
        command("inspect"),
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 1
    assert ended.stderr == (
        "policy-server: saved_model.zip: not found; name a file or a folder, or put a policy there "
        "with `policy-server copy_server_files FOLDER`\n"
    )


def test_changed_schema_starts_the_server_again(
    tmp_path: Path, settings: Mapping[str, str]
) -> None:
    for name in ("schema.yaml", "saved_model.zip"):
        shutil.copy(ROOT / "examples" / "mouse_and_cheese" / name, tmp_path)

    starting = running_server(
        tmp_path, "--reload", environment=settings, command=command("serve"), cwd=tmp_path
    )
    with starting as server:
        text = (tmp_path / "schema.yaml").read_text()
        (tmp_path / "schema.yaml").write_text(text.replace(KEY, "another-key"))
        server.child.wait_until(
            lambda: status_of(f"{server.url}/schema", key="another-key") == httpx.codes.OK
        )

    assert "WatchFiles detected changes in 'schema.yaml'" in server.output()
