"""The model's file: saved_model.zip becomes a verified `models/`, as a whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from policy_server.errors import ModelError
from policy_server.files.archives import ArchiveLimits, open_archive
from policy_server.files.atomic import whole_folder
from policy_server.files.locks import FileLock
from policy_server.installation import command_for
from policy_server.settings import ENV_PREFIX, Settings

__all__ = [
    "MODEL_FILE",
    "Model",
    "files_of_model",
    "find_model",
    "find_policy",
    "has_policy",
    "identify_model",
    "prepare_model",
    "unpack_model",
]

logger = logging.getLogger(__name__)

MODEL_FILE = "saved_model.pb"
_SOURCE_MARK = ".source-sha256"
_VERSION_DIGITS = 12
# Keeps the folder in the repository.
_KEPT = ".gitkeep"


@dataclass(frozen=True)
class Model:
    """An unzipped model.

    Attributes:
        folder: holds saved_model.pb.
        digest: the SHA-256 of its files and their names, in hexadecimal.
        zip_digest: the SHA-256 of the saved_model.zip that it was unpacked from, which a pin
            states; None where the files came without a zip.
    """

    folder: Path
    digest: str
    zip_digest: str | None = None

    @property
    def version(self) -> str:
        """Return the start of the zip's digest, or else of the files', to tell models apart by."""
        return (self.zip_digest or self.digest)[:_VERSION_DIGITS]


def prepare_model(settings: Settings) -> Path:
    """Make sure that `models/` holds the policy of saved_model.zip.

    Args:
        settings: where both lie, and how much may be unpacked.

    Returns:
        The folder that holds saved_model.pb.

    Raises:
        ModelError: if there is neither a zip nor an unzipped policy, or the zip is refused.
    """
    found = find_policy(settings)
    if found is None:
        raise ModelError(
            f"{settings.zip_path}: not found; put your policy's saved_model.zip there, or try an "
            f"example with `{command_for('copy_server_files examples/mouse_and_cheese')}`"
        )
    if found != settings.zip_path:
        return found
    return unpack_model(found, settings.models_path, max_bytes=settings.max_unpacked_bytes)


def find_policy(settings: Settings) -> Path | None:
    """Return the files that a start would serve: saved_model.zip, else the unzipped folder.

    Args:
        settings: where both lie.

    Returns:
        The path; None where there is no policy.

    Raises:
        ModelError: if there is no zip, and several policies lie unzipped at the same depth.
    """
    return settings.zip_path if settings.zip_path.exists() else find_model(settings.models_path)


def has_policy(settings: Settings) -> bool:
    """Return whether a start would have a policy: on disk, or fetched from an address.

    Args:
        settings: where it lies or comes from.

    Raises:
        ModelError: as `find_policy`.
    """
    return settings.model_uri is not None or find_policy(settings) is not None


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


def files_of_model(folder: Path) -> dict[str, Path]:
    """Return a model's files by their names below its folder, in the order of their paths.

    TensorBoard's events and hidden files, such as an earlier start's compiled policy, are none.

    Args:
        folder: where the model lies.
    """
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and _is_part_of_model(path.relative_to(folder))
    )
    return {path.relative_to(folder).as_posix(): path for path in paths}


def identify_model(folder: Path) -> Model:
    """Return the model in a folder, with the digests that tell it from another.

    Args:
        folder: holds saved_model.pb.
    """
    digest = hashlib.sha256()
    for name, path in files_of_model(folder).items():
        digest.update(f"\0{name}\0{_digest(path)}".encode())
    return Model(folder, digest.hexdigest(), _zip_digest(folder))


def _zip_digest(folder: Path) -> str | None:
    try:
        return (folder / _SOURCE_MARK).read_text()
    except OSError:
        return None


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
        ModelError: if the zip is damaged, is too large, holds no single policy, or would write
            outside the folder. The folder is then as it was.
    """
    digest = _digest(zip_path)
    if _is_unpacked(models, digest):
        return models
    with _locked(models):
        # Another process may have been first.
        if not _is_unpacked(models, digest):
            _unpack(zip_path, models, digest, max_bytes)
    return models


def _is_unpacked(models: Path, digest: str) -> bool:
    mark = models / _SOURCE_MARK
    try:
        return (models / MODEL_FILE).is_file() and mark.read_bytes() == digest.encode()
    except OSError:
        return False


def _unpack(zip_path: Path, models: Path, digest: str, max_bytes: int) -> None:
    try:
        with whole_folder(models, key=MODEL_FILE) as new:
            new.chmod(0o755)
            _extract(zip_path, new, max_bytes)
            (new / _SOURCE_MARK).write_text(digest)
            if (models / _KEPT).exists():
                (new / _KEPT).touch()
    except OSError as error:
        raise ModelError(
            f"{zip_path}: can't be unpacked to {models}: {error.strerror or error}"
        ) from error
    logger.info("model_unpacked", extra={"path": str(zip_path), "sha256": digest})


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error


@contextlib.contextmanager
def _locked(models: Path) -> Iterator[None]:
    try:
        models.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(models.parent / f".{models.name}.lock")
    except OSError as error:
        raise ModelError(
            f"{models.parent}: can't be written: {error.strerror or error}; unpack the policy to "
            f"{models}"
        ) from error
    with lock:
        yield


def _extract(zip_path: Path, target: Path, max_bytes: int) -> None:
    limits = ArchiveLimits(max_bytes, f"{ENV_PREFIX}MAX_UNPACKED_BYTES={max_bytes}")
    with open_archive(zip_path, limits) as archive:
        models = [str(path) for path in archive.paths if path.name == MODEL_FILE]
        zips = [str(path) for path in archive.paths if path.suffix.lower() == ".zip"]
        if zips and not models:
            raise ModelError(
                f"{zip_path}: holds no {MODEL_FILE}, but the zip {zips[0]!r}; unzip it once and "
                "give that"
            )
        root = PurePosixPath(_choose_root(models, str(zip_path)))
        archive.extract(root, target, is_wanted=_is_part_of_model)


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
