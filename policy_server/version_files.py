"""The files of a policy's versions: where each lies, and how an uploaded one gets there."""

from __future__ import annotations

import hashlib
import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from policy_server.errors import DeploymentError, ModelError
from policy_server.files.locks import FileLock, is_locked
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.finding import find_policy, prepare_model, prepare_policy
from policy_server.formats.model_files import digest_of_file, identify_model
from policy_server.formats.unpacking import FolderCheck
from policy_server.formats.version_archives import unpack_version
from policy_server.remote_files import fetch_files, parse_uri, run_in_waiting_loop
from policy_server.schema import PolicySection, SchemaFile, ServerSchema, read_schema
from policy_server.serving import DeployedVersion, Deployment
from policy_server.settings import Settings

__all__ = ["Fetch", "VersionFiles"]

logger = logging.getLogger(__name__)

_FOLDER = "versions"
# versions/POLICY/VERSION
_UPLOAD_PARTS = 3
_INCOMING = ".incoming-"

# Brings an uploaded version's files to an empty folder, and returns whether it could.
Fetch = Callable[[str, Path], bool]


class VersionFiles:
    """The models of a server's policies: in its folder, at a path or address, or uploaded.

    Uploaded and fetched versions have a folder of their own, which is laid out as a server's folder
    is: a policy, and maybe a schema.yaml. That of a fetched one is `versions/POLICY/VERSION/`, that
    of an uploaded one `versions/POLICY/VERSION.ID/`, whose id no other upload has.
    """

    def __init__(self, settings: Settings) -> None:
        """Own nothing: the files belong to the server's folder.

        Args:
            settings: the folder, and limits.
        """
        self._settings = settings
        self._root = settings.home / _FOLDER

    def prepare(self, section: PolicySection, version: DeployedVersion, fetch: Fetch) -> Path:
        """Return the folder with a version's files; fetch and unpack them where that is needed.

        A policy that is unpacked is loaded before: it may replace the only copy of another.

        Args:
            section: the part of schema.yaml about the policy.
            version: the version; its name is empty where schema.yaml names none.
            fetch: brings the files of an uploaded version that are not here.

        Raises:
            ModelError: if there is no policy, or it can't be had.
            SchemaError: if schema.yaml disagrees with the policy.
            NotReadyError: if the process that loads it dies, or takes too long.
        """
        if version.model is None:
            return prepare_model(self._settings, check=self._check(section))
        if self._is_uploaded(version.model):
            return self._prepare_uploaded(section.name, version.model, fetch)
        key = f"versions.{version.name}.model" if section.versions else "model"
        try:
            return self._prepare(section, version, version.model)
        except ModelError as error:
            raise ModelError(f"{section.schema.source}: {key}: {error.message}") from error

    def _prepare(self, section: PolicySection, version: DeployedVersion, model: str) -> Path:
        settings = self._settings
        if "://" in model:
            own = self._own(f"{_FOLDER}/{section.name}/{version.name or 'model'}")
            own.home.mkdir(parents=True, exist_ok=True)
            check = self._check(section)
            uri = parse_uri(model, name=f"policies.{section.name}.model")
            fetch_files(
                own,
                model=uri,
                schema=None,
                check=lambda folder, _schema: check(folder),
                is_outdated_allowed=True,
            )
            return prepare_model(own, check=check)
        target = settings.models_path / section.name / version.name
        check = self._check(section)
        return prepare_policy(settings.home / model, target, settings, check=check)

    def _check(self, section: PolicySection) -> FolderCheck:
        """Return the check by loading, whose outcome the folder keeps for the start itself."""

        def check(folder: Path) -> None:
            model = identify_model(folder)
            run_in_waiting_loop(find_compiled(model, section.schema, self._settings))

        return check

    def _prepare_uploaded(self, policy: str, model: str, fetch: Fetch) -> Path:
        own = self._own(model)
        if not own.home.is_dir():
            with self.incoming(policy, own.home.name.partition(".")[0]) as upload:
                unpacked = _unpacked(upload)
                if not fetch(model, unpacked):
                    raise ModelError(
                        f"{own.home}: not found; the version's files are gone: deploy it anew"
                    )
                if not own.home.is_dir():
                    unpacked.rename(own.home)
        return prepare_model(own)

    def schema_of(self, version: DeployedVersion) -> ServerSchema | None:
        """Return the schema that came with an uploaded version; None where none did.

        Its access key and prefix are not used: they belong to the server.

        Args:
            version: the version.

        Raises:
            SchemaError: if it can't be used.
        """
        if version.model is None or not self._is_uploaded(version.model):
            return None
        path = self._own(version.model).schema_path
        return read_schema(path) if path.is_file() else None

    @contextmanager
    def incoming(self, policy: str, version: str) -> Iterator[Path]:
        """Give a file to write an upload to; it is gone at the end of the block.

        No process clears the version's files meanwhile.

        Args:
            policy: the policy's name.
            version: the version's name.
        """
        folder = self._root / policy
        prefix = f"{_INCOMING}{version}."
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (
                # What can't be removed changes nothing of a deployment; the next start clears it.
                tempfile.TemporaryDirectory(
                    prefix=prefix, dir=folder, ignore_cleanup_errors=True
                ) as scratch,
                FileLock(Path(scratch), is_folder=True),
            ):
                yield Path(scratch) / "upload.zip"
        except OSError as error:
            raise DeploymentError(
                f"{folder}: can't be written: {error.strerror or error}; nothing has changed"
            ) from error

    def take(self, policy: str, version: str, upload: Path) -> str:
        """Put an uploaded archive in its place.

        Args:
            policy: the policy's name.
            version: the new version's name.
            upload: the archive, as `unpack_version` takes it.

        Returns:
            The place, as `DeployedVersion.model` has it; it is another one for each upload.

        Raises:
            ModelError: if the archive can't be used.
        """
        unpacked = _unpacked(upload)
        unpack_version(upload, self._settings.model_copy(update={"home": unpacked}))
        model = f"{_FOLDER}/{policy}/{version}.{secrets.token_hex(6)}"
        unpacked.rename(self._own(model).home)
        return model

    def forget(self, policy: str, version: DeployedVersion) -> None:
        """Remove the files of a version that was uploaded or fetched; others stay.

        Args:
            policy: the policy's name.
            version: the version.
        """
        if (folder := self._folder_of(version)) is not None:
            shutil.rmtree(self._root / policy / folder, ignore_errors=True)

    def clear(self, section: PolicySection, named: Callable[[], Iterable[DeployedVersion]]) -> None:
        """Remove what interrupted deployments have left; nothing where that can't be told.

        Args:
            section: the part of schema.yaml about the policy.
            named: returns the versions whose files are kept, as `DeploymentStore.named` does.
        """
        folder = self._root / section.name
        found = [*folder.iterdir()] if folder.is_dir() else []
        # In this order, since other processes go on: what is deployed meanwhile is on its way
        # first, and is in the deployment when it has arrived.
        coming = {_version_of(path) for path in found if is_locked(path)}
        try:
            deployed = [self._folder_of(version) for version in named()]
        except DeploymentError as error:
            logger.warning("versions_not_cleared", extra={"reason": error.message})
            return
        kept = {*deployed, *(version.name for version in section.versions), "model"}
        for path in found:
            if path.name not in kept and _version_of(path) not in coming:
                shutil.rmtree(path, ignore_errors=True)

    def uploads(self, section: PolicySection, deployment: Deployment) -> Mapping[str, Path]:
        """Return the folders of a deployment's uploaded versions, by their `model`.

        Args:
            section: the part of schema.yaml about the policy.
            deployment: the versions.

        Raises:
            DeploymentError: if a version lies at a path of this machine that schema.yaml does not
                name, so that other machines can't have it.
        """
        named = {None, section.model, *(version.model for version in section.versions)}
        for version in deployment:
            model = version.model
            if model not in named and "://" not in (model or "") and not self._is_uploaded(model):
                raise DeploymentError(
                    f"version {version.name}: {model}: is a path of one machine, and the servers "
                    "of a cluster have folders of their own; send the archive itself"
                )
        models = [version.model for version in deployment if self._is_uploaded(version.model)]
        return {model: self._own(model).home for model in models if model is not None}

    def basis(self, file: SchemaFile) -> dict[str, str]:
        """Return the digest of each policy's part of schema.yaml and its files, by its name.

        Args:
            file: the contents of schema.yaml.
        """
        return {section.name: self._basis(section) for section in file}

    def _basis(self, section: PolicySection) -> str:
        models = [section.model, *(version.model for version in section.versions)]
        shares = [(item.name, item.traffic, item.is_shadow) for item in section.versions]
        digests = [self._digest(model) for model in models if model is not None]
        if models == [None]:
            try:
                found = find_policy(self._settings)
            except ModelError:
                found = None
            digests.append("" if found is None else _digest_of(found))
        text = f"{section.schema.policy_part()!r} {models} {shares} {digests}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _digest(self, model: str) -> str:
        return "" if "://" in model else _digest_of(self._settings.home / model)

    def _is_uploaded(self, model: str | None) -> bool:
        parts = PurePosixPath(model or "").parts
        return len(parts) == _UPLOAD_PARTS and parts[0] == _FOLDER and ".." not in parts

    def _folder_of(self, version: DeployedVersion) -> str | None:
        """Return the name of a version's own folder; None for one without."""
        if version.model is None:
            return None
        if self._is_uploaded(version.model):
            return PurePosixPath(version.model).name
        return version.name if "://" in version.model else None

    def _own(self, model: str) -> Settings:
        """Return the settings of a version's folder, laid out as a server's folder."""
        return self._settings.model_copy(update={"home": self._settings.home / model})


def _digest_of(path: Path) -> str:
    if path.is_dir():
        return identify_model(path).digest
    return digest_of_file(path) if path.is_file() else ""


def _unpacked(upload: Path) -> Path:
    """Make the folder beside an upload that its files go to."""
    folder = upload.with_name("home")
    folder.mkdir()
    return folder


def _version_of(folder: Path) -> str:
    """Return the name of the version that a folder belongs to."""
    return folder.name.removeprefix(_INCOMING).partition(".")[0]
