"""A policy's zip: what is unpacked where, what is refused, and what a reader sees meanwhile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import random
import shutil
import stat
import struct
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest

from policy_server.errors import ModelError
from policy_server.files.regular import open_file
from policy_server.formats.known_formats import FORMATS
from policy_server.formats.model_files import files_of_model, identify_model
from policy_server.formats.unpacking import unpack_model
from tests.support.folders import ROOT
from tests.support.formats import NotesFormat
from tests.support.library_policies import POLICIES
from tests.support.permissions import read_only
from tests.support.servers import in_thread
from tests.support.waiting import is_waited_for, wait_until
from tests.support.zips import FILES, zip_of

BIG = 1 << 20
MARKS = (".source-sha256", ".files-sha256.json")


def unpack(path: Path, *, max_bytes: int = BIG) -> Path:
    """Unpack beside the zip."""
    return unpack_model(path, path.parent / "models", max_bytes=max_bytes)


def files_in(folder: Path) -> dict[str, bytes]:
    """Return a model's files by their names."""
    return {name: path.read_bytes() for name, path in files_of_model(folder).items()}


def assert_refused(path: Path, *says: str, max_bytes: int = BIG) -> None:
    """Hold that a zip is refused in one line, and that nothing has changed on the disk."""
    before = contents(path.parent)
    with pytest.raises(ModelError) as caught:
        unpack(path, max_bytes=max_bytes)
    assert contents(path.parent) == before
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(str(path))
    for words in says:
        assert words in caught.value.message


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".models.lock"
    }


@pytest.mark.parametrize("under", ["", "models/", "a/b/c/export/", "./"])
def test_model_at_any_depth_becomes_the_folder_itself(tmp_path: Path, under: str) -> None:
    folder = unpack(zip_of(tmp_path / "saved_model.zip", under=under))

    assert folder == tmp_path / "models"
    assert files_in(folder) == FILES
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert [
        path.name for path in tmp_path.iterdir() if path.name.startswith(".unfinished-models-")
    ] == []


def test_what_is_not_the_model_stays_behind(tmp_path: Path) -> None:
    others = {
        "__MACOSX/export/._saved_model.pb": b"x",
        "__MACOSX/saved_model.pb": b"x",
        "export/.DS_Store": b"x",
        "export/events.out.tfevents.1.host": b"x",
        "notes.txt": b"x",
        "export/": b"",
    }
    files = {f"export/{name}": content for name, content in FILES.items()}

    folder = unpack(zip_of(tmp_path / "saved_model.zip", {**others, **files}))

    assert set(contents(folder)) == {*FILES, *MARKS}


def test_highest_of_nested_models_is_the_policy(tmp_path: Path) -> None:
    files = {"saved_model.pb": b"outer", "checkpoint/saved_model.pb": b"inner"}

    folder = unpack(zip_of(tmp_path / "saved_model.zip", files))

    assert (folder / "saved_model.pb").read_bytes() == b"outer"


def test_two_policies_are_refused_by_name(tmp_path: Path) -> None:
    files = {"b/saved_model.pb": b"1", "a/saved_model.pb": b"2"}

    assert_refused(zip_of(tmp_path / "saved_model.zip", files), "holds 2 policies (a, b); keep one")


def test_archive_without_a_model_is_refused(tmp_path: Path) -> None:
    assert_refused(
        zip_of(tmp_path / "saved_model.zip", {"weights.h5": b"x"}),
        "holds no policy; expected a TensorFlow SavedModel",
    )


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_file_that_is_no_archive_of_a_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "saved_model.zip"
    path.write_bytes(content)

    assert_refused(path)


@pytest.mark.parametrize("method", [0, 8], ids=["stored", "deflate"])
def test_any_damage_is_one_line_or_harmless(tmp_path: Path, method: int) -> None:
    """A few hundred archives with changed bytes; the seed is fixed."""
    path = zip_of(tmp_path / "saved_model.zip", method=method)
    good = path.read_bytes()
    chance = random.Random(method)  # noqa: S311 -- no secret is drawn
    refused = 0

    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            unpack(path)
        except ModelError as error:
            assert "\n" not in error.message  # noqa: PT017 -- many archives pass
            refused += 1
        shutil.rmtree(tmp_path / "models", ignore_errors=True)

    assert 50 < refused < 150


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({**FILES, "../evil": b"x"}, "the member '../evil' climbs out of the folder"),
        ({**FILES, "a" * 5000: b"x"}, "has a name of 5000 bytes"),
        ({**FILES, "variables": b"x"}, "the member 'variables' is both a file and a folder"),
        ({**FILES, "variables/zeros": bytes(BIG)}, "POLICY_SERVER_MAX_UNPACKED_BYTES=1048576"),
    ],
    ids=["outside", "long", "file and folder", "large"],
)
def test_hostile_archive_leaves_the_policy_in_place(
    tmp_path: Path, files: Mapping[str, bytes], says: str
) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    unpack(path)

    assert_refused(zip_of(path, files), says)

    assert files_in(tmp_path / "models") == FILES
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".unfinished-models-")]


def test_zip_in_a_zip_is_named(tmp_path: Path) -> None:
    inner = zip_of(tmp_path / "inner.zip")
    files = {"export/My Policy.ZIP": inner.read_bytes(), "export/notes.txt": b"x"}

    assert_refused(
        zip_of(tmp_path / "saved_model.zip", files),
        "is a zip that holds the zip 'export/My Policy.ZIP'; unzip it once; expected ",
    )


@pytest.mark.parametrize("missing", [30, 20_000])
def test_zip_that_lost_its_end_is_not_taken_for_a_zip_inside(tmp_path: Path, missing: int) -> None:
    whole = (POLICIES / "sb3_ppo_box" / "policy.zip").read_bytes()
    path = tmp_path / "saved_model.zip"
    path.write_bytes(whole[:-missing])
    assert zipfile.is_zipfile(path)

    assert_refused(path, "was cut off or is damaged; copy it again")


def test_folder_named_as_the_zip_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "saved_model.zip").mkdir()

    assert_refused(tmp_path / "saved_model.zip", "can't be read: Is a directory")


def test_new_zip_replaces_the_old_model_whole(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "saved_model.zip", {**FILES, "assets/old": b"x"})
    unpack(path)
    (tmp_path / "models" / ".gitkeep").touch()

    folder = unpack(zip_of(path, {**FILES, "assets/new": b"y"}))

    assert set(contents(folder)) == {*FILES, "assets/new", *MARKS, ".gitkeep"}


def test_same_zip_is_not_unpacked_again(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    before = unpack(path).stat().st_ino

    assert unpack(path).stat().st_ino == before


@pytest.mark.parametrize("lost", ["saved_model.pb", ".source-sha256"])
def test_incomplete_folder_is_unpacked_again(tmp_path: Path, lost: str) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    (unpack(path) / lost).unlink()

    assert files_in(unpack(path)) == FILES


def change(folder: Path, name: str) -> None:
    """Flip a bit of a file, which keeps its size and its times."""
    path = folder / name
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 0x80]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def add(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


CHANGES = pytest.mark.parametrize(
    ("do", "name", "says"),
    [
        (
            change,
            "variables/variables.index",
            "'variables/variables.index' was changed after it was unpacked",
        ),
        (add, "vec_normalize.pkl", "'vec_normalize.pkl' was added after the policy was unpacked"),
        (
            remove,
            "variables/variables.index",
            "'variables/variables.index' was removed after it was unpacked",
        ),
    ],
    ids=["changed", "added", "removed"],
)
Change = Callable[[Path, str], None]


@CHANGES
def test_file_that_differs_from_what_was_unpacked_is_told_and_unpacked_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, do: Change, name: str, says: str
) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    do(unpack(path), name)

    assert files_in(unpack(path)) == FILES

    [told] = [item for item in caplog.records if item.levelname == "WARNING"]
    assert told.message == "unpacked_files_differ"
    assert vars(told)["path"] == str(tmp_path / "models")
    assert vars(told)["reason"] == says


@pytest.mark.parametrize("name", ["weights.txt", "scale.txt"])
def test_changed_copy_of_one_file_and_of_a_file_beside_it_are_copied_anew(
    tmp_path: Path, name: str
) -> None:
    path, models = tmp_path / "weights.txt", tmp_path / "models"
    path.write_bytes(b"notes")
    (tmp_path / "scale.txt").write_bytes(b"2")
    unpack_model(path, models, max_bytes=BIG, formats=[NotesFormat()])
    change(models, name)

    unpack_model(path, models, max_bytes=BIG, formats=[NotesFormat()])

    assert files_in(models) == {"weights.txt": b"notes", "scale.txt": b"2"}


@pytest.mark.parametrize("is_writable", [True, False], ids=["writable", "read-only"])
def test_folder_of_an_earlier_version_of_this_program_is_left_as_it_is(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    is_writable: bool,  # noqa: FBT001 -- pytest's own
) -> None:
    """It has no listing: whether a file was changed since can't be told."""
    path = zip_of(tmp_path / "saved_model.zip")
    folder = unpack(path)
    (folder / ".files-sha256.json").unlink()
    change(folder, "saved_model.pb")
    add(folder, "variables/more")
    before = contents(folder)

    with contextlib.nullcontext() if is_writable else read_only(tmp_path):
        unpack(path)

    assert contents(folder) == before
    assert [item for item in caplog.records if item.levelname == "WARNING"] == []


@pytest.mark.parametrize(
    "name", ["README.txt", "Thumbs.db", "desktop.ini", "__pycache__/a.pyc", "@eaDir/weights"]
)
def test_added_file_that_no_format_reads_is_let_lie(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    model = identify_model(unpack(path))
    (model.folder / name).parent.mkdir(exist_ok=True)
    add(model.folder, name)
    (model.folder / name).chmod(0)

    with read_only(tmp_path):
        assert identify_model(unpack(path)) == model

    assert (model.folder / name).exists()
    assert [item for item in caplog.records if item.levelname == "WARNING"] == []


@CHANGES
@pytest.mark.parametrize("is_locked_before", [True, False], ids=["lock", "no lock"])
def test_folder_that_differs_and_cant_be_written_is_one_line_with_the_difference(
    tmp_path: Path,
    do: Change,
    name: str,
    says: str,
    is_locked_before: bool,  # noqa: FBT001 -- pytest's own
) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    models = unpack(path)
    do(models, name)
    failure = f"{path}: can't be unpacked to {models}"
    if not is_locked_before:
        (tmp_path / ".models.lock").unlink()
        failure = f"{tmp_path}: can't be written"

    with read_only(tmp_path), pytest.raises(ModelError) as caught:
        unpack(path)

    assert caught.value.message == (
        f"{models}: {says}, and it can't be unpacked again: {failure}: Permission denied; undo "
        f"the change, or let the server write to {tmp_path}"
    )


def test_new_zip_where_nothing_can_be_written_is_one_line(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "saved_model.zip")

    with read_only(tmp_path), pytest.raises(ModelError) as caught:
        unpack(path)

    models = tmp_path / "models"
    assert caught.value.message == (
        f"{tmp_path}: can't be written: Permission denied; unpack the policy to {models}"
    )


def test_folder_that_another_process_replaces_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check without the lock finds a file gone, the one under the lock all of them there."""
    path = zip_of(tmp_path / "saved_model.zip")
    gone = unpack(path) / "saved_model.pb"
    opened: list[Path] = []

    def open_once(file: Path) -> BufferedReader:
        if file == gone:
            opened.append(file)
            if len(opened) == 1:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
        return open_file(file)

    monkeypatch.setattr("policy_server.formats.model_files.open_file", open_once)

    assert files_in(unpack(path)) == FILES
    assert len(opened) > 1


def test_refused_zip_leaves_the_old_model_in_place(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    unpack(path)
    path.write_bytes(b"no zip")

    assert_refused(path, "is no zip file")
    assert files_in(tmp_path / "models") == FILES


def test_reader_never_sees_a_half(tmp_path: Path) -> None:
    versions = [{"saved_model.pb": b"%d" % n, "variables/w": b"%d" % n} for n in range(2)]
    zips = [zip_of(tmp_path / f"{n}.zip", files) for n, files in enumerate(versions)]
    unpack_model(zips[0], tmp_path / "models", max_bytes=BIG)
    seen: list[dict[str, bytes]] = []
    is_done = threading.Event()

    def read() -> None:
        while not is_done.is_set():
            try:
                descriptor = os.open(tmp_path / "models", os.O_RDONLY)
                folder = Path(f"/proc/self/fd/{descriptor}")
                seen.append({name: (folder / name).read_bytes() for name in versions[0]})
                os.close(descriptor)
            except FileNotFoundError:
                """Between two renames, or removed as a whole after it was opened."""

    with in_thread(read, is_done.set):
        for turn in range(60):
            unpack_model(zips[turn % 2], tmp_path / "models", max_bytes=BIG)

    assert seen
    assert all(files in versions for files in seen)


def _unpack_in_a_process(path: Path, results: multiprocessing.Queue[str]) -> None:
    results.put(str(unpack(path)))


def test_processes_may_unpack_at_once(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=_unpack_in_a_process, args=(path, results)) for _ in range(4)]

    for worker in workers:
        worker.start()
    folders = {results.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join()

    assert folders == {str(tmp_path / "models")}
    assert files_in(tmp_path / "models") == FILES
    assert [
        path.name for path in tmp_path.iterdir() if path.name.startswith(".unfinished-models-")
    ] == []


def test_process_that_waited_for_another_finds_its_work(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    models, of_the_other = tmp_path / "models", unpack_model(path, tmp_path / "o", max_bytes=BIG)

    with ThreadPoolExecutor(1) as executor:
        with (tmp_path / ".models.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = executor.submit(unpack, path)
            wait_until(lambda: is_waited_for(tmp_path / ".models.lock"))
            inode = of_the_other.stat().st_ino
            of_the_other.rename(models)
        assert waiting.result() == models

    assert models.stat().st_ino == inode


@pytest.fixture
def mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that can't be renamed, as the system refuses it for a volume's."""
    models = tmp_path / "models"
    models.mkdir()
    rename: Callable[[Path, Path], Path] = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if models in (self, target):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    return models


def test_mount_point_is_filled_in_place(tmp_path: Path, mount_point: Path) -> None:
    (mount_point / "old").mkdir()
    (mount_point / "link").symlink_to(tmp_path)
    (mount_point / "saved_model.pb").write_bytes(b"old")
    inode = mount_point.stat().st_ino
    path = zip_of(tmp_path / "saved_model.zip")

    folder = unpack(path)

    assert folder.stat().st_ino == inode
    assert set(contents(folder)) == {*FILES, *MARKS}
    assert path.exists()


class Killed(BaseException):
    """Ends a process where it is."""


class Volume:
    """A folder on another file system, where one copy of a file ends halfway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copies_before_the_end = 0
        self.end: BaseException | None = None

    def rename(self, do: Callable[[Path, Path], None], source: Path, target: Path) -> None:
        paths = [Path(source), Path(target)]
        if self.folder in paths:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if len({path.is_relative_to(self.folder) for path in paths}) > 1:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        do(source, target)

    def copyfile(self, do: Callable[..., Path], source: Path, target: Path, **how: bool) -> Path:
        if Path(target).is_relative_to(self.folder) and self.end is not None:
            self.copies_before_the_end -= 1
            if self.copies_before_the_end < 0:
                content = Path(source).read_bytes()
                Path(target).write_bytes(content[: len(content) // 2])
                raise self.end
        return do(source, target, **how)


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    """Give a volume that stands in for models/."""
    folder = tmp_path / "models"
    folder.mkdir()
    volume = Volume(folder)
    monkeypatch.setattr(os, "rename", partial(volume.rename, os.rename))
    monkeypatch.setattr(shutil, "copyfile", partial(volume.copyfile, shutil.copyfile))
    return volume


@pytest.mark.parametrize("end", [OSError(errno.ENOSPC, "full"), Killed()], ids=["full", "killed"])
@pytest.mark.parametrize("kind", ["saved_model", "rllib", "onnx"])
def test_volume_that_was_filled_halfway_is_filled_again(
    tmp_path: Path, volume: Volume, kind: str, end: BaseException
) -> None:
    sources = {
        "rllib": POLICIES / "rllib_checkpoints" / "clip.zip",
        "onnx": POLICIES / "onnx_actor_logits_dynamic" / "policy.onnx",
    }
    path = tmp_path / ("actor.onnx" if kind == "onnx" else "saved_model.zip")
    if kind == "saved_model":
        zip_of(path)
    else:
        shutil.copy(sources[kind], path)
    unpacked = unpack_model(path, tmp_path / "whole", max_bytes=1 << 30)
    whole = {str(name): content for name, content in contents(unpacked).items()}

    for number in range(len(whole)):
        zip_of(tmp_path / "old.zip", {**FILES, "old": b"old"})
        volume.end = None
        unpack(tmp_path / "old.zip")
        volume.copies_before_the_end, volume.end = number, end
        with pytest.raises((ModelError, Killed)):
            unpack_model(path, volume.folder, max_bytes=1 << 30)
        # It may be asked for once more before there is room.
        volume.copies_before_the_end = number
        with pytest.raises((ModelError, Killed)):
            unpack_model(path, volume.folder, max_bytes=1 << 30)
        volume.end = None

        unpack_model(path, volume.folder, max_bytes=1 << 30)

        assert contents(volume.folder) == whole


def test_model_comes_back_if_the_new_one_cant_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    unpack(path)
    rename: Callable[[Path, Path], Path] = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)

    assert_refused(zip_of(path, {"saved_model.pb": b"new"}), "Input/output error")


def test_folder_that_cant_be_written_is_one_line(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "saved_model.zip")

    with (
        read_only(tmp_path),
        pytest.raises(ModelError, match="can't be written: Permission denied; unpack the policy"),
    ):
        unpack(path)


def test_unpacked_model_is_used_where_nothing_can_be_written(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    unpack(path)
    (tmp_path / ".models.lock").unlink()

    with read_only(tmp_path):
        assert files_in(unpack(path)) == FILES


def test_file_in_place_of_the_home_is_one_line(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "saved_model.zip")

    with pytest.raises(ModelError, match="can't be written"):
        unpack_model(path, path / "models", max_bytes=BIG)


def test_zip_of_a_command_line_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "saved_model.zip"
    # As `zip -r` writes: the folders too, and each with its times and its owner behind the name.
    times, owner = (
        struct.pack("<HHBII", 0x5455, 9, 3, 1, 1),
        struct.pack("<HHBBIBI", 0x7875, 11, 1, 4, 0, 4, 0),
    )
    folders = {
        f"models/{parent}/" for name in FILES for parent in Path(name).parents if parent != Path()
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("models/", *sorted(folders), *(f"models/{name}" for name in FILES)):
            member = zipfile.ZipInfo(name)
            member.create_system, member.extra = 3, times + owner
            is_folder = name.endswith("/")
            member.external_attr = ((0o40755 if is_folder else 0o100644) << 16) | (16 * is_folder)
            member.compress_type = zipfile.ZIP_STORED if is_folder else zipfile.ZIP_DEFLATED
            archive.writestr(member, b"" if is_folder else FILES[name.removeprefix("models/")])

    assert files_in(unpack(path)) == FILES


def test_file_beside_the_zip_is_unpacked_with_it_and_followed(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "policy.zip", {"weights.txt": b"0.5"})
    beside = tmp_path / "scale.txt"
    seen = []

    for content in (b"2", b"3", None):
        beside.unlink(missing_ok=True)
        if content is not None:
            beside.write_bytes(content)
        folder = unpack_model(path, tmp_path / "models", max_bytes=BIG, formats=[NotesFormat()])
        seen.append(files_in(folder))

    assert seen == [
        {"scale.txt": b"2", "weights.txt": b"0.5"},
        {"scale.txt": b"3", "weights.txt": b"0.5"},
        {"weights.txt": b"0.5"},
    ]


def test_file_that_the_format_does_not_know_stays_beside_the_zip(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "saved_model.zip")
    (tmp_path / "scale.txt").write_bytes(b"2")

    folder = unpack_model(
        path, tmp_path / "models", max_bytes=BIG, formats=[*FORMATS, NotesFormat()]
    )

    assert files_in(folder) == FILES


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>sign in</html>", "is a web page"),
    ],
    ids=["lfs", "page"],
)
def test_file_that_is_no_zip_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "saved_model.zip"
    path.write_bytes(content)

    assert_refused(path, says)


def test_zip_of_another_kind_is_named(tmp_path: Path) -> None:
    files = {"archive_format": b"pt2", "models/model.json": b"{}"}

    assert_refused(
        zip_of(tmp_path / "saved_model.zip", files),
        "is a torch.export program",
        "expected a TensorFlow SavedModel",
    )


@pytest.mark.parametrize(
    ("name", "kept"), [("run 7 weights.txt", "run 7 weights.txt"), ("run.zip", "weights.txt")]
)
def test_policy_that_is_one_file_is_told_by_its_head_and_copied(
    tmp_path: Path, name: str, kept: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"notes: 0.5")
    (tmp_path / f"{name}.more").write_bytes(b"1")

    folder = unpack_model(path, tmp_path / "models", max_bytes=BIG, formats=[NotesFormat()])

    assert files_in(folder) == {kept: b"notes: 0.5", f"{name}.more": b"1"}


def test_changed_file_or_file_beside_it_is_copied_anew(tmp_path: Path) -> None:
    path, more = tmp_path / "weights.txt", tmp_path / "weights.txt.more"
    path.write_bytes(b"notes")

    def unpack_notes() -> dict[str, bytes]:
        return files_in(
            unpack_model(path, tmp_path / "models", max_bytes=BIG, formats=[NotesFormat()])
        )

    assert unpack_notes() == {"weights.txt": b"notes"}
    more.write_bytes(b"1")
    assert unpack_notes() == {"weights.txt": b"notes", "weights.txt.more": b"1"}
    path.write_bytes(b"notes 2")
    assert unpack_notes() == {"weights.txt": b"notes 2", "weights.txt.more": b"1"}
    more.unlink()
    assert unpack_notes() == {"weights.txt": b"notes 2"}


@pytest.mark.parametrize("large", ["weights.txt", "weights.txt.more"])
def test_one_file_above_the_limit_is_refused(tmp_path: Path, large: str) -> None:
    (tmp_path / "weights.txt").write_bytes(b"notes")
    (tmp_path / "weights.txt.more").write_bytes(b"")
    with (tmp_path / large).open("ab") as file:
        file.truncate(BIG + 1)

    with pytest.raises(ModelError) as caught:
        unpack_model(
            tmp_path / "weights.txt", tmp_path / "models", max_bytes=BIG, formats=[NotesFormat()]
        )

    assert caught.value.message == (
        f"{tmp_path / large}: has {BIG + 1} bytes, more than "
        f"POLICY_SERVER_MAX_UNPACKED_BYTES={BIG}; raise it if you trust the file"
    )
    assert not (tmp_path / "models").exists()


REAL = {
    "SavedModel": ROOT / "examples" / "lpoc" / "saved_model.zip",
    "stable-baselines3": ROOT / "tests" / "data" / "policies" / "sb3_td3" / "policy.zip",
    "RLlib": ROOT / "tests" / "data" / "policies" / "rllib_dqn" / "checkpoint.zip",
    "Keras": ROOT / "tests" / "data" / "policies" / "keras_actor_softmax" / "actor.keras",
}


def _directory(content: bytearray) -> int:
    """Return where the directory of the archive itself begins, not of one within it."""
    end = content.rindex(b"PK\x05\x06")
    return int.from_bytes(content[end + 16 : end + 20], "little")


def _wrong_crc(content: bytearray) -> None:
    content[_directory(content) + 16] ^= 1


def _encrypted(content: bytearray) -> None:
    content[6] |= 1
    content[_directory(content) + 8] |= 1


def _overlapping(content: bytearray) -> None:
    """Let the second member begin where the first does."""
    first = _directory(content)
    second = content.index(b"PK\x01\x02", first + 4)
    content[second + 42 : second + 46] = content[first + 42 : first + 46]


@pytest.mark.parametrize("form", REAL)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_wrong_crc, "Bad CRC-32"),
        (_encrypted, "encrypted"),
        (_overlapping, "is no zip file or is damaged"),
    ],
)
def test_damaged_archive_of_each_format_is_refused(
    tmp_path: Path, form: str, damage: Callable[[bytearray], None], says: str
) -> None:
    content = bytearray(REAL[form].read_bytes())
    damage(content)
    (tmp_path / "policy.zip").write_bytes(content)

    assert_refused(tmp_path / "policy.zip", says)


@pytest.mark.parametrize("form", REAL)
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("../evil", b"x", "climbs out of the folder"),
        ("C:\\evil", b"x", "climbs out of the folder"),
        ("zeros", bytes(64 << 20), "unpacks to"),
    ],
)
def test_hostile_member_in_an_archive_of_each_format_is_refused(
    tmp_path: Path, form: str, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / "policy.zip"
    shutil.copyfile(REAL[form], path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)

    assert_refused(path, says, max_bytes=32 << 20)


@pytest.mark.parametrize("form", REAL)
def test_link_and_repeated_member_in_an_archive_of_each_format_are_refused(
    tmp_path: Path, form: str
) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(REAL[form]) as archive:
        first = archive.namelist()[0]
    for info, says in ((link, "is a link"), (zipfile.ZipInfo(first), "is there twice")):
        path = tmp_path / "policy.zip"
        shutil.copyfile(REAL[form], path)
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(info, b"/etc/passwd")

        assert_refused(path, says, max_bytes=32 << 20)


@pytest.mark.parametrize("form", REAL)
def test_archive_within_an_archive_of_each_format_is_named(tmp_path: Path, form: str) -> None:
    assert_refused(
        zip_of(tmp_path / "outer.zip", {"policy.zip": REAL[form].read_bytes()}),
        "is a zip that holds the zip 'policy.zip'; unzip it once; expected ",
        max_bytes=32 << 20,
    )


def test_what_killed_starts_left_is_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zip_of(tmp_path / "saved_model.zip")
    left = tmp_path / ".unfinished-models-abc"
    left.mkdir()
    os.utime(left, (1e9, 1e9))
    removed: list[Path] = []
    remove = shutil.rmtree

    def keep_left(path: Path, **options: Any) -> None:  # noqa: ANN401 -- those of tempfile too
        removed.append(Path(path))
        if path != left:
            remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", keep_left)
    unpack(tmp_path / "saved_model.zip")

    assert removed.count(left) == 1
