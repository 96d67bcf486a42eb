"""The files of the served policy: copied, unzipped, removed; without TensorFlow."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from policy_server.engine.cache import carry_outcome
from policy_server.errors import ModelError
from policy_server.files.replacement import incoming_folder, replaced
from policy_server.formats.finding import has_policy
from policy_server.formats.unpacking import unpack_model
from policy_server.installation import command_for, examples_folder
from policy_server.schema import find_example_of
from policy_server.servable import check_servable
from policy_server.settings import Settings

__all__ = ["clean", "copy_server_files", "is_served", "unzip"]

_KEPT = ".gitkeep"
_CLIENTS = "clients"


def copy_server_files(source: Path, settings: Settings) -> None:
    """Put the schema.yaml and saved_model.zip of a folder in place, and unzip the policy.

    Args:
        source: the folder; or, where there is none of that name, an example's, such as
            examples/lpoc, which an installed package has too.
        settings: the folder of the server's files.

    Raises:
        PolicyServerError: if a start would refuse the new files, one is missing, or they can't be
            written. The old files are then all there; after a kill, the next start puts them back.
    """
    source = _example_of(source) or source
    schema, model = source / settings.schema_path.name, source / settings.zip_path.name
    _check_is_there(source, [schema, model])
    with _as_model_errors(settings.home), incoming_folder(settings.home) as folder:
        unzipped = _unzip_servable(model, schema, folder, settings)
        for file in (schema, model):
            shutil.copyfile(file, folder / file.name)
        with replaced([schema.name, model.name], folder):
            _unzip_in_place(unzipped, settings)


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
        raise ModelError(
            f"{schema}: is no example's, and there is no policy for it; put its "
            f"{settings.zip_path.name} beside it, or move it away"
        )
    return False


def unzip(settings: Settings) -> Path:
    """Unzip saved_model.zip to models/.

    Args:
        settings: the folder of both.

    Returns:
        The folder that holds saved_model.pb.

    Raises:
        PolicyServerError: if the zip is missing, or a start would refuse it with the schema.yaml
            beside it, if there is one; models/ is then as it was.
    """
    if not settings.zip_path.exists():
        raise ModelError(
            f"{settings.zip_path}: not found; put your policy's saved_model.zip there, or copy it "
            f"and its schema with `{command_for('copy_server_files FOLDER')}`"
        )
    schema = settings.schema_path if settings.schema_path.exists() else None
    with _as_model_errors(settings.home), incoming_folder(settings.home) as folder:
        unzipped = _unzip_servable(settings.zip_path, schema, folder, settings)
        return _unzip_in_place(unzipped, settings)


def clean(settings: Settings) -> list[Path]:
    """Remove saved_model.zip, the unzipped policy and the generated clients; schema.yaml stays.

    Args:
        settings: the folder of the files.

    Returns:
        The paths that were removed.

    Raises:
        ModelError: if something can't be removed.
    """
    models = settings.models_path
    unzipped = (
        sorted(path for path in models.iterdir() if path.name != _KEPT) if models.is_dir() else []
    )
    found = [
        path
        for path in (settings.zip_path, *unzipped, settings.home / _CLIENTS, settings.sdks_path)
        if os.path.lexists(path)
    ]
    with _as_model_errors(settings.home):
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return found


def _unzip_servable(zip_path: Path, schema: Path | None, folder: Path, settings: Settings) -> Path:
    """Unzip a policy to a folder of its own, and check that a server could start with it."""
    models = folder / settings.models_path.name
    unzipped = unpack_model(zip_path, models, max_bytes=settings.max_unpacked_bytes)
    check_servable(unzipped, schema, settings)
    return unzipped


def _unzip_in_place(unzipped: Path, settings: Settings) -> Path:
    """Unzip saved_model.zip to models/, and copy the compiled policy from another folder."""
    models = unpack_model(
        settings.zip_path, settings.models_path, max_bytes=settings.max_unpacked_bytes
    )
    carry_outcome(unzipped, models)
    return models


def _example_of(source: Path) -> Path | None:
    """Return the example that a missing path names."""
    examples = examples_folder()
    example = examples / source.name
    is_named = not source.exists() and source.parent in (Path(), Path(examples.name))
    return example if is_named and example.is_dir() else None


def _check_is_there(source: Path, files: Sequence[Path]) -> None:
    names = " and ".join(file.name for file in files)
    if not source.is_dir():
        what = "is a file" if source.exists() else "not found"
        raise ModelError(f"{source}: {what}; expected a folder with {names}")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{source}: holds no {' and no '.join(missing)}; expected a folder with {names}"
        )


@contextlib.contextmanager
def _as_model_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or home
        raise ModelError(f"{where}: can't be changed: {error.strerror or error}") from error
