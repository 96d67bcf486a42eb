"""The places of versions' files: a folder for each that was uploaded, fetched or unpacked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from policy_server.schema import PolicySection
from policy_server.serving import DeployedVersion
from policy_server.settings import Settings

__all__ = ["FOLDER", "VersionPlaces"]

FOLDER = "versions"
# versions/POLICY/VERSION
_UPLOAD_PARTS = 3
# The label of the model of schema.yaml; with its dot it is no version's name.
_ONLY = "schema.model"
_ID_DIGITS = 12


class VersionPlaces:
    """The folders below `versions/POLICY/`, by the versions that they belong to.

    That of an upload is `VERSION.ID`, whose id no other upload has; that of a version from an
    address, or from a path that was deployed, is `VERSION.ID` with an id of that address or path.
    So a version that is deployed under a name that was another's has a folder of its own.
    """

    def __init__(self, settings: Settings) -> None:
        """Own nothing.

        Args:
            settings: the server's folder.
        """
        self._settings = settings

    def is_uploaded(self, model: str | None) -> bool:
        """Return whether a version was uploaded.

        Args:
            model: as `DeployedVersion.model` has it.
        """
        parts = PurePosixPath(model or "").parts
        return len(parts) == _UPLOAD_PARTS and parts[0] == FOLDER and ".." not in parts

    def is_named(self, section: PolicySection, version: DeployedVersion) -> bool:
        """Return whether schema.yaml names a version's model, and not a deployment alone.

        Args:
            section: the part of schema.yaml about the policy.
            version: the version.
        """
        named = {(item.name, item.model) for item in _versions_of(section)}
        return _is_only(section, version) or (version.name, version.model) in named

    def own(self, model: str) -> Settings:
        """Return the settings of a version's folder, laid out as a server's folder.

        Args:
            model: the folder's path below the server's.
        """
        return self._settings.model_copy(update={"home": self._settings.home / model})

    def folder_of(self, section: PolicySection | None, version: DeployedVersion) -> str | None:
        """Return the name of a version's own folder below `versions/POLICY/`; None for one without.

        Args:
            section: the part of schema.yaml about the policy; None where that is not known.
            version: the version; its name is empty where schema.yaml names none.
        """
        model = version.model
        if model is None:
            return None
        if self.is_uploaded(model):
            return PurePosixPath(model).name
        if self.unpacked(section, version) is not None:
            return None
        label = _ONLY if _is_only(section, version) else version.name
        return f"{label}.{hashlib.sha256(model.encode()).hexdigest()[:_ID_DIGITS]}"

    def unpacked(self, section: PolicySection | None, version: DeployedVersion) -> Path | None:
        """Return the folder below `models/` that a path of schema.yaml is unpacked to.

        What is deployed is never unpacked there: the served policy may be `models/` itself, and
        another one with more files in it.

        Args:
            section: the part of schema.yaml about the policy.
            version: the version.

        Returns:
            The folder; None for a version that has one below `versions/`.
        """
        if section is None or version.model is None or "://" in version.model:
            return None
        settings = self._settings
        named = {(item.name, item.model) for item in _versions_of(section)}
        paths = [settings.home / model for _, model in named if model is not None]
        is_beside = any(path.is_relative_to(settings.models_path) for path in paths)
        if is_beside or (version.name, version.model) not in named:
            return None
        return settings.models_path / section.name / version.name

    def kept(self, section: PolicySection | None, versions: Iterable[DeployedVersion]) -> set[str]:
        """Return the names of the folders below `versions/POLICY/` that must not go.

        Args:
            section: the part of schema.yaml about the policy, whose versions stay too.
            versions: those that are deployed.
        """
        found = [*versions, *_versions_of(section)]
        return {name for item in found if (name := self.folder_of(section, item)) is not None}


def _is_only(section: PolicySection | None, version: DeployedVersion) -> bool:
    """Return whether a version is that of a schema.yaml that names a model, and no versions."""
    if section is None or section.versions or version.model != section.model:
        return False
    # From the first deployment on it has the start of its digest for a name.
    return not version.name or bool(version.digest and version.name.startswith(version.digest))


def _versions_of(section: PolicySection | None) -> list[DeployedVersion]:
    if section is None:
        return []
    return [DeployedVersion(item.name, item.model) for item in section.versions] or [
        DeployedVersion("", section.model)
    ]
