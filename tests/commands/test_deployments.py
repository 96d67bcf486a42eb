"""The commands that change versions, against a running server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy_server import create_app
from policy_server.commands import deployments
from policy_server.commands.client import PolicyClient
from policy_server.commands.server_answers import AnswerObject
from policy_server.errors import ModelError, ServerAnswerError, SettingsError
from policy_server.settings import Settings
from tests.support.library_policies import POLICIES
from tests.support.servers import served_app

KEY, ADMIN = "1234567asdfgh", "admin-secret"
ZIP = POLICIES / "sb3_v18_ppo_discrete" / "policy.zip"
SETTINGS = Settings()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a server with an admin key."""
    for name in list(os.environ):
        assert not name.startswith("POLICY_SERVER_"), "settings of the environment would count"
    home = tmp_path_factory.mktemp("home")
    shutil.copy(ZIP, home)
    (home / "schema.yaml").write_text(f"parameters: {{api_key: {KEY}}}")
    with served_app(create_app(home, admin_key=ADMIN), ws="none") as port:
        yield f"http://127.0.0.1:{port}"


def deployed(server: PolicyClient, path: Path | str, **options: object) -> deployments.Status:
    """Deploy a version."""
    known = {"version": None, "traffic": 100.0, "is_shadow": False, **options}
    return deployments.deploy(
        server,
        "default",
        str(path),
        SETTINGS,
        on_progress=lambda _done, _all: None,
        **known,  # type: ignore[arg-type]  # of the command
    )


def test_version_is_deployed_promoted_rolled_back_and_undeployed(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.unpack_archive(ZIP, folder)
    pair = tmp_path / "pair"
    pair.mkdir()
    shutil.copy(ZIP, pair / "best.zip")
    (pair / "schema.yaml").write_text("parameters: {api_key: other, url_path: elsewhere}")
    with deployments.admin_client(url, ADMIN, SETTINGS) as server:
        name = deployments.name_of(server, None)
        first = deployments.status(server, name)["live"]
        by_file = deployed(server, ZIP, version="file", traffic=10)
        by_folder = deployed(server, folder, version="folder", is_shadow=True)
        by_pair = deployed(server, pair, version="pair", traffic=20)
        by_address = deployed(server, ZIP.as_uri(), version="address", traffic=0)
        lines = list(deployments.as_text(by_address))
        waiting = deployments.promote(
            server, name, version="pair", after=100, max_disagreement=0.02
        )
        promoted = deployments.promote(
            server, name, version="file", after=None, max_disagreement=None
        )
        back = deployments.roll_back(server, name)
        gone = deployments.undeploy(server, name, "file")

    assert name == "default"
    shares = {item["name"]: item["traffic"] for item in by_file["versions"]}
    assert shares == {first: 90.0, "file": 10.0}
    assert {item["name"]: item["state"] for item in by_folder["versions"]}["folder"] == "shadow"
    assert sum(item["traffic"] for item in by_pair["versions"]) == pytest.approx(100)
    assert lines[0].split() == ["version", "state", "traffic", "agreement"]
    assert any(line.split()[:3] == [first, "live", "72"] for line in lines)
    assert waiting["waiting_for"]["version"] == "pair"
    assert "pair is promoted after 100 questions, if at most 2.00%" in "\n".join(
        deployments.as_text(waiting)
    )
    assert (promoted["live"], promoted["former"]) == ("file", first)
    assert back["live"] == first
    assert "file" not in {item["name"] for item in gone["versions"] if item["traffic"]}
    assert json.loads(deployments.as_json(gone))["live"] == first


def test_file_dated_before_1980_is_deployed(url: str, tmp_path: Path) -> None:
    """Nix, and builds with SOURCE_DATE_EPOCH=0, date their files so; zip's years begin in 1980."""
    shutil.copy(ZIP, tmp_path / "old.zip")
    os.utime(tmp_path / "old.zip", (0, 0))

    with deployments.admin_client(url, ADMIN, SETTINGS) as server:
        known = deployed(server, tmp_path / "old.zip", version="of-1970", traffic=0.0)

    assert "of-1970" in [version["name"] for version in known["versions"]]


def test_wrong_key_and_missing_policy_are_one_line(url: str, tmp_path: Path) -> None:
    with (
        deployments.admin_client(url, "wrong", SETTINGS) as server,
        pytest.raises(ServerAnswerError, match=r"wrong admin key; .* POLICY_SERVER_ADMIN_KEY"),
    ):
        deployments.status(server, "default")
    with pytest.raises(SettingsError, match="the admin key: is missing"):
        deployments.admin_client(url, None, SETTINGS)
    (tmp_path / "notes.zip").write_bytes(b"hello")
    with deployments.admin_client(url, ADMIN, SETTINGS) as server:
        with pytest.raises(ServerAnswerError, match=r"answered 409: there is no policy 'lift'"):
            deployments.status(server, "lift")
        with pytest.raises(ModelError, match="not found; expected"):
            deployed(server, tmp_path / "gone.zip")
        # Which would wait for a writer.
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelError, match="not found; expected"):
            deployed(server, tmp_path / "pipe")
        with pytest.raises(ModelError, match="holds no policy"):
            deployed(server, tmp_path)


def status_of(*versions: object, **changed: object) -> AnswerObject:
    """Return an answer about versions."""
    known = {"live": "v1", "former": None, "waiting_for": None, "reason": "", "versions": versions}
    return AnswerObject("http://other:80/admin", {**known, **changed})


VERSION = {"name": "v1", "state": "live", "traffic": 100.0, "agreement": None, "reason": None}
REPORT = {"same_mode": 1.0, "copies": 2, "mean_distance": 0.1, "call_seconds": 0.1, "failed": 0}


@pytest.mark.parametrize(
    "known",
    [
        status_of(versions=3),
        status_of("v1"),
        status_of({**VERSION, "name": 7}),
        status_of({**VERSION, "traffic": "all"}),
        status_of(VERSION, live=["v1"]),
        status_of(VERSION, waiting_for=True),
        status_of(VERSION, waiting_for={"version": 1, "after": 2, "max_disagreement": "few"}),
        status_of({**VERSION, "agreement": "good"}),
        status_of({**VERSION, "agreement": {**REPORT, "course": [9.0]}}),
        status_of({**VERSION, "agreement": {**REPORT, "course": [float("nan")]}}),
        status_of({**VERSION, "agreement": {**REPORT, "course": [float("inf")]}}),
    ],
)
def test_answer_of_other_types_is_one_line(known: AnswerObject) -> None:
    with pytest.raises(ServerAnswerError) as caught:
        list(deployments.as_text(known))

    assert caught.value.message == (
        "http://other:80/admin: the answer holds no versions of a policy as this program knows "
        "them; is it a Policy Server of this version that listens there?"
    )


def test_agreement_is_shown_with_its_course() -> None:
    report = {
        "copies": 200,
        "same_mode": 0.985,
        "mean_distance": 0.0123,
        "failed": 3,
        "dropped": 0,
        "call_seconds": 0.0004,
        "reason": "out of memory",
        "course": [0.0, 0.5, 1.0],
    }
    version = {"name": "v2", "state": "shadow", "traffic": 0.0, "agreement": report, "reason": None}
    known = status_of(version)

    (_, line) = deployments.as_text(known)

    assert line == (
        "v2       shadow  0 %      98.50% of 200 the same action, distance 0.0123, 0.40 ms a call, "
        "3 failed: out of memory  ▁▅█"
    )
