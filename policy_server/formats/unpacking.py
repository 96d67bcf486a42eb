"""A policy's zip or file becomes a verified `models/`, as a whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from policy_server.errors import ModelError, PolicyServerError
from policy_server.files.archives import Archive, ArchiveLimits, is_zip, open_archive
from policy_server.files.atomic import remove_left_behind, whole_folder
from policy_server.files.locks import FileLock
from policy_server.formats.known_formats import FORMATS, Format, expected_formats, format_of
from policy_server.formats.model_files import (
    BESIDE_MARK,
    SOURCE_MARK,
    difference,
    digest_of_file,
    digest_of_files,
    files_of_model,
    head_of,
    is_part_of_model,
    read_mark,
    write_listing,
)
from policy_server.formats.recognition import describe_file
from policy_server.settings import ENV_PREFIX

__all__ = ["FolderCheck", "choose_root", "format_of_file", "pack_model", "unpack_model"]

logger = logging.getLogger(__name__)

# Keeps the folder in the repository.
_KEPT = ".gitkeep"

# Raises the errors that a start would have with the unzipped policy in a folder.
FolderCheck = Callable[[Path], None]


def unpack_model(
    source: Path,
    models: Path,
    *,
    max_bytes: int,
    beside: Path | None = None,
    formats: Sequence[Format] = FORMATS,
    check: FolderCheck = lambda _folder: None,
) -> Path:
    """Unpack a zip to a new folder, which then takes the place of `models`.

    A policy that is one other file, such as policy.onnx, is copied to that folder. Files that a
    format knows to lie beside its own, such as vec_normalize.pkl, are copied there too. What is
    unpacked there already is left as it is, unless a file of it is not as it was unpacked: a
    warning then names that, and all is unpacked again. Several processes may call this at once.

    Args:
        source: the zip, with the policy's files at any depth; or the one file.
        models: the folder to replace.
        max_bytes: the largest size of all files together.
        beside: the folder to look for files that belong to the source; None for its own.
        formats: those that may read the files.
        check: the check that the new folder has to pass before it takes the place of `models`,
            which may hold the only copy of a policy. Its errors name the source.

    Returns:
        `models`, which holds the policy's files itself.

    Raises:
        ModelError: if the zip is damaged, is too large, holds no single policy, or would write
            outside the folder; or if the file is no policy. The folder is then as it was.
        PolicyServerError: as `check` raises it; the folder is then as it was, too.
    """
    unpacking = _Unpacking(source, models, max_bytes, beside or source.parent, formats, check)
    if unpacking.is_done():
        # Whoever unpacks does so too.
        remove_left_behind(models)
        return models
    with unpacking.locked():
        # Another process may have been first.
        if not unpacking.is_done():
            unpacking.unpack()
    return models


def pack_model(folder: Path, zip_path: Path) -> None:
    """Pack a policy's folder to a zip, whose bytes depend on the files' names and contents only.

    Args:
        folder: holds the policy's files.
        zip_path: the zip to write.

    Raises:
        OSError: if a file can't be read, or the zip can't be written.
    """
    with zipfile.ZipFile(zip_path, "w") as archive:
        for name, path in files_of_model(folder).items():
            # A ZipInfo of its own has a date of 1980, not the file's.
            with path.open("rb") as source, archive.open(zipfile.ZipInfo(name), "w") as member:
                shutil.copyfileobj(source, member)


def format_of_file(
    path: Path, *, max_bytes: int, formats: Sequence[Format] = FORMATS
) -> Format | None:
    """Return the format of the policy in a zip or another file; None for no policy.

    The names of its members tell the policy in a zip, the first bytes tell one that is one file.

    Args:
        path: the zip or file.
        max_bytes: the largest size of all files together.
        formats: those that may read the files.

    Raises:
        ModelError: if the zip would not be unpacked, or holds several policies.
    """
    if (single := _single_file(path, formats)) is not None:
        return single[1]
    with _opened(path, max_bytes, formats) as archive:
        found = _policies_in(archive.paths, formats)
        return None if not found else _only(found, str(path))[1]


def choose_root(
    paths: Sequence[PurePosixPath], where: str, formats: Sequence[Format] = FORMATS
) -> PurePosixPath | None:
    """Return the highest folder whose files a format reads; None where there is none.

    Args:
        paths: of all files.
        where: the zip or folder that holds them, for messages.
        formats: those that may read the files.

    Raises:
        ModelError: if several lie at the same depth.
    """
    found = _policies_in(paths, formats)
    return None if not found else _only(found, where)[0]


class _Unpacking:
    """One zip or file on its way to one folder; owns neither."""

    def __init__(
        self,
        source: Path,
        models: Path,
        max_bytes: int,
        beside: Path,
        formats: Sequence[Format],
        check: FolderCheck,
    ) -> None:
        self._source = source
        self._models = models
        self._max_bytes = max_bytes
        self._beside = beside
        self._formats = formats
        self._check = check
        self._digest = digest_of_file(source)
        # The file of the source's policy in `models` that is not as it was unpacked, in words.
        self._difference: str | None = None

    def is_done(self) -> bool:
        """Return whether `models` holds the source's policy, and the files beside the source.

        Each of its files has to be as it was unpacked. An earlier version of this program wrote no
        listing of them: the policy that it unpacked is trusted by its marks.
        """
        self._difference = None
        try:
            if read_mark(self._models / SOURCE_MARK) != self._digest:
                return False
            self._difference = difference(self._models)
            return self._difference is None and self._has_files_beside()
        except ModelError as error:
            # Another process may replace the folder meanwhile, unless this one has the lock.
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise

    def _has_files_beside(self) -> bool:
        form = format_of(files_of_model(self._models), self._formats)
        if form is None:
            return False
        beside = self._files_beside(form)
        digest = digest_of_files(beside) if beside else None
        return read_mark(self._models / BESIDE_MARK) == digest

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process unpack to the folder while the block runs."""
        place = self._models.parent
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = FileLock(place / f".{self._models.name}.lock")
        except OSError as error:
            raise self._refusal(
                f"{place}: can't be written: {error.strerror or error}",
                f"unpack the policy to {self._models}",
            ) from error
        with lock:
            yield

    def unpack(self) -> None:
        """Put the source's policy in the place of `models`; warn where it was there and differs."""
        if self._difference is not None:
            logger.warning(
                "unpacked_files_differ",
                extra={"path": str(self._models), "reason": self._difference},
            )
        try:
            if (single := _single_file(self._source, self._formats)) is not None:
                self._copy(*single)
            else:
                with _opened(self._source, self._max_bytes, self._formats) as archive:
                    self._unpack(archive)
        except OSError as error:
            raise self._refusal(
                f"{self._source}: can't be unpacked to {self._models}: {error.strerror or error}"
            ) from error
        logger.info("model_unpacked", extra={"path": str(self._source), "sha256": self._digest})

    def _refusal(self, failure: str, remedy: str = "") -> ModelError:
        """Return the error for a folder that can't be replaced; it names the file that differs."""
        if self._difference is None:
            return ModelError(f"{failure}; {remedy}" if remedy else failure)
        return ModelError(
            f"{self._models}: {self._difference}, and it can't be unpacked again: {failure}; undo "
            f"the change, or let the server write to {self._models.parent}"
        )

    def _copy(self, name: str, form: Format) -> None:
        """Copy the policy that is one file."""
        self._check_size(self._source)
        with self._filled(form, name) as new:
            shutil.copyfile(self._source, new / name)

    def _unpack(self, archive: Archive) -> None:
        root, form = self._choose(archive.paths)
        with self._filled(form) as new:
            archive.extract(root, new, is_wanted=is_part_of_model)

    @contextlib.contextmanager
    def _filled(self, form: Format, name: str = "") -> Iterator[Path]:
        """Give a folder for the policy's own files, which then gets the others and replaces it.

        The source is the file `name` in the folder, or the folder if that is empty.
        """
        with whole_folder(self._models, key=SOURCE_MARK) as new:
            new.chmod(0o755)
            yield new
            (new / SOURCE_MARK).write_text(self._digest)
            if beside := self._files_beside(form):
                for name, path in beside.items():
                    self._check_size(path)
                    shutil.copyfile(path, new / name)
                copies = {name: new / name for name in beside}
                (new / BESIDE_MARK).write_text(digest_of_files(copies))
            write_listing(new)
            if (self._models / _KEPT).exists():
                (new / _KEPT).touch()
            self._check_new(new, name)

    def _check_new(self, new: Path, name: str) -> None:
        try:
            self._check(new)
        except PolicyServerError as error:
            # Nobody knows the new folder, which goes.
            source, message = str(self._source), error.message
            for path in (new.resolve() / name, new / name, new.resolve(), new):
                message = message.replace(str(path), source)
            if isinstance(error, ModelError) and not message.startswith(source):
                message = f"{source}: {message.removeprefix(f'{name}: ')}"
            raise type(error)(message) from error

    def _choose(self, paths: Sequence[PurePosixPath]) -> tuple[PurePosixPath, Format]:
        found = _policies_in(paths, self._formats)
        if found:
            return _only(found, str(self._source))
        expected = f"expected {expected_formats(self._formats)}"
        seems = describe_file(self._source)
        raise ModelError(
            f"{self._source}: holds no policy; {expected}"
            if seems is None
            else f"{self._source}: is {seems}; {expected}"
        )

    def _check_size(self, path: Path) -> None:
        if (size := path.stat().st_size) > self._max_bytes:
            raise ModelError(
                f"{path}: has {size} bytes, more than {_limit(self._max_bytes)}; raise it if you "
                "trust the file"
            )

    def _files_beside(self, form: Format) -> dict[str, Path]:
        paths = [self._beside / name for name in form.beside(self._source.name)]
        return {path.name: path for path in paths if path.is_file()}


@contextlib.contextmanager
def _opened(zip_path: Path, max_bytes: int, formats: Sequence[Format]) -> Iterator[Archive]:
    if not is_zip(zip_path) and (seems := describe_file(zip_path)) is not None:
        raise ModelError(f"{zip_path}: is {seems}; expected {expected_formats(formats)}")
    limits = ArchiveLimits(max_bytes, _limit(max_bytes))
    with open_archive(zip_path, limits) as archive:
        yield archive


def _limit(max_bytes: int) -> str:
    return f"{ENV_PREFIX}MAX_UNPACKED_BYTES={max_bytes}"


def _single_file(path: Path, formats: Sequence[Format]) -> tuple[str, Format] | None:
    """Return the name and format of a policy that is one file and no zip; None for all others."""
    head = head_of(path)
    for form in formats:
        if (usual := form.file_name(head)) is not None:
            return path.name if form.can_read({path.name: path}) else usual, form
    return None


def _policies_in(
    paths: Sequence[PurePosixPath], formats: Sequence[Format]
) -> list[tuple[PurePosixPath, Format]]:
    """Return the highest folders that hold a policy, all at the same depth.

    A policy's folder is the one whose own files a format reads, whatever lies in folders below; or
    the one that this is a part of.
    """
    folders: dict[PurePosixPath, dict[str, Path]] = {}
    for path in filter(is_part_of_model, paths):
        folders.setdefault(path.parent, {})[path.name] = Path(path)
    found = [
        (root, form)
        for root, files in sorted(folders.items())
        if (form := format_of(files, formats)) is not None
    ]
    depth = min((len(root.parts) for root, _ in found), default=0)
    highest = [(root, form) for root, form in found if len(root.parts) == depth]
    return [*{form.whole(root, paths): form for root, form in highest}.items()]


def _only(
    found: Sequence[tuple[PurePosixPath, Format]], where: str
) -> tuple[PurePosixPath, Format]:
    if len(found) > 1:
        names = ", ".join(str(root) for root, _ in found)
        raise ModelError(f"{where}: holds {len(found)} policies ({names}); keep one")
    return found[0]
