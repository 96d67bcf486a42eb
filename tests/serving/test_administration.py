"""Deployments that a server's admin routes ask for, and the files that belong to them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest

from policy_server.errors import DeploymentError, ModelError
from policy_server.files.locks import is_locked
from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import (
    DeployedVersion,
    Deployer,
    OpenedPolicy,
    PlannedVersion,
    PolicyOpener,
    PolicySlot,
)
from policy_server.serving.administration import Administration
from policy_server.serving.deployment_file import DeploymentFile
from policy_server.serving.deployment_store import one_basis
from policy_server.settings import Settings
from policy_server.version_files import VersionFiles
from tests.support.audit import audited
from tests.support.fakes import integer_backend, opened
from tests.support.library_policies import POLICIES
from tests.support.zips import zip_of

SCHEMA = parse_schema("observations: {cat: {type: int}, mouse: {type: float}}")
ZIP = POLICIES / "sb3_v18_ppo_discrete" / "policy.zip"
ADDRESS = "s3://policies/door.zip"


Opens = Callable[[DeployedVersion], None]


@asynccontextmanager
async def administered(
    home: Path, opens: Opens, files: VersionFiles | None = None
) -> AsyncIterator[Administration]:
    """Administer a policy `door` whose files lie in a server's folder.

    Each version but the first is given to `opens` before it is loaded, which may refuse it.
    """
    settings = Settings(home=home)

    def opener(version: DeployedVersion) -> PolicyOpener:
        def open_version() -> AbstractAsyncContextManager[OpenedPolicy]:
            if version.model is not None:
                opens(version)
            return opened(integer_backend())

        return open_version

    planned = [PlannedVersion("v1", opener(DeployedVersion("v1", None)))]
    slot = PolicySlot("door", SCHEMA, planned, settings=settings, metrics=Metrics())
    files = files or VersionFiles(settings)
    deployer = Deployer(
        slot,
        opener,
        DeploymentFile(home, one_basis({"door": "today"})),
        forget=partial(files.forget, "door"),
    )
    deployer.plan()
    await slot.start()
    deployer.adopt()
    administration = Administration(files, settings)
    administration.serve([deployer])
    yield administration
    await deployer.aclose()
    await slot.aclose()


def refuse_broken(version: DeployedVersion) -> None:
    """Refuse the version named `broken`."""
    if version.name == "broken":
        raise ModelError("the model is broken")


async def parts_of(archive: Path) -> AsyncIterator[bytes]:
    """Give an archive as it arrives."""
    content = archive.read_bytes()
    yield content[:1000]
    yield content[1000:]


async def test_files_from_an_address_are_on_their_way_until_the_deployment_is_kept(
    tmp_path: Path,
) -> None:
    """A worker that starts in between would take them for those of an interrupted deployment."""
    folder = tmp_path / "versions" / "door"
    announced: list[bool] = []

    def opens(version: DeployedVersion) -> None:
        announced.append(any(is_locked(path) for path in folder.glob(".incoming-*")))
        refuse_broken(version)

    async with administered(tmp_path, opens) as administration:
        await administration.deploy_address("door", "v2", ADDRESS, percent=50.0, is_shadow=False)
        with pytest.raises(DeploymentError, match="broken"):
            await administration.deploy_address(
                "door", "broken", ADDRESS, percent=50.0, is_shadow=False
            )

        assert announced == [True, True]
        assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["v2", "broken"])
async def test_no_file_is_touched_in_the_event_loop(tmp_path: Path, name: str) -> None:
    """A stranger's archive may have ten thousand files, and questions are answered meanwhile."""
    refused = pytest.raises(DeploymentError, match="broken")
    async with administered(tmp_path, refuse_broken) as administration:
        with audited() as events:
            with refused if name == "broken" else nullcontext():
                await administration.deploy_upload(
                    "door", name, parts_of(ZIP), percent=50.0, is_shadow=False
                )
            with refused if name == "broken" else nullcontext():
                await administration.deploy_address(
                    "door", None if name == "v2" else name, ADDRESS, percent=5.0, is_shadow=False
                )

    assert [event for event in events if str(tmp_path) in event] == []


async def test_refusal_of_an_upload_names_the_archive(tmp_path: Path) -> None:
    """The paths that it lay at in the server's folder are gone when its sender reads of them."""
    deep = zip_of(tmp_path / "deep.zip", {"a/" * 65 + "f": b""})

    def opens(version: DeployedVersion) -> None:
        raise ModelError(f"{tmp_path / str(version.model)}/saved_model.zip: is damaged")

    refusals = []
    async with administered(tmp_path, opens) as administration:
        for archive in (deep, ZIP):
            with pytest.raises(DeploymentError) as refused:
                await administration.deploy_upload(
                    "door", None, parts_of(archive), percent=5.0, is_shadow=False
                )
            refusals.append(refused.value.message)

    assert refusals[0].startswith("the archive: the member 'a/a/a/")
    assert refusals[1] == "the archive: is damaged"


class WaitingFiles(VersionFiles):
    """Tells when an upload lies in its place, and says so to its caller only when it may."""

    def __init__(self, settings: Settings) -> None:
        """Own the two events."""
        super().__init__(settings)
        self.is_taken, self.may_return = threading.Event(), threading.Event()

    def take(self, policy: str, version: str, upload: Path) -> str:
        model = super().take(policy, version, upload)
        self.is_taken.set()
        self.may_return.wait(60)
        return model


async def test_upload_that_is_cancelled_while_it_is_unpacked_leaves_nothing(tmp_path: Path) -> None:
    folder, files = tmp_path / "versions" / "door", WaitingFiles(Settings(home=tmp_path))
    async with administered(tmp_path, refuse_broken, files) as administration:
        deploying = asyncio.create_task(
            administration.deploy_upload("door", "v2", parts_of(ZIP), percent=5.0, is_shadow=False)
        )
        await asyncio.to_thread(files.is_taken.wait)
        deploying.cancel()
        files.may_return.set()
        await asyncio.wait([deploying])

        assert deploying.cancelled()
        assert not list(folder.iterdir())
