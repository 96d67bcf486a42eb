"""The schema.yaml at the top of the repository: mouse_and_cheese's, and told from anybody's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from policy_server.errors import SchemaError
from policy_server.schema import find_example_of, named_as_example
from tests.support.folders import ROOT

MOUSE = ROOT / "examples" / "mouse_and_cheese" / "schema.yaml"
MISFIT = "schema.yaml: gives 6 values, the policy expects 4; list each value once"


def test_repository_ships_the_schema_of_mouse_and_cheese() -> None:
    assert (ROOT / "schema.yaml").read_bytes() == MOUSE.read_bytes()


@pytest.mark.parametrize("name", ["mouse_and_cheese", "lpoc"])
def test_copy_of_an_examples_schema_is_known(name: str, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "examples" / name / "schema.yaml", tmp_path / "schema.yaml")

    assert find_example_of(tmp_path / "schema.yaml") == name


def test_line_ends_of_windows_are_no_change(tmp_path: Path) -> None:
    copy = tmp_path / "schema.yaml"
    copy.write_bytes(MOUSE.read_bytes().replace(b"\n", b"\r\n"))

    assert find_example_of(copy) == "mouse_and_cheese"


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff", MOUSE.read_bytes() + b"\n# mine\n"], ids=str
)
def test_other_file_is_somebodys_own(content: bytes | None, tmp_path: Path) -> None:
    own = tmp_path / "schema.yaml"
    if content is not None:
        own.write_bytes(content)

    assert find_example_of(own) is None
    with pytest.raises(SchemaError) as caught, named_as_example(own):
        raise SchemaError(MISFIT)
    assert caught.value.message == MISFIT


def test_misfit_of_an_examples_schema_says_so(tmp_path: Path) -> None:
    copy = Path(shutil.copyfile(MOUSE, tmp_path / "schema.yaml"))

    with pytest.raises(SchemaError) as caught, named_as_example(copy):
        raise SchemaError(MISFIT)

    assert caught.value.message == (
        "schema.yaml: gives 6 values, the policy expects 4; this schema.yaml is the example's "
        "(mouse_and_cheese), unchanged: draft your policy's own with `python generate.py schema "
        "--output schema.yaml`"
    )
