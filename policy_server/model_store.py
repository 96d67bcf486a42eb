"""The model's file: saved_model.zip, or a folder, becomes a verified `models/`, replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from policy_server.errors import ModelError
from policy_server.settings import Settings

__all__ = ["MODEL_FILE", "find_model", "prepare_model", "read_model_files", "unpack_model"]

logger = logging.getLogger(__name__)

MODEL_FILE = "saved_model.pb"
_SOURCE_MARK = ".source-sha256"
_MOST_MEMBERS = 10_000
_CHUNK_BYTES = 1 << 20
_MOUNT_POINT_ERRNOS = (errno.EBUSY, errno.EXDEV)


def prepare_model(settings: Settings) -> Path:
    """Make sure that `models/` holds the policy of saved_model.zip.

    Args:
        settings: where both lie, and how much may be unpacked.

    Returns:
        The folder that holds saved_model.pb.

    Raises:
        ModelError: if there is neither a zip nor an unzipped policy, or the zip is refused.
    """
    if settings.zip_path.exists():
        return unpack_model(
            settings.zip_path, settings.models_path, max_bytes=settings.max_unpacked_bytes
        )
    if (folder := find_model(settings.models_path)) is not None:
        return folder
    raise ModelError(
        f"{settings.zip_path}: not found; put your policy's saved_model.zip there, or try an example with "
        "`python generate.py copy_server_files examples/mouse_and_cheese`"
    )


def find_model(folder: Path) -> Path | None:
    """Return the folder at or below `folder` that holds saved_model.pb; None where there is none.

    Args:
        folder: where to look.

    Raises:
        ModelError: if several lie at the same depth.
    """
    if not folder.is_dir():
        return None
    found = [path.relative_to(folder).as_posix() for path in folder.rglob(MODEL_FILE)]
    return None if not found else folder / _choose_root(found, str(folder))


def read_model_files(folder: Path) -> dict[str, bytes]:
    """Read a SavedModel's files, to carry it to another machine.

    Args:
        folder: holds saved_model.pb.

    Returns:
        The contents by path relative to the folder.
    """
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and _is_part_of_model(path.relative_to(folder))
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def unpack_model(zip_path: Path, models: Path, *, max_bytes: int) -> Path:
    """Unpack a zip to a new folder, which then takes the place of `models`.

    A zip that is unpacked there already is left as it is. Several processes may call this at once.

    Args:
        zip_path: saved_model.zip, with saved_model.pb at any depth.
        models: the folder to replace.
        max_bytes: the largest size of all files together.

    Returns:
        `models`, which holds saved_model.pb itself.

    Raises:
        ModelError: if the zip is damaged, is too large, holds no single policy, or would write outside the folder. The
            folder is then as it was.
    """
    digest = _digest(zip_path)
    with _locked(models):
        mark = models / _SOURCE_MARK
        if (models / MODEL_FILE).exists() and mark.exists() and mark.read_text() == digest:
            return models
        new = Path(tempfile.mkdtemp(prefix=f".{models.name}-", dir=models.parent))
        try:
            _extract(zip_path, new, max_bytes)
            (new / _SOURCE_MARK).write_text(digest)
            _replace(models, new)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    logger.info("model_unpacked", extra={"path": str(zip_path), "sha256": digest})
    return models


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error


@contextlib.contextmanager
def _locked(models: Path) -> Iterator[None]:
    path = models.parent / f".{models.name}.lock"
    try:
        models.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise ModelError(
            f"{models.parent}: can't be written: {error.strerror or error}; unpack the policy to {models}"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _extract(zip_path: Path, target: Path, max_bytes: int) -> None:
    try:
        with zipfile.ZipFile(zip_path) as archive:
            members = _checked_members(archive, zip_path, max_bytes)
            root = PurePosixPath(
                _choose_root(
                    [m.filename for m in members if _base_name(m) == MODEL_FILE], str(zip_path)
                )
            )
            remaining = max_bytes
            for member in members:
                path = PurePosixPath(member.filename)
                if path.is_relative_to(root) and _is_part_of_model(path.relative_to(root)):
                    remaining -= _copy(
                        archive, member, target / path.relative_to(root), remaining, zip_path
                    )
    except zipfile.BadZipFile as error:
        raise ModelError(
            f"{zip_path}: is no zip file or is damaged ({error}); zip the exported folder again"
        ) from error
    except (NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
        raise ModelError(
            f"{zip_path}: can't be unpacked: {error}; zip the exported folder again without a password"
        ) from error
    except OSError as error:
        raise ModelError(
            f"{zip_path}: can't be unpacked to {target.parent}: {error.strerror or error}"
        ) from error


def _checked_members(
    archive: zipfile.ZipFile, zip_path: Path, max_bytes: int
) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        raise ModelError(
            f"{zip_path}: holds {len(members)} files, more than {_MOST_MEMBERS}; a SavedModel has a few"
        )
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if (
            path.is_absolute()
            or ".." in path.parts
            or ":" in path.parts[0:1]
            or "\0" in member.orig_filename
        ):
            raise ModelError(
                f"{zip_path}: the member {member.filename!r} climbs out of the folder; refused"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ModelError(f"{zip_path}: the member {member.filename!r} is a link; refused")
    size = sum(member.file_size for member in members)
    if size > max_bytes:
        raise ModelError(
            f"{zip_path}: unpacks to {size} bytes, more than POLICY_SERVER_MAX_UNPACKED_BYTES={max_bytes}"
        )
    return [
        member
        for member in members
        if not member.is_dir() and "__MACOSX" not in PurePosixPath(member.filename).parts
    ]


def _base_name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename).name


def _choose_root(files: list[str], where: str) -> str:
    """Return the folder of the saved_model.pb that lies highest."""
    if not files:
        raise ModelError(
            f"{where}: holds no {MODEL_FILE}; expected the folder that export_policy_model writes"
        )
    roots = sorted((PurePosixPath(name).parent for name in files), key=lambda path: len(path.parts))
    highest = [root for root in roots if len(root.parts) == len(roots[0].parts)]
    if len(highest) > 1:
        names = ", ".join(sorted(map(str, highest)))
        raise ModelError(f"{where}: holds {len(highest)} policies ({names}); keep one")
    return str(highest[0])


def _is_part_of_model(path: Path | PurePosixPath) -> bool:
    return not path.name.startswith("events.out.tfevents") and not path.name.startswith(".")


def _copy(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, limit: int, zip_path: Path
) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(member) as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > limit:
                # The directory of a zip may lie about sizes.
                raise ModelError(
                    f"{zip_path}: unpacks to more than POLICY_SERVER_MAX_UNPACKED_BYTES"
                )
            file.write(chunk)
    return written


def _replace(models: Path, new: Path) -> None:
    new.chmod(0o755)
    for keep in (".gitkeep",):
        if (models / keep).exists():
            (new / keep).touch()
    old = Path(tempfile.mkdtemp(prefix=f".{models.name}-old-", dir=models.parent))
    try:
        if models.exists():
            os.rename(models, old / models.name)
        os.rename(new, models)
    except OSError as error:
        if error.errno not in _MOUNT_POINT_ERRNOS:
            raise ModelError(f"{models}: can't be replaced: {error.strerror or error}") from error
        _fill_mount_point(models, new)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _fill_mount_point(models: Path, new: Path) -> None:
    """Replace the contents of a folder that can't be renamed, a volume's, the model's file last."""
    for path in models.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in sorted(new.iterdir(), key=lambda item: item.name == MODEL_FILE):
        shutil.move(path, models / path.name)
