"""Changing the versions of a running server's policies, as its admin routes ask for it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from policy_server.errors import (
    BodyTooLargeError,
    DeploymentError,
    ModelError,
    NotReadyError,
    SchemaError,
    SettingsError,
)
from policy_server.files.atomic import make_durable
from policy_server.files.file_work import finish_in_thread, opened_in_thread
from policy_server.schema import can_stand_in_an_address
from policy_server.serving.deployer import Deployer
from policy_server.serving.deployment import DeployedVersion, Deployment, Evidence
from policy_server.serving.draining import Draining, still_drains
from policy_server.serving.ending import EndableWork
from policy_server.settings import ENV_PREFIX, Settings

__all__ = ["Administration"]


class UploadedFiles(Protocol):
    """Where uploaded versions lie."""

    def incoming(self, policy: str, version: str) -> AbstractContextManager[Path]:
        """Give a file to write an upload to; it is gone at the end of the block.

        Args:
            policy: the policy's name.
            version: the new version's name.
        """

    def take(self, policy: str, version: str, upload: Path) -> str:
        """Put an uploaded archive in its place, and return that as `DeployedVersion.model` has it.

        Args:
            policy: the policy's name.
            version: the new version's name.
            upload: the archive.
        """

    def forget(self, policy: str, version: DeployedVersion) -> None:
        """Remove the files of a version.

        Args:
            policy: the policy's name.
            version: the version.
        """


class Administration:
    """Deploys, promotes, rolls back and undeploys the versions of policies, by their names."""

    def __init__(self, files: UploadedFiles, settings: Settings) -> None:
        """Own nothing: the deployers belong to the policies.

        Args:
            files: where uploaded versions lie.
            settings: the server's folder, and the largest upload.
        """
        self._files = files
        self._most = settings.max_unpacked_bytes
        self._home = settings.home
        self._zip_name = settings.zip_path.name
        self._deployers: dict[str, Deployer] = {}
        self._coming: set[tuple[str, str]] = set()
        self._uploads = EndableWork()

    def serve(self, deployers: Sequence[Deployer]) -> None:
        """Begin to take requests.

        Args:
            deployers: those of the policies, which are loaded.
        """
        self._uploads.begin()
        self._deployers = {deployer.slot.name: deployer for deployer in deployers}

    def end_uploads(self) -> None:
        """Refuse the uploads that are under way, however slow, and those that come."""
        self._uploads.end()

    @property
    def names(self) -> list[str]:
        """Return the names of the policies."""
        return [*self._deployers]

    def deployer_of(self, policy: str) -> Deployer:
        """Return the deployer of a policy.

        Args:
            policy: its name.

        Raises:
            NotReadyError: while the policies are loaded.
            DeploymentError: if there is no such policy.
        """
        if not self._deployers:
            raise NotReadyError("the policies are not loaded yet; try again in a few seconds")
        if policy not in self._deployers:
            names = ", ".join(self._deployers)
            raise DeploymentError(f"there is no policy {policy!r}; expected one of {names}")
        return self._deployers[policy]

    async def deploy_upload(
        self,
        policy: str,
        version: str | None,
        body: AsyncIterator[bytes],
        *,
        percent: float,
        is_shadow: bool,
    ) -> Deployment:
        """Deploy an archive: a policy's zip, or the zip of a folder as a server has it.

        Args:
            policy: the policy's name.
            version: the new version's name; None counts them: v2, v3.
            body: the archive, as it arrives.
            percent: its share of the questions.
            is_shadow: whether it gets copies, and answers nobody.

        Raises:
            BodyTooLargeError: if the archive is larger than POLICY_SERVER_MAX_UNPACKED_BYTES.
            NotReadyError: if the server ends first.
            PolicyServerError: if it can't be deployed; everything is as it was then.
        """
        deployer = self.deployer_of(policy)
        with self._reserved(deployer, version) as name:
            async with opened_in_thread(self._files.incoming(policy, name)) as upload:
                await self._receive(body, upload)
                with _as_refusals(upload):
                    model = await finish_in_thread(self._files.take, policy, name, upload)
                deployed = DeployedVersion(name, model, percent, is_shadow)
                try:
                    # Before the deployment that names it, which is written to the disk too.
                    place = self._home / model
                    await finish_in_thread(make_durable, place, below=self._home)
                    with _as_refusals(place / self._zip_name, place):
                        return await deployer.deploy(deployed)
                except BaseException:
                    await finish_in_thread(self._files.forget, policy, deployed)
                    raise

    async def deploy_address(
        self, policy: str, version: str | None, model: str, *, percent: float, is_shadow: bool
    ) -> Deployment:
        """Deploy a policy from an address, or from a path of the server's own machine.

        Args:
            policy: the policy's name.
            version: the new version's name; None counts them: v2, v3.
            model: the address or path.
            percent: its share of the questions.
            is_shadow: whether it gets copies, and answers nobody.

        Raises:
            PolicyServerError: if it can't be deployed; everything is as it was then.
        """
        deployer = self.deployer_of(policy)
        with self._reserved(deployer, version) as name:
            deployed = DeployedVersion(name, model, percent, is_shadow)
            try:
                async with opened_in_thread(self._files.incoming(policy, name)):
                    with _as_refusals():
                        return await deployer.deploy(deployed)
            except BaseException:
                await finish_in_thread(self._files.forget, policy, deployed)
                raise

    async def promote(
        self, policy: str, version: str | None, evidence: Evidence | None
    ) -> Deployment:
        """Give all questions to a version; see `Deployer.promote`."""
        with _as_refusals():
            return await self.deployer_of(policy).promote(version, evidence=evidence)

    async def roll_back(self, policy: str) -> Deployment:
        """Take the candidates back, or make the former version live; see `Deployer.roll_back`."""
        with _as_refusals():
            return await self.deployer_of(policy).roll_back()

    async def undeploy(self, policy: str, version: str) -> Deployment:
        """Unload a version; see `Deployer.undeploy`."""
        with _as_refusals():
            return await self.deployer_of(policy).undeploy(version)

    async def _receive(self, body: AsyncIterator[bytes], upload: Path) -> None:
        """Write an upload to its file, until the server ends."""
        await self._uploads.run(self._write(body, upload))

    async def _write(self, body: AsyncIterator[bytes], upload: Path) -> None:
        size = 0
        file = await finish_in_thread(lambda: upload.open("wb"))
        try:
            async for data in body:
                size += len(data)
                if size > self._most:
                    raise BodyTooLargeError(
                        f"the archive is larger than {self._most} bytes "
                        f"({ENV_PREFIX}MAX_UNPACKED_BYTES)"
                    )
                await finish_in_thread(file.write, data)
        finally:
            await finish_in_thread(file.close)

    @contextmanager
    def _reserved(self, deployer: Deployer, version: str | None) -> Iterator[str]:
        """Give a new version its name, which no other one gets meanwhile."""
        policy = deployer.slot.name
        taken = {
            *deployer.names,
            *(name for other, name in self._coming if other == policy),
        }
        name = version if version is not None else _first_free(taken, deployer.draining)
        if not can_stand_in_an_address(name):
            raise DeploymentError(
                f"the name {name!r} can't be used; use up to 63 letters, digits, '-' and '_', "
                "beginning with a letter or digit"
            )
        if name in deployer.draining:
            raise DeploymentError(still_drains(name))
        if name in taken:
            raise DeploymentError(
                f"version {name} is deployed already; give the new one another name with "
                "--version, or undeploy that one first"
            )
        self._coming.add((policy, name))
        try:
            yield name
        finally:
            self._coming.discard((policy, name))


@contextmanager
def _as_refusals(*places: Path) -> Iterator[None]:
    """Refuse a model that can't be served; it is the caller's, and no failure of the server.

    The message names the caller's archive in place of the paths that it lay at, which are gone.
    """
    try:
        yield
    except (ModelError, SchemaError, SettingsError) as error:
        message = error.message
        for place in places:
            message = message.replace(str(place), "the archive")
        raise DeploymentError(message) from error


def _first_free(taken: Collection[str], draining: Draining) -> str:
    names = (f"v{count}" for count in itertools.count(2))
    return next(name for name in names if name not in taken and name not in draining)
