"""Versions that change while the server answers, over HTTP, from real files."""

from __future__ import annotations

import asyncio
import io
import json
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
from tests.support.connections import Server
from tests.support.library_policies import POLICIES
from tests.support.waiting import until
from tests.support.web import assert_invalid

KEY, ADMIN = "1234567asdfgh", "admin-secret"
OBSERVATION = {"obs": [0.1, 0.2, 0.3, 0.4]}
ZIP = POLICIES / "sb3_v18_ppo_discrete" / "policy.zip"
OTHER = POLICIES / "sb3_trpo" / "policy.zip"
VERSIONS = "/admin/policies/default/versions"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a policy."""
    home = tmp_path_factory.mktemp("admin")
    shutil.copy(ZIP, home)
    (home / "schema.yaml").write_text(f"parameters: {{api_key: {KEY}}}")
    return home


@pytest.fixture
def home(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a server's folder of its own."""
    for name in list(os.environ):
        if name.startswith("POLICY_SERVER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(compiled, tmp_path / "home")
    return tmp_path / "home"


@asynccontextmanager
async def served(home: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:  # noqa: ANN401 -- settings
    """Serve a folder, with an admin key."""
    app = create_app(home, **{"admin_key": ADMIN, **options})
    async with (
        app.lifespan(),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://server",
            headers={"access-token": KEY},
            timeout=120,
        ) as client,
    ):
        yield client


async def admin(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    **options: Any,  # noqa: ANN401 -- httpx's own
) -> httpx.Response:
    """Send a request with the admin key."""
    headers = {"access-token": ADMIN, **options.pop("headers", {})}
    return await client.request(method, path, headers=headers, **options)


async def version_of(client: httpx.AsyncClient, **headers: str) -> str:
    """Ask a question, and return the version that answered."""
    answer = await client.post("/predict_raw", json=OBSERVATION, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-policy-version"]


def bundle(**files: bytes) -> bytes:
    """Return a zip of files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


@pytest.mark.parametrize("is_upload", [True, False], ids=["upload", "address"])
async def test_deploy_that_has_come_whole_is_carried_out_though_its_client_has_gone(
    home: Path, caplog: pytest.LogCaptureFixture, *, is_upload: bool
) -> None:
    caplog.set_level("INFO", "policy_server")
    body = ZIP.read_bytes() if is_upload else json.dumps({"model": str(ZIP)}).encode()
    kind = "application/zip" if is_upload else "application/json"
    head = (
        f"POST {VERSIONS} HTTP/1.1\r\naccess-token: {ADMIN}\r\ncontent-type: {kind}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    app = create_app(home, admin_key=ADMIN)
    async with app.lifespan():
        caplog.clear()
        server = Server(app)
        protocol, transport = server.connect()
        protocol.data_received(head.encode() + body)
        await until(lambda: "compiling_policy" in caplog.messages, timeout_s=60)
        protocol.connection_lost(None)
        await until(lambda: not server.state.tasks, timeout_s=120)

    deployed = json.loads((home / "versions.json").read_text())["default"]["deployment"]
    assert deployed["live"] == "v2"
    assert transport.written == b""


async def test_deployed_version_is_live_and_survives_a_restart(home: Path) -> None:
    async with served(home) as client:
        first = await version_of(client)
        answer = await admin(client, "POST", VERSIONS, content=ZIP.read_bytes())
        live = await version_of(client)
    async with served(home) as client:
        again = await version_of(client)
        back = await admin(client, "POST", "/admin/policies/default/rollback")
        after = await version_of(client)

    assert answer.status_code == 201, answer.text
    status = answer.json()
    assert (status["live"], status["former"], status["serial"]) == ("v2", first, 1)
    assert (live, again, after) == ("v2", "v2", first)
    assert back.json()["former"] == "v2"
    [folder] = (home / "versions" / "default").iterdir()
    assert folder.name.startswith("v2.")


async def test_policy_that_is_deployed_later_has_its_types_in_the_document(home: Path) -> None:
    (home / "schema.yaml").write_text(
        f"""
policies:
  door: {{model: door.zip}}
  lift: {{model: missing.zip}}
parameters: {{api_key: {KEY}}}
"""
    )
    (home / ZIP.name).rename(home / "door.zip")
    async with served(home) as client:
        before = (await client.get("/openapi.json")).json()["components"]["schemas"]
        answer = await admin(
            client,
            "POST",
            "/admin/policies/lift/versions?version=v2",
            content=(home / "door.zip").read_bytes(),
        )
        after = (await client.get("/openapi.json")).json()["components"]["schemas"]

    assert answer.status_code == 201, answer.text
    assert before["DoorPrediction"] == after["DoorPrediction"]
    assert before["LiftPrediction"] != after["LiftPrediction"]
    lift = after["LiftPrediction"]["properties"]["actions"]
    assert lift == after["DoorPrediction"]["properties"]["actions"]


async def test_upload_is_on_the_disk_before_the_deployment_that_names_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve())

    async with served(home) as client:
        monkeypatch.setattr(os, "fsync", noting)
        answer = await admin(client, "POST", VERSIONS, content=ZIP.read_bytes())

    [folder] = (home / "versions" / "default").iterdir()
    assert answer.status_code == 201, answer.text
    needed = {folder / "saved_model.zip", folder, folder.parent, folder.parent.parent, home}
    assert needed - {home} <= {*synced[: synced.index(home)]}


async def test_changed_schema_wins_over_a_deployment(home: Path) -> None:
    async with served(home) as client:
        first = await version_of(client)
        await admin(client, "POST", VERSIONS, content=ZIP.read_bytes())
    (home / "schema.yaml").write_text(
        f"actions: {{move: {{labels: [a, b]}}}}\nparameters: {{api_key: {KEY}}}"
    )
    async with served(home) as client:
        assert await version_of(client) == first


async def test_episode_stays_on_its_version_through_a_promote(home: Path) -> None:
    async with served(home) as client:
        first = await version_of(client)
        before = [await version_of(client, **{"x-episode-id": "e"}) for _ in range(100)]
        await admin(client, "POST", f"{VERSIONS}?version=next", content=ZIP.read_bytes())
        after = [await version_of(client, **{"x-episode-id": "e"}) for _ in range(100)]
        others = await version_of(client)

    assert set(before + after) == {first}
    assert others == "next"


async def test_disagreement_counts_only_behind_a_number_of_questions(home: Path) -> None:
    async with served(home) as client:
        first = await version_of(client)
        await admin(client, "POST", f"{VERSIONS}?version=v2&traffic=10", content=ZIP.read_bytes())
        path = "/admin/policies/default/promote?max_disagreement=0.02"
        refused = await admin(client, "POST", path)
        status = await admin(client, "GET", "/admin/policies/default")

    assert_invalid(refused, "query.after")
    assert status.json()["live"] == first


async def test_candidate_is_promoted_by_name(home: Path) -> None:
    async with served(home) as client:
        first = await version_of(client)
        await admin(client, "POST", f"{VERSIONS}?traffic=50", content=ZIP.read_bytes())
        split = {await version_of(client) for _ in range(60)}
        promoted = await admin(client, "POST", "/admin/policies/default/promote")
        whole = {await version_of(client) for _ in range(20)}
        gone = await admin(client, "DELETE", f"{VERSIONS}/{first}")
        listed = (await client.get("/policies")).json()["policies"][0]

    assert split == {first, "v2"}
    assert whole == {"v2"}
    assert promoted.json()["live"] == "v2"
    assert gone.json()["former"] is None
    assert "v2" in {item["name"] for item in listed["versions"]}


def unzipped() -> dict[str, bytes]:
    """Return the files of the policy in a folder, as `generate.py deploy FOLDER` sends them."""
    with zipfile.ZipFile(ZIP) as archive:
        return {f"policy/{name}": archive.read(name) for name in archive.namelist()}


OTHER_SCHEMA = b"observations: {a: {type: List[float], min_items: 4, max_items: 4}}"
BAD = {
    "no zip": b"hello",
    "no policy": bundle(readme__txt=b"hello"),
    "other observations": OTHER.read_bytes(),
    "damaged": ZIP.read_bytes()[:-3000],
    "climbs": bundle(**{"../outside": b"x"}),
    "other schema": bundle(
        saved_model__zip=ZIP.read_bytes(),
        schema__yaml=OTHER_SCHEMA,
    ),
    "broken schema": bundle(saved_model__zip=ZIP.read_bytes(), schema__yaml=b"parameters: ["),
    "other schema beside a policy's folder": bundle(
        **unzipped(),
        schema__yaml=OTHER_SCHEMA,
    ),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
async def test_bad_version_leaves_everything_as_it_was(home: Path, content: bytes) -> None:
    async with served(home) as client:
        first = await version_of(client)
        refused = await admin(client, "POST", VERSIONS, content=content)
        status = await admin(client, "GET", "/admin/policies/default")
        still = await version_of(client)

    assert refused.status_code == 409, refused.text
    assert isinstance(refused.json()["detail"], str)
    # Whoever deploys has to know what to mend.
    assert "log has the reason" not in refused.json()["detail"]
    assert status.json()["serial"] == 0
    assert [item["name"] for item in status.json()["versions"]] == [first]
    assert still == first
    assert not list((home / "versions" / "default").iterdir())
    assert not (home / "versions" / "outside").exists()


async def test_folder_is_deployed_with_its_own_schema(home: Path) -> None:
    content = bundle(
        saved_model__zip=ZIP.read_bytes(),
        schema__yaml=b"parameters: {api_key: other, url_path: elsewhere, discrete: True}",
    )
    async with served(home) as client:
        answer = await admin(client, "POST", VERSIONS, content=content)
        live = await version_of(client)

    assert answer.status_code == 201, answer.text
    assert live == "v2"


async def test_name_of_a_content_type_may_have_any_case(home: Path) -> None:
    async with served(home) as client:
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        content = b'{"model": "file:///no/such.zip"}'
        answer = await admin(client, "POST", VERSIONS, content=content, headers=headers)

    assert answer.status_code == 409
    assert "no/such.zip" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["-", "--help"])
async def test_name_of_a_version_begins_with_a_letter_or_digit(home: Path, name: str) -> None:
    async with served(home) as client:
        answer = await admin(client, "POST", f"{VERSIONS}?version={name}", content=b"x")

    assert answer.status_code == 409
    assert "beginning with a letter or digit" in answer.json()["detail"]


async def test_model_is_deployed_from_an_address(home: Path, tmp_path: Path) -> None:
    shutil.copy(ZIP, tmp_path / "policy.zip")
    async with served(home) as client:
        body = {"model": (tmp_path / "policy.zip").as_uri()}
        answer = await admin(client, "POST", f"{VERSIONS}?version=next", json=body)
        live = await version_of(client)
        missing = await admin(client, "POST", VERSIONS, json={"model": "file:///no/such.zip"})
        wrong = await admin(client, "POST", VERSIONS, json={"modl": "x"})
        empty = await admin(client, "POST", VERSIONS, json={"model": " "})
        os.mkfifo(tmp_path / "pipe")
        pipe = await admin(client, "POST", VERSIONS, json={"model": str(tmp_path / "pipe")})
        still_live = await version_of(client)

    assert answer.status_code == 201, answer.text
    assert live == "next"
    assert missing.status_code == 409
    assert "no/such.zip" in missing.json()["detail"]
    assert wrong.status_code == empty.status_code == pipe.status_code == 409
    assert "it is a named pipe; expected a file" in pipe.json()["detail"]
    assert still_live == "next"


async def test_body_that_is_too_long_for_an_address_is_not_read_to_its_end(home: Path) -> None:
    sent: list[None] = []

    async def spaces() -> AsyncIterator[bytes]:
        for _ in range(1000):
            sent.append(None)
            yield b" " * 65_536

    async with served(home) as client:
        headers = {"content-type": "application/json"}
        answer = await admin(client, "POST", VERSIONS, content=spaces(), headers=headers)

    assert answer.status_code == 409
    assert 'the body is no {"model"' in answer.json()["detail"]
    assert len(sent) < 10


async def test_start_serves_the_files_that_were_deployed_or_none(
    home: Path, tmp_path: Path
) -> None:
    source = tmp_path / "policy.zip"
    shutil.copy(ZIP, source)
    async with served(home) as client:
        body = {"model": source.as_uri()}
        answer = await admin(client, "POST", f"{VERSIONS}?version=v2&traffic=50", json=body)
        deployed = await versions_in(client)
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("another.txt", "and so another policy")

    async with served(home) as client:
        from_the_copy = await versions_in(client)
    [copy] = (home / "versions" / "default").glob("v2.*")
    shutil.rmtree(copy)
    async with served(home) as client:
        without = await versions_in(client)
        [listed] = (await client.get("/policies")).json()["policies"]
        live = await version_of(client)

    assert answer.status_code == 201, answer.text
    assert from_the_copy == deployed
    assert without["v2"]["state"] == "failed"
    assert "holds another policy than the one that was deployed" in without["v2"]["reason"]
    [hidden] = [item["reason"] for item in listed["versions"] if item["name"] == "v2"]
    assert hidden == "the policy can't be served; the server's log has the reason"
    assert live != "v2"


async def versions_in(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """Return the versions of the only policy, by name."""
    status = await admin(client, "GET", "/admin/policies/default")
    return {item["name"]: item for item in status.json()["versions"]}


async def test_address_that_is_refused_leaves_no_files(home: Path) -> None:
    async with served(home) as client:
        answer = await admin(client, "POST", VERSIONS, json={"model": OTHER.as_uri()})

        assert answer.status_code == 409, answer.text
        assert not list((home / "versions" / "default").iterdir())


async def test_path_that_is_missing_is_refused_with_its_name(home: Path, tmp_path: Path) -> None:
    missing = tmp_path / "gone.zip"
    async with served(home) as client:
        answer = await admin(client, "POST", VERSIONS, json={"model": str(missing)})

    assert answer.status_code == 409, answer.text
    assert answer.json()["detail"].startswith(f"model: {missing}: not found")


async def test_address_that_no_file_can_have_is_no_address(home: Path) -> None:
    async with served(home) as client:
        answer = await admin(client, "POST", VERSIONS, json={"model": "a\0b"})

    assert answer.status_code == 409
    assert "the body is no" in answer.text


async def test_address_of_an_unknown_kind_is_refused_by_the_name_that_was_asked(home: Path) -> None:
    async with served(home) as client:
        answer = await admin(client, "POST", VERSIONS, json={"model": "gopher://x"})

    assert answer.json()["detail"] == (
        "model: expected s3://, gs://, https://, file:// or a path, got gopher://"
    )


async def test_admin_routes_take_the_admin_key_alone(home: Path) -> None:
    async with served(home) as client:
        by_access_key = await client.get("/admin/policies/default")
        without = await client.get("/admin/policies/default", headers={"access-token": ""})
        by_admin_key = await admin(client, "POST", "/predict_raw", json=OBSERVATION)
        unknown = await admin(client, "GET", "/admin/policies/lift")
        slip = await admin(client, "POST", f"{VERSIONS}?verson=1", content=b"")
        document = (await client.get("/openapi.json")).json()
    async with served(home, admin_key=None) as client:
        absent = await client.get("/admin/policies/default")

    assert (by_access_key.status_code, without.status_code) == (401, 401)
    assert by_access_key.json()["detail"] == "wrong admin key"
    assert by_admin_key.status_code == 401
    assert (unknown.status_code, slip.status_code, absent.status_code) == (409, 422, 404)
    assert not [path for path in document["paths"] if path.startswith("/admin")]


async def test_two_deploys_at_once_are_both_carried_out(home: Path) -> None:
    async with served(home) as client:
        answers = await asyncio.gather(
            *(
                admin(client, "POST", f"{VERSIONS}?traffic=20", content=ZIP.read_bytes())
                for _ in range(2)
            ),
            admin(client, "POST", f"{VERSIONS}?version=v2", content=ZIP.read_bytes()),
        )
        status = (await admin(client, "GET", "/admin/policies/default")).json()

    assert sorted(answer.status_code for answer in answers) == [201, 201, 409]
    assert sum(item["traffic"] for item in status["versions"]) == pytest.approx(100)
    assert json.loads((home / "versions.json").read_text())


async def test_requests_are_answered_while_versions_change(home: Path) -> None:
    async with served(home) as client:
        failed: list[str] = []
        is_over = asyncio.Event()

        async def ask_on() -> int:
            count = 0
            while not is_over.is_set():
                answer = await client.post("/predict_raw", json=OBSERVATION)
                if answer.status_code != 200:
                    failed.append(answer.text)
                count += 1
            return count

        asking = [asyncio.create_task(ask_on()) for _ in range(8)]
        for _ in range(4):
            answer = await admin(client, "POST", VERSIONS, content=ZIP.read_bytes())
            assert answer.status_code == 201, answer.text
        is_over.set()
        counts = await asyncio.gather(*asking)

    assert failed == []
    assert sum(counts) > 50


async def test_version_that_drains_can_be_unloaded_and_its_name_used_again(home: Path) -> None:
    headers = {"x-episode-id": "e"}
    async with served(home) as client:
        first = await version_of(client, **headers)
        await admin(client, "POST", f"{VERSIONS}?version=two", content=ZIP.read_bytes())
        await admin(client, "DELETE", f"{VERSIONS}/{first}")
        during = await version_of(client, **headers)
        taken = await admin(client, "POST", f"{VERSIONS}?version={first}", content=ZIP.read_bytes())
        gone = await admin(client, "DELETE", f"{VERSIONS}/{first}")
        after = await version_of(client, **headers)
        free = await admin(client, "POST", f"{VERSIONS}?version={first}", content=ZIP.read_bytes())

    assert (during, after) == (first, "two")
    assert taken.status_code == 409
    assert "still answers its last episodes and sessions" in taken.json()["detail"]
    assert "undeploy it once more" in taken.json()["detail"]
    assert gone.status_code == 200, gone.text
    assert free.status_code == 201, free.text
