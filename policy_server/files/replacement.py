"""Files of one folder, replaced together or not at all, even where the process is killed between.

New files are gathered in `.incoming/`. Before the first file is replaced, the old ones are copied
to `.incoming/old/`; after the last, one rename takes that folder away. As long as it is there, the
replacement is not finished, and the next process puts the old files back. Folders that change with
the files, such as models/, are kept by hard links, which cost no room: nothing in them is written
to, only replaced.
"""

from __future__ import annotations

import contextlib
import filecmp
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from policy_server.errors import ModelError
from policy_server.files.atomic import whole_folder
from policy_server.files.locks import FileLock

__all__ = [
    "INCOMING",
    "as_model_errors",
    "incoming_folder",
    "limit_permissions",
    "replaced",
    "restore_interrupted",
]

logger = logging.getLogger(__name__)

INCOMING = ".incoming"
_OLD = "old"
_ABSENT = ".absent"
_ABSENT_FOLDER = ".absent-folder"
_OWNER_MAY_WRITE = stat.S_IRUSR | stat.S_IWUSR


@contextlib.contextmanager
def as_model_errors(home: Path) -> Iterator[None]:
    """Tell in one line what the system refuses while files are replaced.

    Args:
        home: the folder that is named where the system names no path.

    Raises:
        ModelError: if the block raises an OSError.
    """
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or home
        raise ModelError(f"{where}: can't be changed: {error.strerror or error}") from error


@contextlib.contextmanager
def incoming_folder(home: Path) -> Iterator[Path]:
    """Give an empty folder on the file system of `home`, to one process at a time.

    Args:
        home: the folder whose files are to be replaced; made if it is missing.

    Yields:
        The folder; it is removed afterwards.

    Raises:
        OSError: if it can't be made, or an interrupted replacement can't be undone.
    """
    home.mkdir(parents=True, exist_ok=True)
    folder = home / INCOMING
    with FileLock(home, is_folder=True):
        _undo_interrupted(home)
        if folder.exists():
            shutil.rmtree(folder)
        # schema.yaml holds an access key, and its own permissions come last.
        folder.mkdir(mode=stat.S_IRWXU)
        try:
            yield folder
        finally:
            # Old files that could not be put back are the only copies.
            if not (folder / _OLD).exists():
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replaced(names: Sequence[str], folder: Path, *, folders: Sequence[str] = ()) -> Iterator[None]:
    """Put new files in place for good if the block succeeds, and the old ones back if it fails.

    Args:
        names: of the files to replace; those that exist keep their permissions.
        folder: the result of `incoming_folder`; it holds the new files under these names.
        folders: the names of folders beside the files whose contents the block itself replaces.

    Raises:
        OSError: if a file can't be replaced; the old ones are then in their place.
    """
    home, old = folder.parent, folder / _OLD
    copies = _copy_old(names, home, folder / f"{_OLD}.unfinished")
    for name in folders:
        _keep_folder(home / name, copies)
    copies.rename(old)
    try:
        for name in names:
            if (old / name).exists():
                (folder / name).chmod(stat.S_IMODE((old / name).stat().st_mode))
            (folder / name).replace(home / name)
        yield
        old.rename(folder / f"{_OLD}.finished")
    except BaseException:
        _restore(home)
        raise


def limit_permissions(file: Path, source: Path) -> None:
    """Let nobody but the owner do with a copy that is nowhere yet more than with its source.

    Args:
        file: the copy; whoever owns it may always read and change it.
        source: the file or folder that it was made of.

    Raises:
        OSError: if the permissions can't be read or changed.
    """
    allowed = stat.S_IMODE(source.stat().st_mode) | _OWNER_MAY_WRITE
    file.chmod(stat.S_IMODE(file.stat().st_mode) & allowed)


def restore_interrupted(home: Path) -> None:
    """Put the old files back where a replacement was interrupted; wait for one that is under way.

    Args:
        home: the folder whose files were replaced.

    Raises:
        OSError: if a file can't be put back.
    """
    if (home / INCOMING / _OLD).exists():
        with FileLock(home, is_folder=True):
            _undo_interrupted(home)


def _undo_interrupted(home: Path) -> None:
    if (home / INCOMING / _OLD).exists():
        _restore(home)
        logger.warning("interrupted_replacement_undone", extra={"path": str(home)})


def _copy_old(names: Sequence[str], home: Path, copies: Path) -> Path:
    copies.mkdir()
    for name in names:
        if (home / name).exists():
            shutil.copy2(home / name, copies / name)
        else:
            (copies / f"{name}{_ABSENT}").touch()
    return copies


def _keep_folder(folder: Path, copies: Path) -> None:
    if folder.is_symlink():
        (copies / folder.name).symlink_to(folder.readlink())
    elif folder.is_dir():
        _link_tree(folder, copies / folder.name)
    else:
        (copies / f"{folder.name}{_ABSENT_FOLDER}").touch()


def _link_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, copy_function=_link_or_copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # It is on another file system, or one without hard links, or another user's.
        shutil.copy2(source, target)


def _restore(home: Path) -> None:
    """Put the old files back; may itself be interrupted and repeated."""
    old = home / INCOMING / _OLD
    if not old.exists():
        return
    # A folder that can't be put back holds no file up.
    for kept in sorted(old.iterdir(), key=lambda path: (path.is_dir(), path)):
        _put_back(kept, home)
    shutil.rmtree(old)


def _put_back(kept: Path, home: Path) -> None:
    place = home / kept.name
    if kept.suffix == _ABSENT:
        (home / kept.stem).unlink(missing_ok=True)
    elif kept.suffix == _ABSENT_FOLDER:
        if (home / kept.stem).exists():
            shutil.rmtree(home / kept.stem)
    elif kept.is_symlink():
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        kept.replace(place)
    elif not kept.is_dir():
        kept.replace(place)
    elif not _is_same_folder(kept, place):
        with whole_folder(place) as new:
            _link_tree(kept, new)


def _is_same_folder(kept: Path, place: Path) -> bool:
    """Return whether nothing has changed in a folder, which may be one that can't be written to."""
    names = {path.relative_to(kept) for path in kept.rglob("*")}
    is_changed = not place.is_dir() or names != {
        path.relative_to(place) for path in place.rglob("*")
    }
    return not is_changed and all(_is_same(kept / name, place / name) for name in names)


def _is_same(kept: Path, there: Path) -> bool:
    if kept.is_symlink() or there.is_symlink():
        return kept.is_symlink() and there.is_symlink() and kept.readlink() == there.readlink()
    if kept.is_dir() or there.is_dir():
        return kept.is_dir() and there.is_dir()
    return kept.samefile(there) or filecmp.cmp(kept, there, shallow=False)
