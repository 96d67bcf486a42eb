"""How messages name commands and packages, in a clone and where the package is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from policy_server.errors import MissingPackageError
from policy_server.installation import (
    command_for,
    examples_folder,
    is_repository,
    require,
    serving_command,
)
from tests.support.folders import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder that holds the package alone, as site-packages does."""
    folder = tmp_path_factory.mktemp("site")
    # Tests that run beside this one write what Python compiles there.
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "policy_server", folder / "policy_server", ignore=without)
    return folder


def said(site: Path, code: str) -> str:
    """Return what code prints that imports the package from a folder."""
    ended = subprocess.run(
        [sys.executable, "-c", f"from policy_server.installation import *\n{code}"],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.strip()


def test_clone_names_its_own_files() -> None:
    assert is_repository()
    assert command_for("schema --output x") == "python generate.py schema --output x"
    assert serving_command() == "uvicorn app:app"
    assert examples_folder() == ROOT / "examples"


def test_installed_package_names_its_command(site: Path) -> None:
    code = "print(is_repository(), command_for('schema'), serving_command(), examples_folder())"

    assert said(site, code) == (
        f"False policy-server schema policy-server serve {site}/policy_server/examples"
    )


def test_what_is_installed_is_not_asked_for() -> None:
    require("s3", use="an address")


def test_clone_is_told_the_list_that_has_a_missing_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)

    with pytest.raises(MissingPackageError) as caught:
        require("s3", use="this")

    assert caught.value.message == (
        "this: needs boto3, which is not installed; pip install -r requirements.txt"
    )


def test_installed_package_is_told_the_extra(site: Path) -> None:
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "try: require('s3', use='s3://a/b')\n"
        "except Exception as error: print(error.message)"
    )

    assert said(site, code) == (
        "s3://a/b: needs boto3, which is not installed; pip install 'policy-server[s3]'"
    )


def test_module_of_a_missing_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    monkeypatch.delitem(sys.modules, "google.cloud.storage", raising=False)

    with pytest.raises(MissingPackageError, match=r"needs google\.cloud\.storage"):
        require("gcs", use="this")
