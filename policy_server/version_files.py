"""The files of a policy's versions: where each lies, and how an uploaded one gets there."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from policy_server.errors import DeploymentError, ModelError
from policy_server.files.archives import ArchiveLimits, open_archive
from policy_server.formats.finding import find_policy, prepare_model, prepare_policy
from policy_server.formats.model_files import digest_of_file, identify_model
from policy_server.formats.unpacking import format_of_file
from policy_server.remote_files import fetch_files, parse_uri
from policy_server.schema import PolicySection, SchemaFile, ServerSchema, read_schema
from policy_server.serving import DeployedVersion
from policy_server.settings import ENV_PREFIX, Settings

__all__ = ["VersionFiles"]

_FOLDER = "versions"
_INCOMING = ".incoming-"


class VersionFiles:
    """The models of a server's policies: in its folder, at a path or address, or uploaded.

    Uploaded and fetched versions have a folder of their own, `versions/POLICY/VERSION/`, which is
    laid out as a server's folder is: a policy, and maybe a schema.yaml.
    """

    def __init__(self, settings: Settings) -> None:
        """Own nothing: the files belong to the server's folder.

        Args:
            settings: the folder, and limits.
        """
        self._settings = settings
        self._root = settings.home / _FOLDER

    def prepare(self, section: PolicySection, version: DeployedVersion) -> Path:
        """Return the folder with a version's files; fetch and unpack them where that is needed.

        Args:
            section: the part of schema.yaml about the policy.
            version: the version; its name is empty where schema.yaml names none.

        Raises:
            ModelError: if there is no policy, or it can't be had.
        """
        if version.model is None:
            return prepare_model(self._settings)
        key = f"versions.{version.name}.model" if section.versions else "model"
        try:
            return self._prepare(section, version, version.model)
        except ModelError as error:
            raise ModelError(f"{section.schema.source}: {key}: {error.message}") from error

    def _prepare(self, section: PolicySection, version: DeployedVersion, model: str) -> Path:
        settings = self._settings
        if "://" in model:
            own = self._own(section.name, version.name or "model")
            own.home.mkdir(parents=True, exist_ok=True)
            uri = parse_uri(model, name=f"policies.{section.name}.model")
            fetch_files(
                own, model=uri, schema=None, check=lambda *_: None, is_outdated_allowed=True
            )
            return prepare_model(own)
        if self._is_uploaded(model):
            return prepare_model(self._own(section.name, version.name))
        target = settings.models_path / section.name / version.name
        return prepare_policy(settings.home / model, target, settings)

    def schema_of(self, section: PolicySection, version: DeployedVersion) -> ServerSchema | None:
        """Return the schema that came with an uploaded version; None where none did.

        Its access key and prefix are not used: they belong to the server.

        Args:
            section: the part of schema.yaml about the policy.
            version: the version.

        Raises:
            SchemaError: if it can't be used.
        """
        if version.model is None or not self._is_uploaded(version.model):
            return None
        path = self._own(section.name, version.name).schema_path
        return read_schema(path) if path.is_file() else None

    @contextmanager
    def incoming(self, policy: str) -> Iterator[Path]:
        """Give a file to write an upload to; it is gone at the end of the block.

        Args:
            policy: the policy's name.
        """
        folder = self._root / policy
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_INCOMING, dir=folder) as scratch:
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
            upload: the archive: a policy's zip; or the zip of a folder with a policy's file, what
                lies beside it, and maybe its schema.yaml.

        Returns:
            The place, as `DeployedVersion.model` has it.

        Raises:
            ModelError: if the archive can't be used.
        """
        most = self._settings.max_unpacked_bytes
        unpacked = upload.with_name("home")
        unpacked.mkdir()
        if self._is_policy(upload):
            shutil.move(upload, unpacked / self._settings.zip_path.name)
        else:
            limits = ArchiveLimits(most, f"{ENV_PREFIX}MAX_UNPACKED_BYTES={most}")
            with open_archive(upload, limits) as archive:
                archive.extract(PurePosixPath(), unpacked, is_wanted=lambda _path: True)
        target = self._own(policy, version).home
        if target.exists():
            shutil.rmtree(target)
        unpacked.rename(target)
        return f"{_FOLDER}/{policy}/{version}"

    def _is_policy(self, upload: Path) -> bool:
        try:
            return format_of_file(upload, max_bytes=self._settings.max_unpacked_bytes) is not None
        except ModelError:
            return False

    def forget(self, policy: str, version: str) -> None:
        """Remove the files of a version that was uploaded or fetched; others stay.

        Args:
            policy: the policy's name.
            version: the version's name.
        """
        shutil.rmtree(self._own(policy, version).home, ignore_errors=True)

    def clear(self, policy: str, versions: Collection[str]) -> None:
        """Remove what interrupted deployments have left.

        Args:
            policy: the policy's name.
            versions: the names of the versions that are deployed.
        """
        folder = self._root / policy
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in {*versions, "model"}:
                shutil.rmtree(path, ignore_errors=True)

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

    def _is_uploaded(self, model: str) -> bool:
        return model.startswith(f"{_FOLDER}/")

    def _own(self, policy: str, version: str) -> Settings:
        """Return the settings of a version's folder, laid out as a server's folder."""
        return self._settings.model_copy(update={"home": self._root / policy / version})


def _digest_of(path: Path) -> str:
    if path.is_dir():
        return identify_model(path).digest
    return digest_of_file(path) if path.is_file() else ""
