"""A model's files: those that count, and the digests that tell one model from another."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from policy_server.errors import ModelError
from policy_server.files.regular import check_system, is_there, open_file, read_json, read_text
from policy_server.formats.read_names import is_read

__all__ = [
    "BESIDE_MARK",
    "HEAD_BYTES",
    "SOURCE_MARK",
    "Model",
    "bounded",
    "check_count",
    "difference",
    "digest_of_file",
    "digest_of_files",
    "digest_of_path",
    "files_of_model",
    "head_of",
    "identify_model",
    "is_part_of_model",
    "may_be_looked_at",
    "named_folder",
    "read_mark",
    "whole_model",
    "write_listing",
]

# A file's first bytes, by which its format is told.
HEAD_BYTES = 512
# Hidden files of an unpacked model: the digests of its zip or file, and of those from beside it.
SOURCE_MARK = ".source-sha256"
BESIDE_MARK = ".beside-sha256"
# Another one, the listing: the digest of each file as it was unpacked, by its name.
_FILES_MARK = ".files-sha256.json"
# A folder with more is not looked through: it is a data set, or somebody's home.
_MOST_FILES = 10_000
_VERSION_DIGITS = 12
_DIGEST = re.compile(r"[0-9a-f]{64}")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Model:
    """An unzipped model.

    Attributes:
        folder: holds the files of its format, such as saved_model.pb.
        digest: the SHA-256 of its files and their names, in hexadecimal.
        source_digest: the SHA-256 of the zip or file that it was unpacked from, which a pin states;
            None where the files are not those of one zip or file alone.
    """

    folder: Path
    digest: str
    source_digest: str | None = None

    @property
    def version(self) -> str:
        """Return the start of the zip's or file's digest, or else of the files' together."""
        return (self.source_digest or self.digest)[:_VERSION_DIGITS]


def files_of_model(folder: Path) -> dict[str, Path]:
    """Return a model's files by their names below its folder, in the order of their paths.

    TensorBoard's events and hidden files, such as an earlier start's compiled policy, are none, and
    what may not be looked at is passed over.

    Args:
        folder: where the model lies.

    Raises:
        ModelError: if there are too many; see `bounded`.
    """
    found = []
    for path in bounded(folder.rglob("*"), named_folder(folder)):
        if may_be_looked_at(path) and path.is_file() and is_part_of_model(path.relative_to(folder)):
            found.append(path)
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


def may_be_looked_at(path: Path) -> bool:
    """Return whether the system tells of a path whether it is a file; it may be missing.

    Args:
        path: an entry of a folder, such as /proc/1/cwd, which only a privileged user may follow.

    Raises:
        ModelError: if the disk fails to tell.
    """
    try:
        path.is_file()
    except OSError as error:
        check_system(error, path)
        return False
    return True


def bounded(found: Iterable[_Found], place: str) -> Iterator[_Found]:
    """Return the contents of a folder one after the other, 10,000 at most.

    Args:
        found: what it holds, of which no more than that is asked for.
        place: the folder, as the error names it.

    Raises:
        ModelError: if there are more.
    """
    for count, one in enumerate(found, 1):
        check_count(count, place)
        yield one


def check_count(count: int, place: str) -> None:
    """Refuse a folder with more than 10,000 files and folders in it.

    Args:
        count: how many it has.
        place: the folder, as the error names it.

    Raises:
        ModelError: if these are too many.
    """
    if count > _MOST_FILES:
        raise ModelError(
            f"{place}: holds more than {_MOST_FILES} files; a policy has a few: name the "
            "folder of one checkpoint"
        )


def is_part_of_model(path: Path | PurePosixPath) -> bool:
    """Return whether a file below a model's folder is one of the model's.

    Args:
        path: the file's path below the folder.
    """
    return not path.name.startswith("events.out.tfevents") and not path.name.startswith(".")


def identify_model(folder: Path) -> Model:
    """Return the model in a folder, with the digests that tell it from another.

    Args:
        folder: holds the files of the model's format, such as saved_model.pb.

    Raises:
        ModelError: if a file can't be read, or if the files were unpacked there and are not as they
            were then: neither a pin nor a deployment may stand for them.
    """
    model, found = _examined(folder)
    if found is not None:
        raise ModelError(
            f"{named_folder(folder)}: {found}; put the zip or file that the policy was unpacked "
            f"from back, or remove {folder / SOURCE_MARK} to serve the files as they are"
        )
    return model


def whole_model(folder: Path) -> Model | None:
    """Return the model in a folder; None where a file is not as it was unpacked there.

    Args:
        folder: holds the files of the model's format.

    Raises:
        ModelError: if a file can't be read.
    """
    model, found = _examined(folder)
    return model if found is None else None


def write_listing(folder: Path) -> None:
    """Write the listing of the files that were unpacked to a folder.

    Args:
        folder: holds the files, all of them.

    Raises:
        ModelError: if a file can't be read.
        OSError: if the listing can't be written.
    """
    (folder / _FILES_MARK).write_text(json.dumps(_digests_of(files_of_model(folder))))


def difference(folder: Path) -> str | None:
    """Return the first file that is not as it was unpacked, in words; None where all are.

    An example is `'model.weights.h5' was changed after it was unpacked`. A file that was added
    counts where a format would read it.

    Args:
        folder: holds an unpacked model. Where it has no listing, no file is known to differ.

    Raises:
        ModelError: if a file can't be read.
    """
    return _examined(folder)[1]


@dataclass(frozen=True)
class _Marks:
    """The hidden files of an unpacked model: its source, whether that is all, and the listing.

    A listing without a source does not count.
    """

    source: str | None
    has_beside: bool
    listing: dict[str, str] | None


def _marks_of(folder: Path) -> _Marks:
    source = read_mark(folder / SOURCE_MARK)
    listing = None if source is None else _read_listing(folder)
    return _Marks(source, is_there(folder / BESIDE_MARK), listing)


def _examined(folder: Path) -> tuple[Model, str | None]:
    """Return the model in a folder, and its first file that is not as it was unpacked, in words."""
    marks, digests = _marks_and_digests(folder)
    found = None if marks.listing is None else _difference(marks.listing, digests)
    source = None if marks.has_beside else marks.source
    return Model(folder, _digest_of(digests), source), found


def _marks_and_digests(folder: Path) -> tuple[_Marks, dict[str, str]]:
    """Return the marks of a folder's model and the digests of its files, both of the same model.

    Another process may replace the folder meanwhile: then it is read again.
    """
    while True:
        marks = _marks_of(folder)
        try:
            digests = _digests_of(_compared_files(folder, marks.listing))
        except ModelError:
            if _marks_of(folder) == marks:
                raise
        else:
            if _marks_of(folder) == marks:
                return marks, digests


def _compared_files(folder: Path, listing: Mapping[str, str] | None) -> dict[str, Path]:
    files = files_of_model(folder)
    if listing is None:
        return files
    # Another program's file, such as Thumbs.db, makes no other model.
    return {name: path for name, path in files.items() if name in listing or is_read(name)}


def _difference(listing: Mapping[str, str], digests: Mapping[str, str]) -> str | None:
    for name in sorted(listing.keys() | digests.keys()):
        if name not in listing:
            return f"{name!r} was added after the policy was unpacked"
        if name not in digests:
            return f"{name!r} was removed after it was unpacked"
        if listing[name] != digests[name]:
            return f"{name!r} was changed after it was unpacked"
    return None


def _read_listing(folder: Path) -> dict[str, str] | None:
    path = folder / _FILES_MARK
    try:
        listing = read_json(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror}") from error
    is_sound = isinstance(listing, dict) and all(isinstance(item, str) for item in listing.values())
    return listing if is_sound else None


def digest_of_files(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 of several files' digests and names, in hexadecimal.

    It is the digest of the text that `sha256sum` prints for the files, a line for each, sorted by
    the bytes of their names.

    Args:
        files: by their names below the folder that they lie in, such as `variables/weights`.

    Raises:
        ModelError: if a file can't be read.
    """
    return _digest_of(_digests_of(files))


def _digests_of(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: digest_of_file(path) for name, path in files.items()}


def _digest_of(digests: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, of_file in sorted(digests.items(), key=lambda item: os.fsencode(item[0])):
        digest.update(os.fsencode(_line_of(of_file, name)))
    return digest.hexdigest()


def digest_of_path(path: Path) -> str:
    """Return the digest that pins a file, or a folder by the files in it that count.

    Args:
        path: the file, or the folder.

    Raises:
        ModelError: if it can't be read, or the folder has no files.
    """
    if not path.is_dir():
        return digest_of_file(path)
    files = files_of_model(path)
    if not files:
        raise ModelError(f"{named_folder(path)}: holds no files")
    return digest_of_files(files)


def _line_of(digest: str, name: str) -> str:
    # As sha256sum does: a line's end in a name would make two lists of files alike.
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{digest}  {name}\n" if escaped == name else f"\\{digest}  {escaped}\n"


def head_of(path: Path) -> bytes:
    """Return a file's first bytes, at most `HEAD_BYTES`; none where it may not be read.

    Args:
        path: the file.

    Raises:
        ModelError: if the disk fails.
    """
    try:
        with open_file(path) as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        check_system(error, path)
        return b""


def digest_of_file(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal.

    Args:
        path: the file.

    Raises:
        ModelError: if it can't be read.
    """
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error


def named_folder(folder: Path) -> str:
    """Return a folder as a message names it: as it was given, and the current one in words.

    Args:
        folder: the folder.
    """
    return "this folder" if str(folder) == "." else str(folder)


def read_mark(path: Path) -> str | None:
    """Return the digest that a mark states; None where there is no mark, or it states none.

    Args:
        path: the mark, one of the hidden files of an unpacked model.

    Raises:
        ModelError: if there is one that can't be read: what it stands for may not be left out.
    """
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror}") from error
    return text if _DIGEST.fullmatch(text) else None
