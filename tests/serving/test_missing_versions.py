"""Versions that one process of a server can't load: they stay deployed, and are tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from policy_server.errors import ModelError
from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import (
    DeployedVersion,
    Deployer,
    Deployment,
    Evidence,
    OpenedPolicy,
    PlannedVersion,
    PolicyOpener,
    PolicySlot,
)
from policy_server.serving.deployment_file import DeploymentFile
from policy_server.serving.deployment_store import one_basis
from policy_server.settings import Settings
from tests.support.fakes import integer_backend, opened
from tests.support.waiting import until

SCHEMA = parse_schema("observations: {cat: {type: int}, mouse: {type: float}}")
BASE = "base.zip"
ADDRESS = "s3://policies/base.zip"
OWN_FILE = "saved_model.zip"


class CountedFile(DeploymentFile):
    """The deployments in a file, and how often they were looked at."""

    looks = 0

    def read(self, policy: str) -> Deployment | None:
        """See `DeploymentFile.read`."""
        self.looks += 1
        return super().read(policy)


class Process:
    """A process of a server: it finds the files at `there`, a digest at each address."""

    def __init__(self, home: Path, there: dict[str, str]) -> None:
        self.there = there
        self.asked: list[str] = []
        # Addresses that don't answer, and how often such a load was broken off.
        self.silent: set[str] = set()
        self.broken_off = 0
        # A policy that schema.yaml has without versions is named after its files.
        own = [model for model in (ADDRESS, OWN_FILE) if model in there]
        name, model = ("", own[0]) if own else ("v1", BASE)
        planned = [PlannedVersion(name, self.opener(DeployedVersion(name, model)), model)]
        self.slot = PolicySlot("door", SCHEMA, planned, settings=Settings(), metrics=Metrics())
        self.store = CountedFile(home, one_basis({"door": "today"}))
        self.deployer = Deployer(self.slot, self.opener, self.store, period_s=0.01)

    def opener(self, version: DeployedVersion) -> PolicyOpener:
        """Return what loads a version."""

        def open_version() -> AbstractAsyncContextManager[OpenedPolicy]:
            assert version.model is not None
            self.asked.append(version.model)
            if version.model in self.silent:
                return self._never()
            if version.model not in self.there:
                raise ModelError(f"{version.model}: not found")
            return opened(integer_backend(), digest=self.there[version.model])

        return open_version

    @asynccontextmanager
    async def _never(self) -> AsyncIterator[OpenedPolicy]:
        try:
            await asyncio.Event().wait()
            yield OpenedPolicy(integer_backend(), "")
        finally:
            self.broken_off += 1

    @property
    def shares(self) -> dict[str, object]:
        """Return the share of each version that answers."""
        traffic = self.slot.traffic
        found = () if traffic is None else traffic.shares
        return {share.version.label: pytest.approx(share.percent) for share in found}


@asynccontextmanager
async def running(
    home: Path, there: dict[str, str], *, has_base: bool = True, is_following: bool = True
) -> AsyncIterator[Process]:
    """Run a process, which follows the others."""
    process = Process(home, {**there, **({BASE: "base"} if has_base else {})})
    process.deployer.plan()
    with suppress(ModelError):
        await process.slot.start()
    process.deployer.adopt()
    following = asyncio.create_task(process.deployer.run() if is_following else asyncio.sleep(0))
    try:
        yield process
    finally:
        following.cancel()
        await asyncio.wait([following])
        await process.deployer.aclose()
        await process.slot.aclose()


def kept(home: Path) -> Deployment:
    """Return the deployment that the processes share."""
    found = DeploymentFile(home, one_basis({"door": "today"})).read("door")
    assert found is not None
    return found


async def test_change_by_a_process_that_lacks_a_version_keeps_it(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": "second", "b": "third"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 50.0))
        async with running(tmp_path, {"b": "third"}) as second:
            before = second.shares
            await second.deployer.deploy(DeployedVersion("v3", "b", 10.0))
            await until(lambda: "v3" in first.slot.versions)

            assert before == {"v1": 100.0}
            assert first.shares == {"v1": 45.0, "v2": 45.0, "v3": 10.0}
            assert second.shares == {"v1": 100 * 45 / 55, "v3": 100 * 10 / 55}
            assert second.slot.failures == {"v2": "a: not found"}
            # Its sessions wait for it, and don't end.
            assert await second.slot.is_expected("v2", "second")
            assert not await second.slot.is_expected("v2", "another")
            assert not await first.slot.is_expected("v2", "second")
    assert kept(tmp_path).names == {"v1", "v2", "v3"}


def fail_the_disk(home: Path) -> None:
    """Have each read of the deployments fail with EIO."""
    (home / "versions.json").unlink()
    (home / "versions.json").symlink_to("/proc/self/mem")


async def test_what_was_read_last_decides_where_the_disk_fails(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 50.0))
        async with running(tmp_path, {}, is_following=False) as second:
            fail_the_disk(tmp_path)

            assert await second.slot.is_expected("v2", "second")
            assert not await second.slot.is_expected("v2", "another")
            assert not await first.slot.is_expected("v3", "third")


async def test_why_deployments_are_not_followed_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        lines = [item for item in caplog.records if item.msg == "deployment_not_followed"]
        return [vars(item)["reason"] for item in lines]

    async with running(tmp_path, {"a": "second"}) as process:
        deployed = await process.deployer.deploy(DeployedVersion("v2", "a", 50.0))
        fail_the_disk(tmp_path)
        await until(told)
        looks = process.store.looks
        await until(lambda: process.store.looks > looks + 5)
        once = told()
        (tmp_path / "versions.json").unlink()
        DeploymentFile(tmp_path, one_basis({"door": "today"})).write("door", deployed)
        looks = process.store.looks
        await until(lambda: process.store.looks > looks + 5)
        fail_the_disk(tmp_path)
        await until(lambda: told() != once)

    assert len(once) == 1
    assert "versions.json: can't be read: Input/output error" in once[0]


async def test_candidate_of_a_process_that_could_load_nothing_is_no_more_than_one(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, {"a": "second", "b": "third"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 100.0))
        async with running(tmp_path, {"b": "third"}, has_base=False) as second:
            await second.deployer.deploy(DeployedVersion("v3", "b", 10.0))
            await until(lambda: "v3" in first.slot.versions)

            assert first.shares == {"v2": 90.0, "v3": 10.0}
    assert (kept(tmp_path).live, kept(tmp_path).former) == ("v2", "v1")


async def test_version_that_could_not_be_loaded_is_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 50.0))
        async with running(tmp_path, {}) as second:
            second.there["a"] = "second"
            await until(lambda: "v2" in second.slot.versions)

            assert second.shares == {"v1": 50.0, "v2": 50.0}
            assert second.slot.failures == {}


async def test_rollback_is_followed_while_a_missing_version_is_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 50.0))
        async with running(tmp_path, {}) as second:
            second.silent.add("a")
            asked = len(second.asked)
            await until(lambda: len(second.asked) > asked)
            await first.deployer.roll_back()
            await until(lambda: second.deployer.deployment == first.deployer.deployment)

            assert second.shares == {"v1": 100.0}
            assert second.broken_off == 1


async def test_policy_that_could_not_be_loaded_is_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 100.0))
        await first.deployer.undeploy("v1")
        async with running(tmp_path, {}) as second:
            failure = second.slot.failure
            second.there["a"] = "second"
            await until(lambda: second.slot.traffic is not None)

            assert failure == "a: not found"
            assert second.slot.failure is None
            assert second.shares == {"v2": 100.0}


async def test_new_version_that_one_process_cant_load_leaves_it_the_others(tmp_path: Path) -> None:
    async with (
        running(tmp_path, {"a": "second", "b": "third"}) as first,
        running(tmp_path, {"b": "third"}) as second,
    ):
        await first.deployer.deploy(DeployedVersion("v2", "a", 50.0))
        await first.deployer.deploy(DeployedVersion("v3", "b", 20.0))
        await until(lambda: "v3" in second.slot.versions)

        assert set(second.shares) == {"v1", "v3"}
        assert second.slot.failures == {"v2": "a: not found"}


async def test_former_version_answers_where_the_live_one_cant_be_loaded(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": "second", "b": "third"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 100.0))
        await first.deployer.deploy(DeployedVersion("v3", "b", 10.0))
    async with running(tmp_path, {"b": "third"}) as second:
        assert second.slot.failure is None
        assert second.shares == {"v1": 90.0, "v3": 10.0}


@pytest.mark.parametrize("is_awaited", [False, True], ids=["at once", "by evidence"])
async def test_version_that_is_not_loaded_here_is_not_promoted_here(
    tmp_path: Path, *, is_awaited: bool
) -> None:
    evidence = Evidence("v2", 10, 0.0) if is_awaited else None
    async with running(tmp_path, {"a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 50.0))
        async with running(tmp_path, {}) as second:
            with pytest.raises(ModelError, match="a: not found"):
                await second.deployer.promote("v2", evidence=evidence)
            assert second.shares == {"v1": 100.0}
    assert kept(tmp_path).serial == 1


CHANGES: dict[str, Callable[[Deployer], Coroutine[Any, Any, Deployment]]] = {
    "rollback": lambda deployer: deployer.roll_back(),
    "undeploy": lambda deployer: deployer.undeploy("v3"),
    "deploy": lambda deployer: deployer.deploy(DeployedVersion("v4", "b", 100.0)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_missing_version_hinders_no_change_that_does_without_it(
    tmp_path: Path, change: Callable[[Deployer], Coroutine[Any, Any, Deployment]]
) -> None:
    async with running(tmp_path, {"a": "second", "b": "third"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 100.0))
        await first.deployer.deploy(DeployedVersion("v3", "b", 10.0))
    async with running(tmp_path, {"b": "third"}, is_following=False) as second:
        asked = second.asked.count("a")
        changed = await change(second.deployer)

        # A change does not wait for files that are away.
        assert second.asked.count("a") == asked
        assert second.shares == {"v4" if "v4" in changed.names else "v1": 100.0}
        assert "v2" in changed.names
    assert kept(tmp_path) == changed


async def test_promotion_waits_for_its_evidence_after_a_restart_too(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 10.0))
        await first.deployer.promote("v2", evidence=Evidence("v2", 10, 0.0))
    async with running(tmp_path, {"a": "second"}) as second:
        assert second.deployer.deployment == kept(tmp_path)
        assert set(second.slot.shadows) == {"v2"}


async def test_start_serves_no_other_files_under_a_versions_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, {"a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 100.0))
        async with running(tmp_path, {"a": "changed"}) as second:
            assert first.slot.choose().digest == "second"
            assert second.shares == {"v1": 100.0}
            assert set(second.slot.versions) == {"v1"}
            assert second.deployer.deployment == kept(tmp_path)
    [reason] = second.slot.failures.values()
    assert reason == (
        "version v2: its address or path holds another policy than the one that was deployed; "
        "deploy it anew under another name"
    )
    logged = [record for record in caplog.records if record.message == "version_not_served"]
    assert [vars(record)["reason"] for record in logged] == [reason]


async def test_version_that_was_rolled_back_does_not_stand_in_for_own_files_that_were_replaced(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, {OWN_FILE: "base", "a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 100.0))
        await first.deployer.roll_back()
    there = {OWN_FILE: "renewed", "a": "second"}
    async with running(tmp_path, there, is_following=False) as second:
        assert second.shares == {"renewed": 100.0}


async def test_policys_own_other_files_win_under_a_version_of_schema_yaml(tmp_path: Path) -> None:
    async with running(tmp_path, {BASE: "base", "a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 100.0))
        await first.deployer.roll_back()
    there = {BASE: "renewed", "b": "third"}
    async with running(tmp_path, there, has_base=False, is_following=False) as second:
        begun = second.slot.choose().digest
        await second.deployer.deploy(DeployedVersion("v3", "b", 10.0))

        assert begun == "renewed"
        assert second.shares == {"v1": 90.0, "v3": 10.0}
    assert {(version.name, version.digest) for version in kept(tmp_path)} == {
        ("v1", "renewed"),
        ("v3", "third"),
    }


async def test_other_files_at_the_policys_own_address_leave_the_deployed_version(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, {ADDRESS: "base", "a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 10.0))
    async with running(tmp_path, {ADDRESS: "renewed", "a": "second"}) as second:
        assert second.shares == {"v2": 100.0}
        assert set(second.slot.failures) == {"base"}


@pytest.mark.parametrize("own", [ADDRESS, OWN_FILE], ids=["address", "file"])
async def test_policys_own_other_files_win_where_nothing_deployed_can_be_served(
    tmp_path: Path, own: str
) -> None:
    async with running(tmp_path, {own: "base", "a": "second"}) as first:
        await first.deployer.deploy(DeployedVersion("v2", "a", 100.0))
        await first.deployer.roll_back()
    there = {own: "renewed", "b": "third"}
    async with running(tmp_path, there, is_following=False) as second:
        begun, taken = second.shares, second.deployer.names
        await second.deployer.deploy(DeployedVersion("v3", "b", 10.0))

        assert begun == {"renewed": 100.0}
        assert taken == {"renewed"}
        assert second.shares == {"renewed": 90.0, "v3": 10.0}
    assert kept(tmp_path).live == "renewed"
    assert kept(tmp_path).names == {"renewed", "v3"}
