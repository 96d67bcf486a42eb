"""Files and folders that are written whole, whatever goes wrong meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from policy_server.files.atomic import remove_left_behind, scratch_folder, whole_folder, write_whole
from tests.support.folders import ROOT
from tests.support.processes import child

WRITING = """
import resource, signal, sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from policy_server.files.atomic import write_whole
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
# Python ignores it.
if sys.argv[2] == "killed":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole(Path(sys.argv[1]), b"new" * 1000)
except OSError as error:
    print(error.strerror)
"""

# Waits in the middle of a write, as a process that is killed there.
WAITING = """
import os, sys
from pathlib import Path
from policy_server.files import atomic
def wait(descriptor):
    print("writing", flush=True)
    sys.stdin.read()
os.fsync = wait
atomic.write_whole(Path(sys.argv[1]), b"new", is_durable=True)
"""

UNPACKING = """
import sys
from pathlib import Path
from policy_server.files.atomic import scratch_folder
with scratch_folder(Path(sys.argv[1])) as scratch:
    print(scratch.name, flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("is_durable", [False, True], ids=["plain", "durable"])
@pytest.mark.parametrize("content", [b"\xff\x00", "épée\n"], ids=["bytes", "text"])
def test_file_holds_what_was_written_and_nothing_else_is_left(
    tmp_path: Path, content: bytes | str, *, is_durable: bool
) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text("a longer content that was there before")

    write_whole(file, content, is_durable=is_durable)

    expected = content if isinstance(content, bytes) else content.encode()
    assert file.read_bytes() == expected
    assert names(tmp_path) == ["schema.yaml"]


def test_new_file_has_the_permissions_that_others_get(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")

    write_whole(tmp_path / "whole", "")

    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text("old")
    file.chmod(mode)

    write_whole(file, "new")

    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert file.read_text() == "new"


def test_folder_in_the_files_place_is_an_error_that_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml" / "in the way").mkdir(parents=True)

    with pytest.raises(OSError, match="Is a directory"):
        write_whole(tmp_path / "schema.yaml", "new")

    assert names(tmp_path) == ["schema.yaml"]


@pytest.mark.parametrize("end", ["full", "killed"])
def test_write_that_ends_halfway_leaves_the_old_file(tmp_path: Path, end: str) -> None:
    """The process may write 1,000 bytes only, and is refused more or ended by a signal."""
    file = tmp_path / "kept.npz"
    file.write_bytes(b"old")

    done = subprocess.run(
        [sys.executable, "-c", WRITING, str(file), end],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert file.read_bytes() == b"old"
    if end == "full":
        assert done.stdout == "File too large\n"
        assert names(tmp_path) == ["kept.npz"]
    else:
        assert done.returncode == -signal.SIGXFSZ
        write_whole(file, b"newer")
        assert names(tmp_path) == ["kept.npz"]


@pytest.mark.parametrize("call", ["open", "fsync", "close"])
def test_durable_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Each operation on the folder fails; an error says that the file is as it was."""
    file = tmp_path / "versions.json"
    file.write_bytes(b"old")
    real = getattr(os, call)

    def failing(target: Path | int, *rest: int) -> object:
        where = Path(f"/proc/self/fd/{target}").resolve() if isinstance(target, int) else target
        done = None if call == "open" and where == tmp_path else real(target, *rest)
        if where == tmp_path:
            raise OSError(errno.EMFILE, "Too many open files")
        return done

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        try:
            write_whole(file, b"new", is_durable=True)
        except OSError:
            expected = b"old"
        else:
            expected = b"new"

    assert file.read_bytes() == expected
    assert names(tmp_path) == ["versions.json"]


def test_writers_at_once_each_write_whole(tmp_path: Path) -> None:
    file = tmp_path / "shared"
    contents = [bytes([number]) * 100_000 for number in range(8)]

    with ThreadPoolExecutor(len(contents)) as executor:
        list(executor.map(partial(write_whole, file), contents))

    assert file.read_bytes() in contents
    assert names(tmp_path) == ["shared"]


def write_another(file: Path) -> None:
    write_whole(file.with_name("another"), b"x")


def begin_with_the_folder(file: Path) -> None:
    remove_left_behind(file.with_name("models"))


@pytest.mark.parametrize("follow", [write_another, begin_with_the_folder], ids=["write", "start"])
def test_file_of_a_process_that_was_killed_while_it_wrote_goes_and_that_of_a_live_one_stays(
    tmp_path: Path, follow: Callable[[Path], None]
) -> None:
    file = tmp_path / "versions.json"
    with child(sys.executable, "-c", WAITING, file) as writing:
        assert writing.read_line() == "writing"
        [aside] = tmp_path.glob(".unfinished-*")
        # Locked, it stays however old it is.
        os.utime(aside, (1e9, 1e9))
        follow(file)
        assert aside.exists()
        writing.process.kill()
        writing.process.wait()
    os.utime(aside)

    follow(file)

    assert list(tmp_path.glob(".unfinished-*")) == []
    assert not file.exists()


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize(
    "name",
    [".unfinished-0123456789abcdef", ".unfinished-01234567-0123456789abcdef"],
    ids=["earlier version of this program", "another machine"],
)
def test_file_whose_writer_no_lock_tells_goes_by_its_age(
    tmp_path: Path, name: str, *, is_old: bool
) -> None:
    left = tmp_path / name
    left.touch()
    if is_old:
        os.utime(left, (1e9, 1e9))

    write_whole(tmp_path / "file", b"x")

    assert left.exists() is not is_old


@pytest.mark.parametrize("name", [".unfinished-thesis", ".unfinished-0123456789abcdef.txt"])
def test_file_of_a_name_that_no_writer_gives_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (1e9, 1e9))

    write_whole(tmp_path / "file", b"x")

    assert (tmp_path / name).exists()


def test_named_pipe_of_such_a_name_does_not_stop_a_write(tmp_path: Path) -> None:
    pipe = tmp_path / ".unfinished-0123456789abcdef"
    os.mkfifo(pipe)
    os.utime(pipe, (1e9, 1e9))

    write_whole(tmp_path / "file", b"x")

    assert pipe.exists()


def test_file_that_is_removed_before_it_is_locked_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may take it for one that was left behind until it is locked."""
    lock, removed = fcntl.flock, list[Path]()

    def remove_first(descriptor: int, operation: int) -> None:
        if not removed:
            [aside] = tmp_path.glob(".unfinished-*")
            aside.unlink()
            removed.append(aside)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)

    write_whole(tmp_path / "file", b"x")

    assert (tmp_path / "file").read_bytes() == b"x"
    assert names(tmp_path) == ["file"]


def test_folder_that_cant_be_listed_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "scandir", refuse)

    write_whole(tmp_path / "file", b"x")

    assert (tmp_path / "file").read_bytes() == b"x"


def test_scratch_folder_lies_beside_and_goes(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "model.zip") as scratch:
        (scratch / "file").write_text("x")
        assert scratch.parent == tmp_path
        assert scratch.name.startswith(".unfinished-model.zip-")

    assert names(tmp_path) == []


@pytest.mark.parametrize("was_there", [True, False], ids=["replaced", "made"])
def test_folder_is_replaced_whole(tmp_path: Path, *, was_there: bool) -> None:
    folder = tmp_path / "python"
    if was_there:
        (folder / "old").mkdir(parents=True)

    with whole_folder(folder) as new:
        (new / "file").write_text("x")
        assert names(tmp_path) != ["python"]
        assert not (folder / "file").exists()

    assert names(tmp_path) == ["python"]
    assert names(folder) == ["file"]


def test_folder_stays_if_the_block_fails(tmp_path: Path) -> None:
    (tmp_path / "python" / "old").mkdir(parents=True)

    def fill() -> None:
        with whole_folder(tmp_path / "python") as new:
            (new / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()

    assert names(tmp_path) == ["python"]
    assert names(tmp_path / "python") == ["old"]


def refuse_renames(
    monkeypatch: pytest.MonkeyPatch,
    error: int | BaseException,
    is_refused: Callable[[Path, Path], bool],
) -> None:
    """Let the system refuse some renames, as it does for a volume or a broken disk."""
    rename: Callable[[Path, Path], Path] = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if is_refused(self, target):
            raise OSError(error, os.strerror(error)) if isinstance(error, int) else error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)


@pytest.mark.parametrize("error", [errno.EIO, KeyboardInterrupt()], ids=["refused", "signal"])
def test_folder_comes_back_if_the_new_one_cant_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int | BaseException
) -> None:
    (tmp_path / "python" / "old").mkdir(parents=True)
    refuse_renames(monkeypatch, error, lambda source, _: source.name == "new")

    def fill() -> None:
        with whole_folder(tmp_path / "python") as new:
            (new / "file").write_text("x")

    with pytest.raises((OSError, KeyboardInterrupt)):
        fill()

    assert names(tmp_path) == ["python"]
    assert names(tmp_path / "python") == ["old"]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_volume_is_filled_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder, outside = tmp_path / "models", tmp_path / "outside"
    (folder / "variables").mkdir(parents=True)
    outside.mkdir()
    (outside / "precious").touch()
    (folder / "link").symlink_to(outside)
    inode = folder.stat().st_ino
    refuse_renames(monkeypatch, number, lambda source, target: folder in (source, target))

    with whole_folder(folder, key="saved_model.pb") as new:
        (new / "saved_model.pb").write_text("x")
        (new / "assets").mkdir()

    assert folder.stat().st_ino == inode
    assert names(folder) == ["assets", "saved_model.pb"]
    assert names(outside) == ["precious"]


def test_old_scratch_folders_go_without_a_new_one(tmp_path: Path) -> None:
    for name, age in ((".unfinished-models-old", 1e9), (".unfinished-models-new", None)):
        (tmp_path / name).mkdir()
        if age is not None:
            os.utime(tmp_path / name, (age, age))

    remove_left_behind(tmp_path / "models")

    assert names(tmp_path) == [".unfinished-models-new"]


def test_scratch_folder_of_a_process_that_was_killed_goes_with_a_later_one(tmp_path: Path) -> None:
    target = tmp_path / "models"
    for name in (".unfinished-models-abc", ".unfinished-models-new", ".models-abcdefgh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_bytes(b"old")
    os.utime(tmp_path / ".unfinished-models-abc", (1e9, 1e9))
    os.utime(tmp_path / ".models-abcdefgh", (1e9, 1e9))

    with scratch_folder(target) as first:
        # Locked, it stays however old it is.
        os.utime(first, (1e9, 1e9))
        with scratch_folder(target) as second:
            assert first.is_dir()
            assert second.is_dir()

    assert names(tmp_path) == [".models-abcdefgh", ".unfinished-models-new"]


def test_scratch_folder_stays_while_its_process_lives_and_goes_once_that_is_killed(
    tmp_path: Path,
) -> None:
    with child(sys.executable, "-c", UNPACKING, tmp_path / "models") as unpacking:
        scratch = tmp_path / unpacking.read_line()
        os.utime(scratch, (1e9, 1e9))
        remove_left_behind(tmp_path / "models")
        assert scratch.is_dir()
        unpacking.process.kill()
        unpacking.process.wait()
    os.utime(scratch)

    remove_left_behind(tmp_path / "models")

    assert names(tmp_path) == []


def left_by_a_killed_process(beside: Path) -> Path:
    """Make the scratch folder that a process of this machine has left just now."""
    with scratch_folder(beside) as scratch:
        """Its name is taken again."""
    scratch.mkdir()
    return scratch


@pytest.mark.parametrize("is_old", [False, True])
def test_scratch_folder_whose_owner_no_lock_tells_goes_by_its_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_old: bool
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    left = left_by_a_killed_process(tmp_path / "models")
    if is_old:
        os.utime(left, (1e9, 1e9))
    # As NFS refuses to lock a folder.
    monkeypatch.setattr(fcntl, "flock", refuse)

    remove_left_behind(tmp_path / "models")

    assert left.exists() is not is_old


def test_scratch_folder_of_another_machine_goes_by_its_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = left_by_a_killed_process(tmp_path / "models")
    monkeypatch.setattr("policy_server.files.atomic._BOOT_ID", tmp_path / "none")

    remove_left_behind(tmp_path / "models")
    stayed = left.exists()
    os.utime(left, (1e9, 1e9))
    remove_left_behind(tmp_path / "models")

    assert stayed
    assert not left.exists()


def test_scratch_folder_that_another_process_removes_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, made = fcntl.flock, tempfile.mkdtemp
    events: list[str] = []

    def make(*arguments: object) -> str:
        name = made(*arguments)  # type: ignore[call-overload]  # as tempfile calls it
        events.append(name)
        if len(events) == 1:
            Path(name).rmdir()
        return str(name)

    def lock_late(descriptor: int, operation: int) -> None:
        if len(events) == 2:
            Path(events[1]).rmdir()
            events.append("gone while it was opened")
        lock(descriptor, operation)

    monkeypatch.setattr(tempfile, "mkdtemp", make)
    monkeypatch.setattr(fcntl, "flock", lock_late)

    with scratch_folder(tmp_path / "models") as scratch:
        assert scratch.is_dir()

    assert len(events) == 4
    assert names(tmp_path) == []
