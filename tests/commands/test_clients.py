"""`python generate.py clients`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import generate
from policy_server.commands.clients import choose_languages
from policy_server.errors import SettingsError
from policy_server.sdk import BUNDLE, LANGUAGES
from tests.support.folders import EXPORTS


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLICY_SERVER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, list(BUNDLE)),
        ("all", list(LANGUAGES)),
        ("Go, python,go", ["go", "python"]),
        ("all,python", list(LANGUAGES)),
        ("python, All", list(LANGUAGES)),
    ],
    ids=["none", "all", "some", "all and some", "some and all"],
)
def test_languages_are_chosen_by_name(text: str | None, expected: list[str]) -> None:
    assert choose_languages(text) == expected


def test_unknown_language_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="kotlin with commas between them, got 'rust'"):
        choose_languages("go,rust")


@pytest.mark.timeout(300)
def test_clients_of_a_running_server_call_it(
    url: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["clients", "--languages", "go", "--url", url, "--output", "out"]

    assert generate.main(arguments) == 0
    (home / "out" / "go" / "stale.go").touch()
    assert generate.main(arguments) == 0

    assert f'"{url}"' in (home / "out" / "go" / "configuration.go").read_text()
    assert not (home / "out" / "go" / "stale.go").exists()
    assert [path.name for path in (home / "out").iterdir()] == ["go"]
    assert capsys.readouterr().out.startswith(f"wrote {Path('out', 'go')} (")


@pytest.mark.timeout(300)
def test_clients_of_the_local_policy_have_its_own_types(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("schema.yaml", "saved_model.zip"):
        shutil.copy(EXPORTS / "sac_box" / name, home / name)

    assert generate.main(["clients", "--languages", "go"]) == 0

    assert "Actions []float32" in (home / "clients" / "go" / "model_prediction.go").read_text()
    assert capfd.readouterr().err == ""


def test_folder_of_somebody_else_is_left_alone(
    url: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "clients" / "go").mkdir(parents=True)
    (home / "clients" / "go" / "main.go").touch()

    assert generate.main(["clients", "--languages", "go", "--url", url]) == 1

    assert (home / "clients" / "go" / "main.go").exists()
    assert "exists and is no client library" in capsys.readouterr().err


def test_server_that_does_not_answer_is_an_error_in_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert generate.main(["clients", "--url", "http://127.0.0.1:9"]) == 1

    assert "no server answers there" in capsys.readouterr().err
