"""Zip files of strangers: every member is checked before the first one is unpacked."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from policy_server.errors import ModelError
from policy_server.files.regular import check_system, open_file

__all__ = [
    "Archive",
    "ArchiveLimits",
    "fault_of_name",
    "is_bounded",
    "is_cut_off",
    "is_zip",
    "is_zip_of",
    "open_archive",
]

_DRIVE = re.compile(r"[A-Za-z]:")
# zipfile unpacks the others by whole blocks: a few bytes of them may fill the memory.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# The numbers of the zip format (PKWARE's APPNOTE, 4.4.5).
_OTHER_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz"}
# Its flags, of 4.4.4.
_ENCRYPTED = 0x1 | 0x40
_PATCHED = 0x20
# zipfile's own errors for members that are of another version or damaged.
_UNPACKING_ERRORS = (NotImplementedError, RuntimeError, zlib.error)
_ZIP_AGAIN = "zip the exported folder again"
_MEMBER_HEAD = b"PK\x03\x04"
# File systems take 255 bytes between two slashes; a path also has to fit behind the folder's own.
_MOST_BYTES = 255
_MOST_BYTES_OF_A_PATH = 1024
# In a checkpoint of RLlib 4, below those that somebody zipped it with.
_MOST_FOLDERS_ABOVE = 64
_LETTERS_SHOWN = 60


@dataclass(frozen=True)
class ArchiveLimits:
    """The limits of an archive's contents.

    Attributes:
        max_bytes: the largest size of all files together, unpacked.
        size_setting: the name and value of the setting that says so, for messages.
        max_members: the largest number of files and folders. It is less than the 10,000 of a folder
            that is looked through: there, files from beside the archive come to them.
    """

    max_bytes: int
    size_setting: str
    max_members: int = 9_900


class Archive:
    """A zip file whose members were all checked; it is open as long as `open_archive`'s block."""

    def __init__(
        self, archive: zipfile.ZipFile, members: dict[PurePosixPath, zipfile.ZipInfo]
    ) -> None:
        """Own the members, not the file.

        Args:
            archive: the open file.
            members: its files by their paths.
        """
        self._archive = archive
        self._members = members

    @property
    def paths(self) -> Sequence[PurePosixPath]:
        """Return the paths of the files, in the archive's order."""
        return tuple(self._members)

    def extract(
        self, root: PurePosixPath, target: Path, *, is_wanted: Callable[[PurePosixPath], bool]
    ) -> None:
        """Unpack the files below one of the archive's folders.

        Args:
            root: the archive's folder; `PurePosixPath()` for all.
            target: the folder that gets the files below `root`.
            is_wanted: is asked with each file's path below `root`.

        Raises:
            OSError: if a file can't be written.
        """
        for path, member in self._members.items():
            if not path.is_relative_to(root) or not is_wanted(path.relative_to(root)):
                continue
            file = target / path.relative_to(root)
            file.parent.mkdir(parents=True, exist_ok=True)
            # zipfile reads no more than the stated size, which was held against the limit.
            with self._archive.open(member) as source, file.open("wb") as written:
                shutil.copyfileobj(source, written)


@contextlib.contextmanager
def open_archive(path: Path, limits: ArchiveLimits) -> Iterator[Archive]:
    """Open a zip file and check its members.

    Example:
        A member called `../evil` gives `saved_model.zip: the member '../evil' climbs out of the
        folder; refused`.

    Args:
        path: the zip file.
        limits: the largest archive that is unpacked.

    Yields:
        The archive, without the notes that macOS adds.

    Raises:
        ModelError: if it is no zip file, is damaged or encrypted, holds more than the limits allow,
            or a member that is a link, is there twice, or would be written outside the folder. What
            shows only while a file is unpacked is raised then.
    """
    try:
        file = open_file(path)
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error
    try:
        with file, zipfile.ZipFile(file) as archive:
            if is_cut_off(archive, path):
                raise ModelError(f"{path}: was cut off or is damaged; copy it again")
            yield Archive(archive, _checked_members(archive, path, limits))
    except (zipfile.BadZipFile, UnicodeDecodeError, struct.error) as error:
        raise ModelError(f"{path}: is no zip file or is damaged ({error}); {_ZIP_AGAIN}") from error
    except EOFError as error:
        # zipfile gives no reason.
        raise ModelError(f"{path}: is damaged: a member ends too early; {_ZIP_AGAIN}") from error
    except _UNPACKING_ERRORS as error:
        raise ModelError(f"{path}: can't be unpacked: {error}; {_ZIP_AGAIN}") from error


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip; not where it may not be read, or is none.

    Args:
        path: the file.

    Raises:
        ModelError: if the disk fails.
    """
    try:
        with open_file(path) as file:
            return is_zip_of(file, path)
    except OSError as error:
        check_system(error, path)
        return False


def is_zip_of(file: IO[bytes], path: Path) -> bool:
    """Return whether an open file is a zip.

    Args:
        file: the file.
        path: its path, for messages.

    Raises:
        ModelError: if the disk fails, which zipfile says of no zip.
    """
    watched = _Watched(file)
    is_found = zipfile.is_zipfile(watched)
    if watched.failure is not None:
        check_system(watched.failure, path)
    return is_found


class _Watched:
    """A file that zipfile looks at: it takes one that can't be read for no zip."""

    def __init__(self, file: IO[bytes]) -> None:
        """Own nothing: the file is the caller's."""
        self._file = file
        self.failure: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a byte."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return where the file is read next."""
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        """Read, and note a failure."""
        try:
            return self._file.read(size)
        except OSError as error:
            self.failure = error
            raise


def is_cut_off(archive: zipfile.ZipFile, path: Path) -> bool:
    """Return whether a zip lost its end, so that the members are those of a zip inside.

    A zip's list of members is at its end. Where that is cut off, zipfile takes the list of the last
    zip that lies in the rest as it is, such as the policy.pth of stable-baselines3, and what is
    before that for a preface.

    Args:
        archive: the open file.
        path: the file.

    Raises:
        OSError: if the file can't be read.
    """
    if min((member.header_offset for member in archive.infolist()), default=0) == 0:
        return False
    with path.open("rb") as file:
        return file.read(len(_MEMBER_HEAD)) == _MEMBER_HEAD


def _checked_members(
    archive: zipfile.ZipFile, path: Path, limits: ArchiveLimits
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files by their paths, once each is known to be harmless."""
    members = archive.infolist()
    _check_count(len(members), path, limits)
    for member in members:
        if (fault := _fault_of(member)) is not None:
            raise ModelError(f"{path}: the member {_shown(member)} {fault}")
    size = sum(member.file_size for member in members)
    if size > limits.max_bytes:
        raise ModelError(
            f"{path}: unpacks to {size} bytes, more than {limits.size_setting}; raise it if you "
            "trust the file"
        )
    return _files_by_path([item for item in members if not _is_note_of_macos(item)], path, limits)


def _check_count(count: int, archive: Path, limits: ArchiveLimits) -> None:
    if count > limits.max_members:
        raise ModelError(
            f"{archive}: holds more than {limits.max_members} files and folders; a policy has a "
            "few: zip the folder of one checkpoint"
        )


def _files_by_path(
    members: Sequence[zipfile.ZipInfo], archive: Path, limits: ArchiveLimits
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files by their paths; the folders that these lie in count as members too."""
    files: dict[PurePosixPath, zipfile.ZipInfo] = {}
    folders: set[PurePosixPath] = set()
    for member in members:
        path = _path_of(member.filename)
        # The folders above a known one are known.
        folders.update(itertools.takewhile(lambda folder: folder not in folders, path.parents))
        if member.filename.endswith(("/", "\\")):
            folders.add(path)
        elif path in files:
            raise ModelError(f"{archive}: the member {_shown(member)} is there twice; {_ZIP_AGAIN}")
        else:
            files[path] = member
        # The archive's own folder is none of them.
        _check_count(len(files) + len(folders) - 1, archive, limits)
    if both := folders & files.keys():
        member = files[min(both)]
        raise ModelError(
            f"{archive}: the member {_shown(member)} is both a file and a folder; {_ZIP_AGAIN}"
        )
    return files


def _fault_of(member: zipfile.ZipInfo) -> str | None:
    """Return why a member is refused by itself; None for one that is harmless."""
    if "\0" in member.orig_filename:
        return "has a name with a NUL character in it; refused"
    if (fault := fault_of_name(member.filename)) is not None:
        return fault
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link; refused"
    if member.flag_bits & _ENCRYPTED:
        return f"is encrypted; {_ZIP_AGAIN}, without a password"
    if member.flag_bits & _PATCHED:
        return f"is a patch of another file; {_ZIP_AGAIN}"
    if not is_bounded(member):
        method = member.compress_type
        shown = _OTHER_METHODS.get(method, f"the method {method}")
        return f"is compressed by {shown}; expected Deflate or no compression: {_ZIP_AGAIN}"
    return None


def is_bounded(member: zipfile.ZipInfo) -> bool:
    """Return whether a member gives no more bytes than it states, however it is read.

    Args:
        member: any zip's.
    """
    return member.compress_type in _METHODS


def fault_of_name(name: str) -> str | None:
    """Return why the name of a stranger's file is refused; None for one that is harmless.

    Args:
        name: its path below the folder that it is to be written to.
    """
    path = _path_of(name)
    # A folder of that kind, `./`, is the one that everything is written to.
    if not path.parts and not name.endswith("/"):
        return "has no name; refused"
    if path.is_absolute() or ".." in path.parts or _DRIVE.match(str(path)):
        return "climbs out of the folder; refused"
    size = _size_of(str(path))
    if size > _MOST_BYTES_OF_A_PATH or max(map(_size_of, path.parts), default=0) > _MOST_BYTES:
        return (
            f"has a name of {size} bytes; expected at most {_MOST_BYTES_OF_A_PATH}, and "
            f"{_MOST_BYTES} between two slashes"
        )
    above = len(path.parts) - 1
    if above > _MOST_FOLDERS_ABOVE:
        return f"lies {above} folders deep; expected at most {_MOST_FOLDERS_ABOVE}"
    return None


def _size_of(name: str) -> int:
    return len(name.encode(errors="surrogatepass"))


def _shown(member: zipfile.ZipInfo) -> str:
    name = member.filename
    return repr(name if len(name) <= _LETTERS_SHOWN else f"{name[:_LETTERS_SHOWN]}...")


def _is_note_of_macos(member: zipfile.ZipInfo) -> bool:
    return "__MACOSX" in _path_of(member.filename).parts


def _path_of(name: str) -> PurePosixPath:
    # Some Windows tools write backslashes, against the standard.
    return PurePosixPath(name.replace("\\", "/"))
