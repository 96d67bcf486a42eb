"""Deployments that a server's admin routes ask for, and the files that belong to them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
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
from policy_server.settings import Settings
from policy_server.version_files import VersionFiles
from tests.support.fakes import integer_backend, opened

SCHEMA = parse_schema("observations: {cat: {type: int}, mouse: {type: float}}")
ADDRESS = "s3://policies/door.zip"


async def test_files_from_an_address_are_on_their_way_until_the_deployment_is_kept(
    tmp_path: Path,
) -> None:
    """A worker that starts in between would take them for those of an interrupted deployment."""
    settings, folder = Settings(home=tmp_path), tmp_path / "versions" / "door"
    announced: list[bool] = []

    def opener(version: DeployedVersion) -> PolicyOpener:
        def open_version() -> AbstractAsyncContextManager[OpenedPolicy]:
            if version.model is not None:
                announced.append(any(is_locked(path) for path in folder.glob(".incoming-*")))
            if version.name == "broken":
                raise ModelError("the model is broken")
            return opened(integer_backend())

        return open_version

    planned = [PlannedVersion("v1", opener(DeployedVersion("v1", None)))]
    slot = PolicySlot("door", SCHEMA, planned, settings=settings, metrics=Metrics())
    deployer = Deployer(slot, opener, DeploymentFile(tmp_path, {"door": "today"}))
    deployer.plan()
    await slot.start()
    deployer.adopt()
    administration = Administration(VersionFiles(settings), settings)
    administration.serve([deployer])

    await administration.deploy_address("door", "v2", ADDRESS, percent=50.0, is_shadow=False)
    with pytest.raises(DeploymentError, match="broken"):
        await administration.deploy_address(
            "door", "broken", ADDRESS, percent=50.0, is_shadow=False
        )

    assert announced == [True, True]
    assert not list(folder.iterdir())
    await deployer.aclose()
    await slot.aclose()
