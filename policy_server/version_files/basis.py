"""The digests of what a deployment is made over: schema.yaml and the policies' own files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from policy_server.errors import ModelError
from policy_server.files.regular import failure_of_system
from policy_server.formats.finding import find_policy
from policy_server.formats.model_files import digest_of_file, digest_of_files, files_of_model
from policy_server.schema import PolicySection, SchemaFile
from policy_server.settings import Settings

__all__ = ["basis_of"]


def basis_of(file: SchemaFile, settings: Settings) -> dict[str, str]:
    """Return the digest of each policy's part of schema.yaml and its files, by its name.

    Args:
        file: the contents of schema.yaml.
        settings: the server's folder.

    Raises:
        ModelError: if a file can't be read.
    """
    return {section.name: _basis(section, settings) for section in file}


def _basis(section: PolicySection, settings: Settings) -> str:
    models = [section.model, *(version.model for version in section.versions)]
    shares = [(item.name, item.traffic, item.is_shadow) for item in section.versions]
    digests = [_digest_at(model, settings) for model in models if model is not None]
    if models == [None]:
        try:
            found = find_policy(settings)
        except ModelError as error:
            if failure_of_system(error):
                raise
            found = None
        digests.append("" if found is None else _digest_of(found))
    text = f"{section.schema.policy_part()!r} {models} {shares} {digests}"
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_at(model: str, settings: Settings) -> str:
    return "" if "://" in model else _digest_of(settings.home / model)


def _digest_of(path: Path) -> str:
    if path.is_dir():
        # Whether they are as they were unpacked is told when the policy is opened, for it alone.
        return digest_of_files(files_of_model(path))
    return digest_of_file(path) if path.is_file() else ""
