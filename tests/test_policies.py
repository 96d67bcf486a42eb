"""Several policies of one schema.yaml, each by its name, and one that can't be loaded."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from policy_server import create_app
from policy_server.errors import ModelError, SettingsError
from policy_server.formats.unpacking import unpack_model
from tests.support.audit import audited
from tests.support.folders import ROOT
from tests.support.library_policies import POLICIES

KEY, ADMIN = "1234567asdfgh", "admin-secret"
MOUSE = {"obs": [5, 0, 1, 4, 3, 2]}
LPOC = {"obs": [1] * 11}
SCHEMA = """
policies:
  mouse:
    model: policies/mouse.zip
  lpoc:
    model: policies/lpoc
    actions:
      node: {labels: [a, b, c, d, e]}
default: lpoc
parameters: {api_key: 1234567asdfgh, url_path: app/v1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with two policies, compiled once for all tests."""
    home = tmp_path_factory.mktemp("several")
    (home / "policies").mkdir()
    mouse = ROOT / "examples" / "mouse_and_cheese" / "saved_model.zip"
    shutil.copy(mouse, home / "policies" / "mouse.zip")
    # No candidate, since schema.yaml names the policies.
    shutil.copy(mouse, home / "saved_model.zip")
    lpoc = ROOT / "examples" / "lpoc" / "saved_model.zip"
    shutil.unpack_archive(lpoc, home / "policies" / "lpoc")
    return home


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("POLICY_SERVER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@asynccontextmanager
async def served(home: Path, schema: str) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the policies of a schema.yaml."""
    (home / "schema.yaml").write_text(schema)
    app = create_app(home, admin_key=ADMIN)
    headers = {"access-token": KEY}
    async with (
        app.lifespan(),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://server", headers=headers
        ) as client,
    ):
        yield client


async def test_each_policy_answers_by_its_name(folder: Path) -> None:
    async with served(folder, SCHEMA) as client:
        default = await client.post("/predict_deterministic_raw", json=LPOC)
        named = await client.post("/policies/lpoc/predict_deterministic_raw", json=LPOC)
        mouse = await client.post("/policies/mouse/distribution_raw", json=MOUSE)
        wrong = await client.post("/policies/mouse/predict_raw", json=LPOC)
        unknown = await client.post("/policies/lift/predict_raw", json=LPOC)
        batch = await client.post("/policies/lpoc/predict_raw/batch", json=[LPOC, LPOC])

    assert default.status_code == 200, default.text
    assert named.json() == default.json()
    assert len(mouse.json()["components"][0]["probabilities"]) == 4
    assert (wrong.status_code, unknown.status_code) == (422, 404)
    assert len(batch.json()["actions"]) == 2


async def test_policies_are_listed(folder: Path) -> None:
    async with served(folder, SCHEMA) as client:
        listed = (await client.get("/policies")).json()
        refused = await client.get("/policies", headers={"access-token": "wrong"})
        document = (await client.get("/openapi.json")).json()

    mouse, lpoc = listed["policies"]
    assert listed["default"] == "lpoc"
    assert refused.status_code == 401
    assert (mouse["name"], mouse["width"], mouse["state"]) == ("mouse", 6, "serving")
    assert (mouse["family"], mouse["engine"]) == ("categorical(4)", "numpy")
    assert (lpoc["is_default"], mouse["is_default"]) == (True, False)
    assert lpoc["actions"][0]["labels"] == list("abcde")
    assert len(mouse["version"]) == 12
    assert "/policies/mouse/predict_raw" in document["paths"]
    assert "MouseRawObservation" in document["components"]["schemas"]


async def test_policy_that_cant_be_loaded_leaves_the_others_serving(folder: Path) -> None:
    schema = SCHEMA.replace("policies/lpoc", "policies/gone.zip")

    async with served(folder, schema) as client:
        ready = await client.get("/readyz")
        listed = (await client.get("/policies")).json()
        told = await client.get("/admin/policies/lpoc", headers={"access-token": ADMIN})
        mouse = await client.post("/policies/mouse/predict_raw", json=MOUSE)
        lpoc = await client.post("/policies/lpoc/predict_raw", json=LPOC)

    assert mouse.status_code == 200
    assert lpoc.status_code == 503
    assert lpoc.json()["detail"] == (
        "the policy lpoc can't be served; the server's log has the reason"
    )
    assert ready.status_code == 200
    # Without a key nobody learns paths and addresses.
    assert ready.json() == "ok; lpoc is not served"
    states = {item["name"]: (item["state"], item["reason"]) for item in listed["policies"]}
    assert states["mouse"] == ("serving", None)
    assert "gone.zip: not found" in told.text
    # The reason names a file of the server's machine.
    assert states["lpoc"] == (
        "failed",
        "the policy can't be served; the server's log has the reason",
    )


async def test_version_that_differs_from_what_was_unpacked_leaves_the_others_serving(
    folder: Path,
) -> None:
    unpacked = unpack_model(
        folder / "policies" / "mouse.zip", folder / "policies" / "v2", max_bytes=10**7
    )
    (unpacked / "saved_model.pb").write_bytes(b"other")
    schema = f"""
policies:
  mouse:
    versions:
      v1: {{model: policies/mouse.zip, traffic: 90}}
      v2: {{model: policies/v2, traffic: 10}}
  other: {{model: policies/mouse.zip}}
parameters: {{api_key: {KEY}}}
"""
    async with served(folder, schema) as client:
        wanted = [await client.post("/policies/mouse/predict_raw", json=MOUSE) for _ in range(20)]
        other = await client.post("/policies/other/predict_raw", json=MOUSE)
        told = await client.get("/admin/policies/mouse", headers={"access-token": ADMIN})

    assert {answer.headers["x-policy-version"] for answer in wanted} == {"v1"}
    assert other.status_code == 200
    assert "'saved_model.pb' was changed after it was unpacked" in told.text


async def test_start_ends_where_no_policy_can_be_loaded(folder: Path) -> None:
    schema = "policies: {a: {model: a.zip}, b: {model: b.zip}}\nparameters: {api_key: k}"

    with pytest.raises(ModelError, match=r"policies\.b: model: .*b\.zip: not found"):
        async with served(folder, schema):
            pass


async def test_policy_of_one_name_has_its_own_address(folder: Path) -> None:
    schema = "policies: {mouse: {model: policies/mouse.zip}}\nparameters: {api_key: 1234567asdfgh}"

    async with served(folder, schema) as client:
        short = await client.post("/predict_deterministic_raw", json=MOUSE)
        named = await client.post("/policies/mouse/predict_deterministic_raw", json=MOUSE)

    assert named.json() == short.json()


async def test_file_of_one_policy_lists_it_as_default(folder: Path) -> None:
    async with served(folder, f"parameters: {{api_key: {KEY}}}") as client:
        listed: dict[str, Any] = (await client.get("/policies")).json()
        document = (await client.get("/openapi.json")).json()

    assert [item["name"] for item in listed["policies"]] == ["default"]
    assert not [path for path in document["paths"] if path.startswith("/policies/")]


def test_address_of_one_model_is_refused_beside_policies(folder: Path) -> None:
    (folder / "schema.yaml").write_text(SCHEMA)

    with pytest.raises(SettingsError, match="MODEL_URI: is for one policy"):
        create_app(folder, model_uri=str(folder / "saved_model.zip"))


async def test_versions_share_the_questions_and_name_themselves(folder: Path) -> None:
    schema = f"""
policies:
  mouse:
    versions:
      v1: {{model: policies/mouse.zip, traffic: 50}}
      v2: {{model: policies/mouse.zip}}
      v3: {{model: policies/mouse.zip, shadow: True}}
parameters: {{api_key: {KEY}}}
"""
    async with served(folder, schema) as client:
        answers = [await client.post("/predict_raw", json=MOUSE) for _ in range(40)]
        episode = [
            await client.post("/predict_raw", json=MOUSE, headers={"x-episode-id": "e-7"})
            for _ in range(40)
        ]
        queried = await client.post("/predict_raw?seed=1", json=MOUSE)
        batch = await client.post("/predict_raw/batch", json=[MOUSE])
        wanted = [
            await client.post(route, json=MOUSE, headers={"x-policy-version": name})
            for name in ("v2", "v3", "v4")
            for route in ("/predict_raw", "/predict_raw?seed=1")
        ]
        listed = (await client.get("/policies")).json()

    named = "x-policy-version"
    assert [answer.headers.get(named) for answer in wanted] == ["v2"] * 2 + ["v3"] * 2 + [None] * 2
    assert {answer.status_code for answer in wanted[4:]} == {409}
    assert wanted[4].json() == wanted[5].json()
    assert "'v4' is not loaded; expected one of v1, v2, v3" in wanted[4].json()["detail"]
    assert {answer.headers[named] for answer in answers} == {"v1", "v2"}
    assert len({answer.headers[named] for answer in episode}) == 1
    assert {queried.headers[named], batch.headers[named]} <= {"v1", "v2"}
    versions = {item["name"]: item for item in listed["policies"][0]["versions"]}
    assert (versions["v1"]["traffic"], versions["v2"]["traffic"]) == (50, 50)
    assert versions["v3"]["is_shadow"]
    assert versions["v3"]["agreement"]["same_mode"] in (None, 1.0)


async def test_model_is_fetched_from_an_address_and_held_against_its_pin(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mouse = folder / "policies" / "mouse.zip"
    digest = hashlib.sha256(mouse.read_bytes()).hexdigest()
    schema = f"""
policies:
  good: {{model: "{mouse.as_uri()}#sha256={digest}"}}
  bad: {{model: "{mouse.as_uri()}#sha256={"0" * 64}"}}
parameters: {{api_key: {KEY}}}
"""
    async with served(folder, schema) as client:
        good = await client.post("/policies/good/predict_raw", json=MOUSE)
        bad = await client.post("/policies/bad/predict_raw", json=MOUSE)

    assert good.status_code == 200, good.text
    assert bad.status_code == 503
    [told] = [record for record in caplog.records if record.message == "policy_not_served"]
    assert "policies.bad: model: " in vars(told)["reason"]
    assert "sha256" in vars(told)["reason"]


@pytest.mark.usefixtures("compiled_anew")
async def test_deploying_touches_no_file_in_the_event_loop(tmp_path: Path) -> None:
    for name in ("sb3_v18_ppo_discrete", "sb3_ppo_box"):
        shutil.copy(POLICIES / name / "policy.zip", tmp_path / f"{name}.zip")
    archive = tmp_path / "v2.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(tmp_path / "sb3_v18_ppo_discrete.zip", "saved_model.zip")
        packed.writestr("schema.yaml", f"parameters: {{api_key: {KEY}}}")
    body, headers = archive.read_bytes(), {"access-token": ADMIN}
    policies = "door: {model: sb3_v18_ppo_discrete.zip}"
    schema = f"{{policies: {{{policies}}}, parameters: {{api_key: {KEY}}}}}"
    versions = "/admin/policies/door/versions"
    async with served(tmp_path, schema) as client:
        with audited() as events:
            deployed = await client.post(f"{versions}?version=v2", content=body, headers=headers)
            refused = await client.post(
                versions, json={"model": "sb3_ppo_box.zip"}, headers=headers
            )

    assert (deployed.status_code, refused.status_code) == (201, 409), (deployed.text, refused.text)
    assert [event for event in events if str(tmp_path) in event] == []
