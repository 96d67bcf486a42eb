"""Opening files that come from outside: whatever may never end is refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from policy_server.errors import ModelError

__all__ = [
    "check_system",
    "failure_of_system",
    "is_there",
    "open_file",
    "parse_json",
    "read_json",
    "read_text",
    "shortage_of_system",
    "target_of",
    "unread",
]

# Far beyond what a server writes to such a file.
_MOST_BYTES = 16 * 2**20
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Of a disk, a file system, a share that has lost its server, and a system that is short of
# something: the file is there as before. Not every system has all of them.
_FAILURES = frozenset(
    number
    for number, name in errno.errorcode.items()
    if name
    in {
        *(
            "EIO",
            "EREMOTEIO",
            "EUCLEAN",
            "EBADMSG",
            "ENODATA",
            "ENODEV",
            "ENOMEDIUM",
            "EMEDIUMTYPE",
        ),
        *("ESTALE", "ENOTCONN", "ETIMEDOUT", "ETIME", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN"),
        *("ENETUNREACH", "ENETRESET", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ESHUTDOWN"),
        *("ENOLINK", "ECOMM", "EPROTO", "ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED"),
        *("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"),
    }
)


# The system has too little of something at this moment, or allows this process no more.
_SHORTAGES = frozenset(
    number
    for number, name in errno.errorcode.items()
    if name in {"EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "ENOSPC", "EDQUOT", "EFBIG"}
)


def failure_of_system(error: BaseException) -> OSError | None:
    """Return the failure of the disk or the system behind an error; None for any other error.

    Such a file may be read at the next try. So it is not as one that is missing or damaged, in
    whose place another one may be taken.

    Args:
        error: the error, which may have been raised over others: zipfile says of a file that can't
            be read that it is no zip.
    """
    return _found_behind(error, _FAILURES)


def shortage_of_system(error: BaseException) -> OSError | None:
    """Return the error behind another one that says what the system has too little of; or None.

    Such are open files, room on a disk, and the most bytes that a file may have.

    Args:
        error: the error, which may have been raised over others.
    """
    return _found_behind(error, _SHORTAGES)


def _found_behind(error: BaseException, numbers: Collection[int | None]) -> OSError | None:
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno in numbers:
            return at
        at = at.__cause__ or at.__context__
    return None


def check_system(error: BaseException, path: Path) -> None:
    """Refuse to go on as if a file were not there, or no policy, that a disk did not give.

    Args:
        error: the error of the reading.
        path: the file or folder.

    Raises:
        ModelError: if the error is one of the disk or the system.
    """
    if failure := failure_of_system(error):
        raise ModelError(unread(path, failure)) from error


def unread(path: Path | str, failure: OSError) -> str:
    """Return the message for a file or folder that the disk or the system does not give.

    Args:
        path: the file or folder.
        failure: as `failure_of_system` found it.
    """
    return f"{path}: can't be read: {failure.strerror}; try again, or look at the disk"


def is_there(path: Path) -> bool:
    """Return whether there is a file, a folder or a link, which may lead nowhere.

    Args:
        path: where.

    Raises:
        ModelError: if the disk fails to tell.
    """
    try:
        path.lstat()
    except OSError as error:
        check_system(error, path)
        return False
    return True


def target_of(path: Path) -> Path:
    """Return the path that a link names; the path itself where it is no link, or can't be told.

    Args:
        path: the link; its target need not exist.
    """
    with suppress(OSError):
        return path.parent / path.readlink()
    return path


def open_file(path: Path) -> BufferedReader:
    """Open a file to read its bytes.

    A named pipe waits for a writer that may never come, and a device such as /dev/zero never ends.

    Args:
        path: the file.

    Raises:
        OSError: if it can't be read, or is a named pipe, a socket or a device.
    """
    # Without waiting: until it is open, a path may change what it leads to.
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 -- Path.open takes no opener
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind in _KINDS:
        file.close()
        raise OSError(errno.EINVAL, f"it is {_KINDS[kind]}; expected a file", str(path))
    return file


def read_text(path: Path) -> str:
    """Read a small file of text, such as a record that the server keeps for its next start.

    Args:
        path: the file.

    Raises:
        OSError: if it can't be read, or is a named pipe, a socket or a device.
        ValueError: if it has more than 16 MiB, or is no text in UTF-8.
    """
    with open_file(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    return content.decode()


def read_json(path: Path) -> Any:  # noqa: ANN401 -- any JSON
    """Read a small file of JSON; see `read_text`.

    Args:
        path: the file.

    Raises:
        OSError: as `read_text`.
        ValueError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:  # noqa: ANN401 -- any JSON
    """Read JSON that another program may have written.

    Args:
        text: the JSON.

    Raises:
        ValueError: if it is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
