"""The files of a policy's versions: where each lies, and how an uploaded one gets there."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from policy_server.errors import DeploymentError, ModelError
from policy_server.files.regular import is_there
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.finding import (
    prepare_model,
    prepare_policy,
)
from policy_server.formats.model_files import identify_model
from policy_server.formats.unpacking import FolderCheck
from policy_server.formats.version_archives import unpack_version
from policy_server.remote_files import (
    fetch_files,
    parse_uri,
    run_in_waiting_loop,
)
from policy_server.schema import PolicySection, SchemaFile, ServerSchema, read_schema
from policy_server.serving import DeployedVersion, Deployment
from policy_server.settings import Settings
from policy_server.version_files.basis import basis_of
from policy_server.version_files.copies import deployed_copy, take_over
from policy_server.version_files.folders import VersionFolders, version_of
from policy_server.version_files.places import FOLDER, VersionPlaces

__all__ = ["Fetch", "VersionFiles"]

logger = logging.getLogger(__name__)

# Brings an uploaded version's files to an empty folder, and returns whether it could.
Fetch = Callable[[str, Path], bool]
# Returns the versions whose files are kept.
Named = Callable[[], Iterable[DeployedVersion]]


class VersionFiles:
    """The models of a server's policies: in its folder, at a path or address, or uploaded.

    Uploaded, fetched and deployed versions have folders of their own, `versions/POLICY/VERSION.ID`,
    which are laid out as a server's folder is: a policy, and maybe a schema.yaml.
    """

    def __init__(self, settings: Settings) -> None:
        """Own nothing: the files belong to the server's folder.

        Args:
            settings: the folder, and limits.
        """
        self._settings = settings
        self._places = VersionPlaces(settings)
        self._folders = VersionFolders(settings.home / FOLDER)
        self._known: dict[str, tuple[PolicySection, Named]] = {}

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
        if self._places.is_uploaded(version.model):
            return self._prepare_uploaded(section.name, version.model, fetch)
        place = self._place_of(section, version)
        try:
            return self._prepare(section, version, version.model, place)
        except ModelError as error:
            raise ModelError(f"{place}: {error.message}") from error

    def _place_of(self, section: PolicySection, version: DeployedVersion) -> str:
        """Return the place that names a version's model, for messages."""
        if self._places.is_named(section, version):
            key = f"versions.{version.name}.model" if section.versions else "model"
            return f"{section.schema.source}: {key}"
        if version.digest:
            return f"versions.json: {section.name}: {version.name}: model"
        # It is deployed now: the key of the request's body.
        return "model"

    def _prepare(
        self, section: PolicySection, version: DeployedVersion, model: str, place: str
    ) -> Path:
        check = self._check(section)
        unpacked = self._places.unpacked(section, version)
        if unpacked is not None:
            path = self._settings.home / model
            return prepare_policy(path, unpacked, self._settings, check=check)
        own = self._places.own(
            f"{FOLDER}/{section.name}/{self._places.folder_of(section, version)}"
        )
        uri = parse_uri(model, name=place) if "://" in model else None
        if uri is not None:
            take_over(uri, own, [version.name, "model"])
        if uri is None:
            return self._prepare_deployed_path(self._settings.home / model, own, version, check)
        unpack = partial(prepare_model, own, check=check)
        copy = deployed_copy(own.models_path, own.zip_path, version.digest, unpack)
        if copy is not None:
            return copy
        own.home.mkdir(parents=True, exist_ok=True)
        fetch_files(
            own,
            model=uri,
            schema=None,
            check=lambda folder, _schema: check(folder),
            is_outdated_allowed=True,
        )
        return unpack()

    def _prepare_deployed_path(
        self, path: Path, own: Settings, version: DeployedVersion, check: FolderCheck
    ) -> Path:
        models = own.models_path
        unpack = partial(prepare_policy, path, models, self._settings, check=check)
        copy = deployed_copy(models, path, version.digest, unpack)
        if copy is not None:
            return copy
        if not is_there(path):
            # Where the copy is damaged, that is the reason to tell.
            identify_model(models)
        return unpack()

    def _check(self, section: PolicySection) -> FolderCheck:
        """Return the check by loading, whose outcome the folder keeps for the start itself."""

        def check(folder: Path) -> None:
            model = identify_model(folder)
            run_in_waiting_loop(find_compiled(model, section.schema, self._settings))

        return check

    def _prepare_uploaded(self, policy: str, model: str, fetch: Fetch) -> Path:
        own = self._places.own(model)
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
        if version.model is None or not self._places.is_uploaded(version.model):
            return None
        path = self._places.own(version.model).schema_path
        return read_schema(path) if path.is_file() else None

    @contextmanager
    def incoming(self, policy: str, version: str) -> Iterator[Path]:
        """Give a file to write an upload to; it is gone at the end of the block.

        No process clears the version's files meanwhile, be they uploaded or fetched.

        Args:
            policy: the policy's name.
            version: the version's name.
        """
        with self._folders.incoming(policy, version) as scratch:
            yield scratch / "upload.zip"

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
        model = f"{FOLDER}/{policy}/{version}.{secrets.token_hex(6)}"
        unpacked.rename(self._places.own(model).home)
        return model

    def forget(self, policy: str, version: DeployedVersion) -> None:
        """Remove the files of a version that was uploaded, fetched or unpacked; others stay.

        They stay too where another process deploys them meanwhile, or has deployed them.

        Args:
            policy: the policy's name.
            version: the version.
        """
        section, named = self._known.get(policy, (None, tuple))
        folder = self._places.folder_of(section, version)
        if folder is None:
            return
        is_own = self._places.is_uploaded(version.model)

        def unused(path: Path, coming: Collection[str]) -> bool:
            # An upload's folder is nobody else's, and on its way while it is refused.
            return path.name == folder and (is_own or version.name not in coming)

        self._folders.remove(policy, lambda: self._places.kept(section, named()), unused)

    def clear(self, section: PolicySection, named: Named) -> None:
        """Remove what interrupted deployments have left; nothing where that can't be told.

        The log names the versions that were removed.

        Args:
            section: the part of schema.yaml about the policy.
            named: returns the versions whose files are kept, as `DeploymentStore.named` does; it
                is asked again when a version is forgotten.
        """
        self._known[section.name] = (section, named)

        def unused(path: Path, coming: Collection[str]) -> bool:
            return version_of(path) not in coming

        removed = self._folders.remove(
            section.name, lambda: self._places.kept(section, named()), unused
        )
        if removed:
            # Most are of interrupted deployments. Where versions.json was taken away, they are
            # uploads that somebody may look for.
            logger.warning(
                "versions_removed",
                extra={
                    "path": str(self._settings.home / FOLDER / section.name),
                    "folders": removed,
                    "reason": "no deployment names them",
                },
            )

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
            if (
                model not in named
                and "://" not in (model or "")
                and not self._places.is_uploaded(model)
            ):
                raise DeploymentError(
                    f"version {version.name}: {model}: is a path of one machine, and the servers "
                    "of a cluster have folders of their own; send the archive itself"
                )
        models = [
            version.model for version in deployment if self._places.is_uploaded(version.model)
        ]
        return {model: self._places.own(model).home for model in models if model is not None}

    def basis(self, file: SchemaFile) -> dict[str, str]:
        """Return the digest of each policy's part of schema.yaml and its files, by its name.

        Args:
            file: the contents of schema.yaml.
        """
        return basis_of(file, self._settings)


def _unpacked(upload: Path) -> Path:
    """Make the folder beside an upload that its files go to."""
    folder = upload.with_name("home")
    folder.mkdir()
    return folder
