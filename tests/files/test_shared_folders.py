"""Folders among the temporary files that the processes of one parent share."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from policy_server.errors import SettingsError
from policy_server.files.shared_folders import beginning_of, share_folder
from tests.support.processes import child, run


@pytest.fixture(autouse=True)
def _temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def name_of_today(tmp_path: Path) -> Path:
    """Return the name that the folder has, as somebody who looks on learns it."""
    path = share_folder("x", parent=os.getpid()).path
    assert path.parent == tmp_path
    path.rmdir()
    return path


def test_first_process_makes_the_folder_and_the_others_join_it(tmp_path: Path) -> None:
    first = share_folder("x", parent=os.getpid())
    code = (
        "import os; from policy_server.files.shared_folders import share_folder as share;"
        "print(*vars(share('x', parent=os.getppid())).values())"
    )
    other = run(sys.executable, "-c", code, environment={**os.environ, "TMPDIR": str(tmp_path)})

    assert first.is_new
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o700
    assert other.stdout.split() == [str(first.path), "False"]
    assert share_folder("y", parent=os.getpid()).path != first.path
    assert share_folder("x", parent=os.getppid()).path != first.path


def plant_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def plant_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def plant_file(path: Path) -> None:
    path.touch()


def plant_open_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o770)


def plant_readable_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o701)


def plant_foreign_folder(path: Path) -> None:
    assert os.geteuid() == 0, "this test needs root: nobody else gives folders away"
    path.mkdir(mode=0o700)
    os.chown(path, 65534, -1)


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (plant_link, "a link"),
        (plant_dangling_link, "a link"),
        (plant_file, "a file"),
        (plant_open_folder, "mode 0770"),
        (plant_readable_folder, "mode 0701"),
        (plant_foreign_folder, "a folder of user 65534"),
    ],
    ids=lambda item: getattr(item, "__name__", None),
)
def test_planted_name_is_refused_and_stays_as_it_is(
    plant: Callable[[Path], None], fault: str, tmp_path: Path
) -> None:
    path = name_of_today(tmp_path)
    plant(path)
    before = path.lstat()

    with pytest.raises(SettingsError) as caught:
        share_folder("x", parent=os.getpid())

    assert caught.value.message == (
        f"{path}: expected a folder of this user's alone, got {fault}; "
        "remove it, or set TMPDIR to a folder of your own"
    )
    assert path.lstat() == before
    assert not [
        file for folder in tmp_path.glob("*") if folder.is_dir() for file in folder.iterdir()
    ]


def test_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))

    with pytest.raises(SettingsError, match="can't be made: No such file or directory; set TMPDIR"):
        share_folder("x", parent=os.getpid())


def test_parent_that_has_ended_has_a_folder_too(tmp_path: Path) -> None:
    with child(sys.executable, "-c", "") as ended:
        ended.process.wait(60)
    pid = ended.process.pid

    path = share_folder("x", parent=pid).path
    assert path.parent == tmp_path
    assert path.name.startswith(f"ps-x-{pid}-0-")


def test_beginning_of_a_process_is_known_until_it_ends() -> None:
    with child(sys.executable, "-c", "input()") as other:
        pid = other.process.pid
        began, again = beginning_of(pid), beginning_of(pid)
        other.finish("\n")

    assert began is not None
    assert int(began) >= int(beginning_of(os.getpid()) or 0) > 0
    assert again == began
    assert beginning_of(pid) is None


def killed_parent() -> Path:
    """Return the folder of a parent that was killed, with an entry of one of its processes."""
    with child(sys.executable, "-c", "input()") as parent:
        path = share_folder("x", parent=parent.process.pid).path
        (path / f"serving-{parent.process.pid}").touch()
    return path


def test_folder_of_a_killed_parent_is_removed_by_the_next_one(tmp_path: Path) -> None:
    left = killed_parent()
    elsewhere = left.with_name(f"{left.name}7")
    elsewhere.mkdir(mode=0o700)
    of_another_purpose = left.with_name(left.name.replace("-x-", "-x-y-"))
    of_another_purpose.mkdir(mode=0o700)

    own = share_folder("x", parent=os.getpid()).path

    assert sorted(tmp_path.iterdir()) == sorted([own, elsewhere, of_another_purpose])


def test_folder_of_a_killed_parent_stays_while_one_of_its_processes_runs(tmp_path: Path) -> None:
    left = killed_parent()
    (left / f"member-{os.getpid()}").touch()

    own = share_folder("x", parent=os.getpid()).path

    assert sorted(tmp_path.iterdir()) == sorted([own, left])
