"""The files of a policy that a command is given: where they lie, and what they are."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from policy_server.errors import ModelError
from policy_server.formats.compiling_process import find_signature
from policy_server.formats.finding import describe_others, find_model, find_policy, policy_at
from policy_server.formats.known_formats import expected_formats
from policy_server.formats.model_files import named_folder
from policy_server.formats.unpacking import unpack_model
from policy_server.installation import command_for
from policy_server.policy import PolicySignature
from policy_server.schema import ServerSchema
from policy_server.settings import Settings

__all__ = ["find_schema", "find_source", "opened_model", "signature_of", "unzipped_model"]


@contextlib.contextmanager
def opened_model(path: Path, settings: Settings) -> Iterator[tuple[Path, Path | None]]:
    """Give the folder of a policy's files, and the schema.yaml beside the policy.

    Args:
        path: a policy's zip, other file or folder, or a folder that holds one.
        settings: how much may be unpacked.

    Yields:
        The folder, which is gone afterwards where the policy was unpacked; and the schema.yaml,
        None where there is none.

    Raises:
        ModelError: if there is no policy.
    """
    source = find_source(path, settings)
    with unzipped_model(source, settings) as folder:
        yield folder, find_schema(source, settings)


def find_source(path: Path | None, settings: Settings) -> Path:
    """Return the zip, other file or folder of a policy.

    Args:
        path: a policy's zip, other file or folder, or a folder that holds one; None for the served
            policy.
        settings: the path of the served policy.

    Raises:
        ModelError: if there is no policy.
    """
    if path is None:
        served = find_policy(settings)
        if served is None:
            raise ModelError(
                describe_others(settings)
                or f"{settings.zip_path}: not found; name a file or a folder, or put a policy "
                f"there with `{command_for('copy_server_files FOLDER')}`"
            )
        return served
    if path.is_file():
        return path
    found = _find_below(path, settings)
    if found is None:
        others = describe_others(settings.model_copy(update={"home": path}))
        if others is not None:
            raise ModelError(others)
        what = f"holds no policy, {expected_formats()}" if path.is_dir() else "not found"
        raise ModelError(
            f"{named_folder(path)}: {what}; expected a policy's file or folder, or an example's "
            "folder"
        )
    return found


def _find_below(folder: Path, settings: Settings) -> Path | None:
    """Return the policy that a folder is or holds: its own files, a zip, or files at any depth."""
    return policy_at(folder, settings) or find_model(folder)


def find_schema(source: Path, settings: Settings) -> Path | None:
    """Return the schema.yaml beside a policy; None where there is none.

    Args:
        source: as `find_source` returned it.
        settings: the folder of the served policy.
    """
    folder = source.parent if source.is_file() else source
    if folder.resolve() == settings.models_path.resolve():
        folder = settings.home
    schema = folder / settings.schema_path.name
    return schema if schema.is_file() else None


@contextlib.contextmanager
def unzipped_model(source: Path, settings: Settings) -> Iterator[Path]:
    """Give the folder of a policy's files.

    Args:
        source: as `find_source` returned it.
        settings: how much may be unpacked.

    Yields:
        The folder, which is gone afterwards where the policy was unpacked.
    """
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / settings.models_path.name
        yield unpack_model(source, models, max_bytes=settings.max_unpacked_bytes)


def signature_of(folder: Path, schema: ServerSchema | None, settings: Settings) -> PolicySignature:
    """Return the signature of a policy, which is loaded for that.

    Args:
        folder: its files.
        schema: what schema.yaml says of it; None where there is none.
        settings: how long loading may take.

    Raises:
        ModelError: if it can't give a policy.
        NotReadyError: if loading it takes too long, or too much memory.
    """
    return asyncio.run(find_signature(folder, schema, settings))
