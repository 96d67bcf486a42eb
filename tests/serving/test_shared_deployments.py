"""Servers with folders of their own that share a cluster: all serve what was deployed on one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from policy_server.errors import DeploymentChangedError, DeploymentError, ModelError
from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import (
    DeployedVersion,
    Deployer,
    Deployment,
    OpenedPolicy,
    PlannedVersion,
    PolicyOpener,
    PolicySlot,
)
from policy_server.serving.deployment_file import DeploymentFile
from policy_server.serving.deployment_store import Bases, one_basis
from policy_server.serving.shared_deployments import SharedDeployments
from policy_server.settings import Settings
from tests.support.fakes import integer_backend, opened
from tests.support.waiting import until

SCHEMA = parse_schema("observations: {cat: {type: int}, mouse: {type: float}}")
V1 = DeployedVersion("v1", "v1.zip", 100.0)


class Records:
    """A cluster's records, which can be lost; as an actor does, they make one change at a time."""

    def __init__(self) -> None:
        self.changing = threading.Lock()
        self.texts: dict[str, str] = {}
        self.folders: dict[str, dict[str, dict[str, bytes]]] = {}

    def read(self, key: str) -> str | None:
        """See `SharedRecords.read`."""
        return self.texts.get(key)

    def write(
        self, key: str, text: str, *, before: str | None, folders: Mapping[str, Path]
    ) -> bool:
        """See `SharedRecords.write`."""
        with self.changing:
            if self.texts.get(key) != before:
                return False
            known = self.folders.get(key, {})
            self.folders[key] = {
                name: known.get(name) or {path.name: path.read_bytes() for path in folder.iterdir()}
                for name, folder in folders.items()
            }
            self.texts[key] = text
            return True

    def fetch(self, key: str, name: str, target: Path) -> bool:
        """See `SharedRecords.fetch`."""
        for file, content in self.folders.get(key, {}).get(name, {}).items():
            (target / file).write_bytes(content)
        return name in self.folders.get(key, {})

    def lose(self) -> None:
        """Forget everything, as an actor does whose machine has died."""
        self.texts.clear()
        self.folders.clear()


def test_kept_versions_are_those_of_the_copy_and_nobody_knows_them_without(tmp_path: Path) -> None:
    """Where the copy can't be read, no files may go."""
    bases = one_basis({"door": "today"})
    records = Records()
    first = SharedDeployments(records, DeploymentFile(tmp_path, bases), bases, lambda *_: {})
    first.write("door", Deployment((V1,), "v1", serial=1))
    (tmp_path / "readonly").write_text("no folder")
    copyless = DeploymentFile(tmp_path / "readonly", bases)
    second = SharedDeployments(records, copyless, bases, lambda *_: {})
    second.read("door")

    assert {version.name for version in first.named("door")} == {"v1"}
    with pytest.raises(DeploymentError, match="can't be read"):
        second.named("door")


def test_change_after_files_were_replaced_is_there_at_the_next_start_over_them(
    tmp_path: Path,
) -> None:
    found, records = ["old"], Records()
    (tmp_path / "upload").mkdir()
    (tmp_path / "upload" / "policy").write_text("second")
    (tmp_path / "fetched").mkdir()

    def store(bases: Bases, home: Path = tmp_path) -> SharedDeployments:
        file = DeploymentFile(home, bases)
        return SharedDeployments(records, file, bases, lambda *_: {"upload": tmp_path / "upload"})

    def new_start(home: Path) -> SharedDeployments:
        return store(one_basis({"door": "new"}), home)

    first, later = store(lambda _policy: found), store(lambda _policy: found)
    first.write("door", Deployment((V1,), "v1", serial=1))
    found.append("new")

    before = [first.read("door"), later.read("door")]
    is_fetched = later.fetch("door", "upload", tmp_path / "fetched")
    at_next_start = new_start(tmp_path).read("door")
    changed = Deployment((V1,), "v1", serial=2)
    first.write("door", changed)
    with pytest.raises(DeploymentChangedError):
        later.write("door", changed)

    assert before == [Deployment((V1,), "v1", serial=1)] * 2
    assert is_fetched
    assert at_next_start is None
    assert first.read("door") == later.read("door") == changed
    assert new_start(tmp_path / "elsewhere").read("door") == changed
    records.lose()
    assert new_start(tmp_path).read("door") == changed


def test_copy_of_what_others_decide_over_the_old_files_is_none_over_the_new_ones(
    tmp_path: Path,
) -> None:
    records, old, new = Records(), one_basis({"door": "old"}), one_basis({"door": "new"})
    other_file = DeploymentFile(tmp_path / "other", old)
    other = SharedDeployments(records, other_file, old, lambda *_: {})

    def both(_policy: str) -> Sequence[str]:
        return ("old", "new")

    here = SharedDeployments(records, DeploymentFile(tmp_path, both), both, lambda *_: {})
    (tmp_path / "other").mkdir()
    other.write("door", Deployment((V1,), "v1", serial=1))

    followed = here.read("door")

    assert followed == Deployment((V1,), "v1", serial=1)
    assert DeploymentFile(tmp_path, old).read("door") == followed
    assert DeploymentFile(tmp_path, new).read("door") is None


class Server:
    """A server with a folder of its own; its policies are named after their files' contents."""

    def __init__(self, home: Path, records: Records, *, basis: str = "today") -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        bases = one_basis({"door": basis})
        store = SharedDeployments(records, DeploymentFile(home, bases), bases, self.uploads)
        planned = [PlannedVersion("v1", self.opener(V1), V1.model)]
        self.slot = PolicySlot("door", SCHEMA, planned, settings=Settings(), metrics=Metrics())
        self.store = store
        self.deployer = Deployer(self.slot, self.opener, store, period_s=0.01, session_drain_s=60.0)
        self.following: asyncio.Task[None] | None = None

    def uploads(self, _policy: str, deployment: Deployment) -> Mapping[str, Path]:
        """Return the folders of the uploaded versions."""
        models = [item.model for item in deployment if item.model and item.model != V1.model]
        return {model: self.home / model for model in models}

    def opener(self, version: DeployedVersion) -> PolicyOpener:
        """Return what loads a version: from the folder, else from the cluster."""

        def open_version() -> AbstractAsyncContextManager[OpenedPolicy]:
            if version.model == V1.model or version.model is None:
                return opened(integer_backend(), digest="first")
            folder = self.home / version.model
            if not folder.is_dir():
                folder.mkdir()
                if not self.store.fetch("door", version.model, folder):
                    folder.rmdir()
                    raise ModelError(f"{folder}: not found")
            return opened(integer_backend(), digest=(folder / "policy").read_text())

        return open_version

    def upload(
        self, name: str, model: str, contents: str, *, percent: float = 100.0
    ) -> DeployedVersion:
        """Return a version whose files lie in this server's folder."""
        (self.home / model).mkdir()
        (self.home / model / "policy").write_text(contents)
        return DeployedVersion(name, model, percent)

    async def start(self) -> Server:
        """Load the versions, and follow the others."""
        self.deployer.plan()
        await self.slot.start()
        self.deployer.adopt()
        self.following = asyncio.create_task(self.deployer.run())
        return self

    def end_following(self) -> None:
        """Look at the cluster no more, as a server does that is busy."""
        assert self.following is not None, "it was started"
        self.following.cancel()

    async def aclose(self) -> None:
        """End the server."""
        self.end_following()
        await self.deployer.aclose()
        await self.slot.aclose()

    @property
    def served(self) -> tuple[str, str]:
        """Return the live version's name and its files' contents."""
        version = self.slot.choose()
        return version.label, version.digest


@pytest.fixture
def records() -> Records:
    """Return the records of a new cluster."""
    return Records()


async def test_servers_follow_and_get_the_files(tmp_path: Path, records: Records) -> None:
    first = await Server(tmp_path / "a", records).start()
    second = await Server(tmp_path / "b", records).start()

    await first.deployer.deploy(first.upload("v2", "two", "second"))
    await until(lambda: second.served == ("v2", "second"))
    late = await Server(tmp_path / "c", records).start()
    await late.deployer.roll_back()
    await until(lambda: first.served == second.served == ("v1", "first"))

    assert (tmp_path / "c" / "versions.json").exists()
    for server in (first, second, late):
        await server.aclose()


async def test_server_of_other_files_has_a_deployment_of_its_own(
    tmp_path: Path, records: Records
) -> None:
    first = await Server(tmp_path / "a", records).start()
    await first.deployer.deploy(first.upload("v2", "two", "second"))

    other = await Server(tmp_path / "b", records, basis="tomorrow").start()
    await other.deployer.deploy(other.upload("v9", "nine", "ninth"))

    assert (first.served, other.served) == (("v2", "second"), ("v9", "ninth"))
    assert len(records.texts) == 2
    await first.aclose()
    await other.aclose()


async def test_change_is_made_of_what_another_server_has_decided(
    tmp_path: Path, records: Records
) -> None:
    first = await Server(tmp_path / "a", records).start()
    second = await Server(tmp_path / "b", records).start()
    second.end_following()
    await first.deployer.deploy(first.upload("v2", "two", "second", percent=10.0))

    promoted = await second.deployer.promote("v2")

    assert (promoted.live, promoted.serial) == ("v2", 2)
    assert second.served == ("v2", "second")
    await first.aclose()
    await second.aclose()


async def test_two_deploys_at_once_of_two_names_are_both_carried_out(
    tmp_path: Path, records: Records
) -> None:
    servers = [await Server(tmp_path / name, records).start() for name in "ab"]

    await asyncio.gather(
        *(
            server.deployer.deploy(server.upload(f"of_{name}", name, name, percent=20.0))
            for server, name in zip(servers, "xy", strict=True)
        )
    )
    await until(lambda: servers[0].deployer.deployment == servers[1].deployer.deployment)

    assert {"of_x", "of_y"} < set(servers[0].slot.versions)
    for server in servers:
        await server.aclose()


async def test_one_of_two_deploys_of_one_name_is_refused(tmp_path: Path, records: Records) -> None:
    servers = [await Server(tmp_path / name, records).start() for name in "ab"]

    answers = await asyncio.gather(
        *(
            server.deployer.deploy(server.upload("v2", name, name))
            for server, name in zip(servers, "xy", strict=True)
        ),
        return_exceptions=True,
    )
    await until(lambda: servers[0].served == servers[1].served)

    refused = [answer for answer in answers if isinstance(answer, DeploymentError)]
    assert [error.message[:30] for error in refused] == ["version v2 is deployed already"]
    assert servers[0].served[0] == "v2"
    for server in servers:
        await server.aclose()


async def test_name_that_was_given_to_other_files_is_loaded_anew(
    tmp_path: Path, records: Records
) -> None:
    first = await Server(tmp_path / "a", records).start()
    late = await Server(tmp_path / "b", records).start()
    await first.deployer.deploy(first.upload("v2", "two", "second", percent=50.0))
    await until(lambda: "v2" in late.slot.versions)
    late.end_following()
    while late.slot.choose("episode").label != "v2":
        late.slot.end_episode("episode")
    await first.deployer.undeploy("v2")
    # Its files go after it is unloaded, and its name is free then.
    await until(lambda: "v2" not in first.deployer.draining)
    await first.deployer.deploy(first.upload("v2", "other", "third"))

    late.following = asyncio.create_task(late.deployer.run())
    await until(lambda: late.served == ("v2", "third"))
    of_episode = late.slot.choose("episode").digest
    late.slot.end_episode("episode")
    await until(lambda: set(late.slot.versions) == {"v1", "v2"})

    assert of_episode == "second"
    assert late.served == ("v2", "third")
    await first.aclose()
    await late.aclose()


async def test_server_that_gets_other_files_does_not_serve_them(
    tmp_path: Path, records: Records
) -> None:
    first = await Server(tmp_path / "a", records).start()
    second = await Server(tmp_path / "b", records).start()
    # What an address holds may have changed meanwhile.
    second.upload("v2", "two", "changed")

    await first.deployer.deploy(first.upload("v2", "two", "second"))
    await until(lambda: "v2" in second.slot.failures)

    assert first.served == ("v2", "second")
    assert second.served == ("v1", "first")
    assert set(second.slot.versions) == {"v1"}
    assert "holds another policy than the one that was" in second.slot.failures["v2"]
    await second.deployer.roll_back()
    await until(lambda: first.served == ("v1", "first"))
    with pytest.raises(DeploymentError, match="holds another policy than the one that was"):
        await second.deployer.promote("v2")
    assert second.served == ("v1", "first")
    await first.aclose()
    await second.aclose()


async def test_what_the_cluster_has_lost_is_written_again(tmp_path: Path, records: Records) -> None:
    first = await Server(tmp_path / "a", records).start()
    second = await Server(tmp_path / "b", records).start()
    second.end_following()
    await first.deployer.deploy(first.upload("v2", "two", "second"))

    records.lose()
    await until(lambda: bool(records.texts))
    late = await Server(tmp_path / "c", records).start()

    assert late.served == ("v2", "second")
    for server in (first, second, late):
        await server.aclose()


async def test_copy_of_a_folder_is_used_where_the_cluster_is_new(
    tmp_path: Path, records: Records
) -> None:
    first = await Server(tmp_path / "a", records).start()
    for number in (2, 3):
        await first.deployer.deploy(first.upload(f"v{number}", f"{number}", f"{number}"))
    await first.aclose()

    again = await Server(tmp_path / "a", Records()).start()
    # A cluster that has decided since is right, whatever the folder's copy says.
    decided = Records()
    other = await Server(tmp_path / "b", decided).start()
    await other.deployer.deploy(other.upload("v9", "nine", "ninth"))
    joined = await Server(tmp_path / "a", decided).start()

    assert again.served == ("v3", "3")
    assert joined.served == ("v9", "ninth")
    for server in (again, other, joined):
        await server.aclose()


async def test_damaged_record_is_replaced(tmp_path: Path, records: Records) -> None:
    first = await Server(tmp_path / "a", records).start()
    records.texts["deployment/door/today"] = '{"versions": 1}'

    await first.deployer.deploy(first.upload("v2", "two", "second"))

    assert first.served == ("v2", "second")
    await first.aclose()
