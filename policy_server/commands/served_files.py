"""The files of the served policy: copied, unzipped, removed; without TensorFlow."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from policy_server.engine.cache import OUTCOME_FILE, carry_outcome
from policy_server.errors import ModelError, SchemaError
from policy_server.files.archives import is_zip
from policy_server.files.replacement import (
    as_model_errors,
    incoming_folder,
    limit_permissions,
    replaced,
)
from policy_server.formats.finding import (
    describe_others,
    find_policy,
    format_of_folder,
    has_policy,
    policy_at,
)
from policy_server.formats.model_files import BESIDE_MARK, SOURCE_MARK, read_mark
from policy_server.formats.unpacking import pack_model, unpack_model
from policy_server.installation import command_for, examples_folder
from policy_server.remote_files import RECORD_FILE
from policy_server.schema import SchemaFile, find_example_of, read_schema_file
from policy_server.sdk import CLIENT_MARK
from policy_server.servable import check_servable
from policy_server.settings import Settings

__all__ = ["clean", "copy_server_files", "is_served", "unzip"]

_KEPT = ".gitkeep"
_CLIENTS = "clients"


def copy_server_files(source: Path, settings: Settings) -> dict[Path, Path]:
    """Put the schema.yaml and the policy of a folder in place, and unzip the policy.

    The policy becomes saved_model.zip, whatever its format and name; a folder is zipped, and so is
    a zip with the file that belongs to it, such as vec_normalize.pkl. The zips of several policies
    keep the names that schema.yaml gives them.

    Args:
        source: the folder; or, where there is none of that name, an example's, such as
            examples/lpoc, which an installed package has too.
        settings: the folder of the server's files.

    Returns:
        Where the copy of each lies: of the policy's zip or folder, or of several policies' zips.

    Raises:
        PolicyServerError: if a start would refuse the new files, one is missing, or they can't be
            written. The old files are then all there; after a kill, the next start puts them back.
    """
    source = _example_of(source) or source
    schema = source / settings.schema_path.name
    if schema.is_file() and (file := read_schema_file(schema)).is_named:
        return _copy_several(file, schema, settings)
    policy = _find_pair(source, schema, settings)
    if source.resolve() == settings.home.resolve() and policy != source / settings.zip_path.name:
        raise ModelError(
            f"{policy}: is in the server's folder already; a start serves it as it lies"
        )
    with as_model_errors(settings.home), incoming_folder(settings.home) as folder:
        zip_path = folder / settings.zip_path.name
        if policy.is_dir():
            pack_model(policy, zip_path)
        unzipped = _unzip_servable(
            zip_path if policy.is_dir() else policy, schema, folder, settings
        )
        shutil.copyfile(schema, folder / schema.name)
        _check_beside(policy, unzipped, settings)
        if read_mark(unzipped / BESIDE_MARK) is not None or not is_zip(policy):
            pack_model(unzipped, zip_path)
        elif policy.is_file():
            shutil.copyfile(policy, zip_path)
        for source_of_copy, copy in ((schema, folder / schema.name), (policy, zip_path)):
            limit_permissions(copy, source_of_copy)
        models = settings.models_path.name
        with replaced([schema.name, zip_path.name], folder, folders=[models]):
            # Another policy in the server's folder would be a second candidate.
            find_policy(settings)
            _unzip_in_place(settings.zip_path, unzipped, settings)
    return {policy: settings.zip_path}


def is_served(settings: Settings) -> bool:
    """Return whether a start would have a policy, so that no example has to be copied.

    Args:
        settings: the folder, and the address if it is fetched.

    Raises:
        ModelError: if several policies lie there, or only a schema.yaml that is no example's.
    """
    if has_policy(settings):
        return True
    schema = settings.schema_path
    if schema.exists() and find_example_of(schema) is None:
        if read_schema_file(schema).is_named:
            return True
        raise ModelError(
            f"{schema}: is no example's, and there is no policy for it; put its policy, such as "
            f"{settings.zip_path.name}, beside it, or move it away"
        )
    return False


def unzip(settings: Settings) -> tuple[Path, Path]:
    """Unzip the policy's zip, such as saved_model.zip, to models/.

    Args:
        settings: the folder of both.

    Returns:
        The zip, and the folder that holds its files.

    Raises:
        PolicyServerError: if the zip is missing, or a start would refuse it with the schema.yaml
            beside it, if there is one; models/ is then as it was.
    """
    zip_path = find_policy(settings)
    if zip_path is not None and zip_path.is_dir() and zip_path != settings.zip_path:
        raise ModelError(f"{zip_path}: is unzipped; a start serves it as it lies")
    if zip_path is None:
        raise ModelError(
            describe_others(settings)
            or f"{settings.zip_path}: not found; put your policy's zip there, or copy it and its "
            f"schema with `{command_for('copy_server_files FOLDER')}`"
        )
    schema = settings.schema_path if settings.schema_path.exists() else None
    with as_model_errors(settings.home), incoming_folder(settings.home) as folder:
        unzipped = _unzip_servable(zip_path, schema, folder, settings)
        return zip_path, _unzip_in_place(zip_path, unzipped, settings)


def clean(settings: Settings) -> list[Path]:
    """Remove saved_model.zip, and all that the server made: of a policy, and the clients.

    schema.yaml stays, and so does a policy that somebody put there under another name, or unzipped.

    Args:
        settings: the folder of the files.

    Returns:
        The paths that were removed.

    Raises:
        ModelError: if something can't be removed.
    """
    home, models = settings.home, settings.models_path
    if (models / SOURCE_MARK).exists():
        unzipped = sorted(path for path in models.iterdir() if path.name != _KEPT)
    else:
        # Each of several policies has a folder of its own.
        unzipped = sorted(mark.parent for mark in models.glob(f"*/{SOURCE_MARK}"))
    # A folder that is served as it lies has the compiled policy in it.
    compiled = {*models.rglob(OUTCOME_FILE), *home.glob(f"*/{OUTCOME_FILE}")}
    found = [
        path
        for path in (
            settings.zip_path,
            home / RECORD_FILE,
            *unzipped,
            *sorted(path for path in compiled if not {path, *path.parents} & set(unzipped)),
            *_clients_in(home / _CLIENTS),
            settings.sdks_path,
        )
        if os.path.lexists(path)
    ]
    with as_model_errors(settings.home):
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return found


def _clients_in(folder: Path) -> list[Path]:
    """Return the client libraries of the command `clients`; the folder, if it holds no others.

    A link was made by somebody else, and so may have been what it leads to.
    """
    if folder.is_symlink() or not folder.is_dir():
        return []
    inside = list(folder.iterdir())
    ours = sorted(path for path in inside if (path / CLIENT_MARK).is_file())
    return [folder] if ours and len(ours) == len(inside) else ours


def _unzip_servable(
    zip_path: Path,
    schema: Path | None,
    folder: Path,
    settings: Settings,
    *,
    policy: str | None = None,
    place: Path = Path(),
) -> Path:
    """Unzip a policy to a folder of its own, and check that a server could start with it."""
    models = folder / settings.models_path.name / place
    unzipped = unpack_model(zip_path, models, max_bytes=settings.max_unpacked_bytes)
    check_servable(unzipped, schema, settings, policy=policy)
    return unzipped


def _unzip_in_place(zip_path: Path, unzipped: Path, settings: Settings) -> Path:
    """Unzip a policy to models/, and copy the compiled policy from another folder."""
    models = unpack_model(zip_path, settings.models_path, max_bytes=settings.max_unpacked_bytes)
    carry_outcome(unzipped, models)
    return models


def _example_of(source: Path) -> Path | None:
    """Return the example that a missing path names."""
    examples = examples_folder()
    example = examples / source.name
    is_named = not source.exists() and source.parent in (Path(), Path(examples.name))
    return example if is_named and example.is_dir() else None


def _copy_several(file: SchemaFile, schema: Path, settings: Settings) -> dict[Path, Path]:
    """Copy the schema.yaml of several policies, and their zips beside it; unzip these."""
    placed = _places_of_models(file, schema)
    zips = {name: schema.parent / name for name in sorted(set(placed.values()))}
    with as_model_errors(settings.home), incoming_folder(settings.home) as folder:
        unzipped = {
            place: _unzip_servable(
                zips[name], schema, folder, settings, policy=place.parts[0], place=place
            )
            for place, name in placed.items()
        }
        for path in (schema, *zips.values()):
            shutil.copyfile(path, folder / path.name)
            limit_permissions(folder / path.name, path)
        with replaced([schema.name, *zips], folder, folders=[settings.models_path.name]):
            for place, name in placed.items():
                in_place = unpack_model(
                    settings.home / name,
                    settings.models_path / place,
                    max_bytes=settings.max_unpacked_bytes,
                )
                carry_outcome(unzipped[place], in_place)
    return {path: settings.home / name for name, path in zips.items()}


def _places_of_models(file: SchemaFile, schema: Path) -> dict[Path, str]:
    """Return the zip beside schema.yaml of each version, by its place below models/."""
    placed = {
        Path(section.name, label): model
        for section in file
        for label, model in [
            ("", section.model),
            *((version.name, version.model) for version in section.versions),
        ]
        if model is not None
    }
    for model in placed.values():
        if Path(model).name != model or not is_zip(schema.parent / model):
            raise SchemaError(
                f"{schema}: has policies:, of which {model} is no zip beside it; serve its folder "
                f"as it is, with POLICY_SERVER_HOME={schema.parent}"
            )
    return placed


def _find_pair(source: Path, schema: Path, settings: Settings) -> Path:
    """Return the policy's file or folder in a folder that has a schema.yaml too."""
    names = f"{schema.name} and a policy, such as {settings.zip_path.name}"
    if not source.is_dir():
        what = "is a file" if source.exists() else "not found"
        raise ModelError(f"{source}: {what}; expected a folder with {names}")
    policy = policy_at(source, settings)
    home = settings.model_copy(update={"home": source})
    if policy is None and (others := describe_others(home)) is not None:
        raise ModelError(others)
    missing = [schema.name] * (not schema.is_file())
    if policy is None:
        missing.append("policy")
    if policy is None or missing:
        raise ModelError(
            f"{source}: holds no {' and no '.join(missing)}; expected a folder with {names}"
        )
    return policy


def _check_beside(policy: Path, unzipped: Path, settings: Settings) -> None:
    """Refuse a file in the server's folder that would be taken for another policy's."""
    form = format_of_folder(unzipped)
    for name in () if form is None else form.beside(settings.zip_path.name):
        own, there = unzipped / name, settings.home / name
        is_same = own.is_file() and there.is_file() and own.read_bytes() == there.read_bytes()
        if there.exists() and not is_same:
            raise ModelError(
                f"{there}: would be taken for the one of {policy.name}, which is another; move it "
                "away"
            )
