"""Files that are replaced together, whoever is killed or waits meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from policy_server.files.atomic import whole_folder
from policy_server.files.replacement import (
    incoming_folder,
    limit_permissions,
    replaced,
    restore_interrupted,
)
from policy_server.remote_files import bring_files
from policy_server.settings import Settings
from tests.support.folders import ROOT
from tests.support.waiting import is_waited_for, wait_until


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with an old pair."""
    (tmp_path / "schema.yaml").write_bytes(b"old schema")
    (tmp_path / "saved_model.zip").write_bytes(b"old model")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("is_failing", [False, True], ids=["success", "failure"])
def test_files_are_replaced_together_or_not_at_all(home: Path, *, is_failing: bool) -> None:
    before = contents(home)

    def replace() -> None:
        with incoming_folder(home) as folder:
            for name in before:
                (folder / name).write_bytes(b"new")
            with replaced([*before], folder):
                assert set(contents(home).values()) >= {b"new"}
                if is_failing:
                    raise KeyboardInterrupt

    if is_failing:
        with pytest.raises(KeyboardInterrupt):
            replace()
    else:
        replace()

    assert contents(home) == (before if is_failing else dict.fromkeys(before, b"new"))


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_replaced_file_keeps_its_permissions(home: Path, mode: int) -> None:
    (home / "schema.yaml").chmod(mode)

    with incoming_folder(home) as folder:
        # Whoever may not read a file there may not read what will replace it either.
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "schema.yaml").write_bytes(b"new")
        with replaced(["schema.yaml"], folder):
            assert stat.S_IMODE((home / "schema.yaml").stat().st_mode) == mode

    assert stat.S_IMODE((home / "schema.yaml").stat().st_mode) == mode
    assert (home / "schema.yaml").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("source", "expected"),
    [(0o600, 0o600), (0o444, 0o644), (0o777, 0o644), (0o700, 0o600)],
    ids=oct,
)
def test_copy_gives_nobody_more_than_its_source_and_its_owner_may_change_it(
    tmp_path: Path, source: int, expected: int
) -> None:
    for name, mode in (("source", source), ("copy", 0o644)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)

    limit_permissions(tmp_path / "copy", tmp_path / "source")

    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == expected


def test_old_files_that_cannot_be_put_back_are_kept(home: Path) -> None:
    def replace() -> None:
        with incoming_folder(home) as folder:
            (folder / "schema.yaml").write_bytes(b"new")
            with replaced(["schema.yaml"], folder):
                # A folder in a file's place can't be replaced by a file.
                (home / "schema.yaml").unlink()
                (home / "schema.yaml").mkdir()
                raise ValueError

    with pytest.raises(IsADirectoryError):
        replace()

    (home / "schema.yaml").rmdir()
    restore_interrupted(home)

    assert (home / "schema.yaml").read_bytes() == b"old schema"


@pytest.mark.parametrize("had_schema", [True, False], ids=["replacing", "first"])
@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_killed_replacement_is_undone_by_the_next_start(
    home: Path, moment: str, *, had_schema: bool
) -> None:
    before = contents(home)
    if not had_schema:
        (home / "schema.yaml").unlink()
        del before["schema.yaml"]
    script = f"""
        import os, pathlib, signal
        from policy_server.files import replacement
        replace = pathlib.Path.replace
        def killed(self, target):
            if self.name == "schema.yaml" and "{moment}" == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(self, target)
            if self.name == "schema.yaml" and "{moment}" == "between":
                os.kill(os.getpid(), signal.SIGKILL)
        pathlib.Path.replace = killed
        with replacement.incoming_folder(pathlib.Path({str(home)!r})) as folder:
            for name in ("schema.yaml", "saved_model.zip"):
                (folder / name).write_text("new")
            with replacement.replaced(["schema.yaml", "saved_model.zip"], folder):
                os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    assert (home / ".incoming" / "old").exists()

    bring_files(Settings(home=home), check=lambda _model, _schema: None)

    assert {
        name: content
        for name, content in contents(home).items()
        if not name.startswith(".incoming")
    } == before
    with incoming_folder(home):
        pass
    assert contents(home) == before


@pytest.mark.parametrize("had_models", [True, False], ids=["replacing", "first"])
@pytest.mark.parametrize("end", ["failure", "signal", "kill", "kill between the renames"])
def test_folder_that_is_changed_with_the_files_comes_back_with_them(
    home: Path, end: str, *, had_models: bool
) -> None:
    if had_models:
        (home / "models" / "variables").mkdir(parents=True)
        (home / "models" / "saved_model.pb").write_bytes(b"old graph")
        (home / "models" / "variables" / "variables.index").write_bytes(b"old index")
        (home / "models" / "link").symlink_to("saved_model.pb")
    before = contents(home)
    script = f"""
        import os, pathlib, signal
        from policy_server.files import atomic, replacement
        home, end = pathlib.Path({str(home)!r}), {end!r}
        rename = pathlib.Path.rename
        def killed(self, target):
            if self.name == "new" and end == "kill between the renames":
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)
        pathlib.Path.rename = killed
        with replacement.incoming_folder(home) as folder:
            (folder / "schema.yaml").write_text("new")
            with replacement.replaced(["schema.yaml"], folder, folders=["models"]):
                with atomic.whole_folder(home / "models") as new:
                    (new / "saved_model.pb").write_text("new graph")
                (home / "models" / "compiled").write_text("new")
                if end == "failure":
                    raise ValueError
                os.kill(os.getpid(), signal.SIGINT if end == "signal" else signal.SIGKILL)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=False, cwd=ROOT, capture_output=True
    )
    assert ended.returncode != 0
    if "kill" in end:
        assert ended.returncode == -signal.SIGKILL
        restore_interrupted(home)
        with incoming_folder(home):
            pass

    assert {
        name: content
        for name, content in contents(home).items()
        if not name.startswith(".unfinished-models-")
    } == before
    assert (home / "models").is_dir() == had_models
    assert (home / "models" / "link").is_symlink() == had_models


def test_folder_that_is_a_link_comes_back_as_one(home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "saved_model.pb").write_bytes(b"old graph")
    (home / "models").symlink_to("elsewhere")

    def replace() -> None:
        with incoming_folder(home) as folder, replaced([], folder, folders=["models"]):
            with whole_folder(home / "models") as new:
                (new / "saved_model.pb").write_text("new graph")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace()

    assert (home / "models").readlink() == Path("elsewhere")
    assert (home / "models" / "saved_model.pb").read_bytes() == b"old graph"


def test_folder_that_was_not_changed_is_left_alone(home: Path) -> None:
    """It may be on a file system that nobody can write to."""
    (home / "models").mkdir()
    (home / "models" / "saved_model.pb").write_bytes(b"old graph")
    inode = (home / "models").stat().st_ino

    def replace() -> None:
        with incoming_folder(home) as folder, replaced([], folder, folders=["models"]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace()

    assert (home / "models").stat().st_ino == inode


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY], ids=["copied", "volume"])
def test_folder_of_another_file_system_comes_back_too(
    home: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    models = home / "models"
    models.mkdir()
    (models / "saved_model.pb").write_bytes(b"old graph")
    inode, rename = models.stat().st_ino, os.rename

    def refuse(do: Callable[..., None], source: Path, target: Path, **how: bool) -> None:
        if models in (Path(source), Path(target)) or do is link:
            raise OSError(number, os.strerror(number))
        do(source, target, **how)

    link = os.link
    monkeypatch.setattr(os, "rename", partial(refuse, rename))
    monkeypatch.setattr(os, "link", partial(refuse, link))

    def replace() -> None:
        with incoming_folder(home) as folder, replaced([], folder, folders=["models"]):
            with whole_folder(models) as new:
                (new / "saved_model.pb").write_text("new graph")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace()

    assert models.stat().st_ino == inode
    assert (models / "saved_model.pb").read_bytes() == b"old graph"


def test_start_waits_for_a_replacement_that_is_under_way(home: Path) -> None:
    with ThreadPoolExecutor(1) as executor, incoming_folder(home) as folder:
        (folder / "schema.yaml").write_text("new")
        with replaced(["schema.yaml"], folder):
            start = executor.submit(restore_interrupted, home)
            wait_until(lambda: is_waited_for(home))
    start.result()

    assert (home / "schema.yaml").read_text() == "new"


def test_replacement_that_can_not_be_finished_is_undone_at_once(home: Path) -> None:
    before = contents(home)

    def replace() -> None:
        with incoming_folder(home) as folder:
            (folder / "schema.yaml").write_bytes(b"new")
            # A folder with something in it can't be renamed over.
            (folder / "old.finished" / "other").mkdir(parents=True)
            with replaced(["schema.yaml"], folder):
                pass

    with pytest.raises(OSError, match=r"old\.finished"):
        replace()

    assert contents(home) == before
