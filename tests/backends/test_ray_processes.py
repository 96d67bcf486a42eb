"""Processes of Ray's that are left: found by their files, and ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy_server.backends import ray_processes
from policy_server.backends.ray_guard import start_guard
from policy_server.backends.ray_processes import (
    Process,
    end_ray_in,
    make_rays_folder,
    parent_of,
    rays_of,
    remove_dead_rays,
    server_of,
    stop_of,
    use_of,
    worker_title,
)
from tests.support.processes import is_running, run
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def worker_in(folder: Path, *, title: str = "ray::ServeReplica") -> subprocess.Popen[bytes]:
    """Start a process that has a file of a Ray's folder open, as its workers have."""
    with (folder / f"worker-{title[-3:]}.log").open("w") as log:
        # A title of its own, as `ray::` is one.
        worker = subprocess.Popen([title, "600"], executable="/bin/sleep", stdout=log, stderr=log)
    # The kernel gives it the title a moment after it has begun.
    wait_until(Path(f"/proc/{worker.pid}/cmdline").read_bytes)
    return worker


@pytest.mark.parametrize(
    "title",
    ["ray::ServeReplica", "/lib/ray/core/src/ray/raylet/raylet", "/lib/ray/dashboard/agent.py"],
)
def test_processes_of_a_ray_end_with_its_folder_and_no_others_do(title: str) -> None:
    folder, other = make_rays_folder(os.getpid()), make_rays_folder(os.getpid())
    inside, outside = worker_in(folder, title=title), worker_in(other)
    reader = worker_in(folder, title="tail")

    try:
        end_ray_in(folder)

        assert inside.wait(10) == -9
        assert (outside.poll(), reader.poll()) == (None, None)
        assert (folder.exists(), other.exists()) == (False, True)
    finally:
        for process in (inside, outside, reader):
            process.kill()
            process.wait()


def test_what_a_dead_server_has_left_is_removed_and_a_running_servers_is_not(
    server: subprocess.Popen[bytes],
) -> None:
    left, kept = make_rays_folder(server.pid), make_rays_folder(os.getpid())
    worker = worker_in(left)
    server.kill()
    server.wait()

    remove_dead_rays()

    assert worker.wait(10) == -9
    assert (left.exists(), kept.exists()) == (False, True)
    assert rays_of(os.getpid()) == [kept]


def test_ray_of_another_container_is_not_looked_at(server: subprocess.Popen[bytes]) -> None:
    folder = make_rays_folder(server.pid)
    [file] = folder.iterdir()
    # As a container writes it that shares the temporary folder, and counts processes apart.
    file.rename(folder / "server-1")
    let_age(folder)
    server.kill()
    server.wait()

    remove_dead_rays()

    assert folder.exists()
    shutil.rmtree(folder)


@pytest.fixture
def worker_of_nobody() -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Give a folder whose note is lost, and a process of Ray's in it."""
    folder = make_rays_folder(os.getpid())
    worker = worker_in(folder)
    (folder / "r").mkdir()
    note_of(folder).unlink()
    let_age(folder)
    yield folder, worker
    worker.kill()
    worker.wait()


def note_of(folder: Path) -> Path:
    """Return the file that says whose a Ray is."""
    [note] = folder.glob("server*")
    return note


def let_age(folder: Path) -> None:
    """Have a folder look as if it was made an hour ago."""
    hour_ago = time.time() - 3600
    os.utime(folder, (hour_ago, hour_ago))


def test_processes_are_ended_where_a_look_at_the_machine_takes_longer_than_their_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_processes, "_END_TIMEOUT_S", 0.0)
    folder = make_rays_folder(os.getpid())
    worker = worker_in(folder)

    try:
        end_ray_in(folder)

        assert worker.wait(10) == -9
    finally:
        worker.kill()
        worker.wait()


def test_ray_that_does_not_end_is_told_and_left_to_the_next_start(
    server: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = make_rays_folder(server.pid)
    owner = Process.of(server.pid)
    worker = worker_in(folder)
    kill = os.kill

    def kill_others(pid: int, number: int) -> None:
        # As of a process that waits for a disk, which outlives even SIGKILL for as long.
        if (pid, number) != (worker.pid, signal.SIGKILL):
            kill(pid, number)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", kill_others)
            patched.setattr(ray_processes, "_END_TIMEOUT_S", 0.2)
            end_ray_in(folder)
        told = [(record.message, vars(record)["pids"]) for record in caplog.records]
        found = server_of(folder)
        server.kill()
        server.wait()
        remove_dead_rays()

        assert told == [("ray_processes_left", [worker.pid])]
        assert found == owner
        assert worker.wait(10) == -9
        assert not folder.exists()
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("text", [None, "", "no process"], ids=["lost", "empty", "no_process"])
def test_ray_that_does_not_say_whose_it_is_is_removed(
    text: str | None, worker_of_nobody: tuple[Path, subprocess.Popen[bytes]]
) -> None:
    folder, worker = worker_of_nobody
    if text is not None:
        (folder / note_of(make_rays_folder(os.getpid())).name).write_text(text)
        let_age(folder)

    remove_dead_rays()

    assert worker.wait(10) == -9
    assert not folder.exists()


@pytest.mark.parametrize("has_file", [True, False], ids=["files", "empty"])
def test_folder_of_which_nothing_can_be_seen_is_kept(*, has_file: bool) -> None:
    # It may be that of another container, which counts processes apart, and have lost its note.
    folder = make_rays_folder(os.getpid())
    note_of(folder).unlink()
    if has_file:
        (folder / "r").mkdir()
    let_age(folder)

    remove_dead_rays()

    assert folder.exists()


def test_folder_that_a_server_has_just_made_is_kept() -> None:
    folder = make_rays_folder(os.getpid())
    note_of(folder).unlink()

    remove_dead_rays()

    assert folder.exists()


@pytest.mark.parametrize("title", ["/lib/ray/core/src/ray/raylet/raylet", "guard"])
def test_ray_that_has_lost_its_note_is_kept_while_it_runs(title: str) -> None:
    folder = make_rays_folder(os.getpid())
    (folder / "r").mkdir()
    running = start_guard(folder) if title == "guard" else worker_in(folder, title=title)
    cmdline = Path(f"/proc/{running.pid}/cmdline")
    wait_until(lambda: title in cmdline.read_text())
    note_of(folder).unlink()
    let_age(folder)

    try:
        remove_dead_rays()

        assert running.poll() is None
        assert folder.exists()
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("name", ["ps-ray-notes/r", "ps-ray-a1b2c3d4/thesis"])
def test_folder_that_a_person_has_made_is_kept(name: str, folders: Path) -> None:
    (folders / name).mkdir(parents=True)
    let_age((folders / name).parent)

    remove_dead_rays()

    assert (folders / name).exists()


def test_link_with_the_name_of_a_ray_leads_to_nothing_that_is_removed(folders: Path) -> None:
    (folders / "mine/r").mkdir(parents=True)
    let_age(folders / "mine")
    (folders / "ps-ray-a1b2c3d4").symlink_to(folders / "mine")

    remove_dead_rays()

    assert (folders / "mine/r").exists()


def test_guard_ends_a_ray_whose_server_was_killed(server: subprocess.Popen[bytes]) -> None:
    folder = make_rays_folder(server.pid)
    worker = worker_in(folder)
    guard = start_guard(folder)
    server.kill()
    server.wait()

    assert guard.wait(30) == 0
    assert worker.wait(10) == -9
    assert not folder.exists()


def test_guard_ends_a_ray_whose_folder_was_removed_before_its_server_was_killed(
    server: subprocess.Popen[bytes],
) -> None:
    folder = make_rays_folder(server.pid)
    worker = worker_in(folder)
    guard = start_guard(folder)
    shutil.rmtree(folder)
    with pytest.raises(subprocess.TimeoutExpired):
        guard.wait(2)
    server.kill()
    server.wait()

    assert guard.wait(30) == 0
    assert worker.wait(10) == -9


def test_guard_ends_with_its_ray() -> None:
    folder = make_rays_folder(os.getpid())
    guard = start_guard(folder)
    cmdline = Path(f"/proc/{guard.pid}/cmdline")
    wait_until(lambda: "ray_guard" in cmdline.read_text())

    end_ray_in(folder)
    guard.wait(10)

    assert not is_running(guard.pid)


# The size of files is bounded, so that writing fails as on a full disk.
WITHOUT_ROOM = """
import os, resource, tempfile
from policy_server.backends.ray_processes import make_rays_folder

folder = tempfile.gettempdir()
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    make_rays_folder(os.getpid())
except OSError:
    print(os.listdir(folder))
"""


def test_folder_that_can_not_say_whose_it_is_is_not_left(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    (tmp_path / "others").mkdir()
    ended = run(sys.executable, "-c", WITHOUT_ROOM, environment=environment)

    assert ended.stdout == "['others']\n"


def test_use_of_a_process_tells_that_it_computes_and_that_a_signal_has_stopped_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            wait_until(lambda: (use := use_of(process.pid)) and use.processor_s > 0.05)
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: (use := use_of(process.pid)) and use.is_stopped)
        finally:
            process.kill()
    assert use_of(process.pid) is None


def test_stop_has_a_word_that_stays_the_same_until_the_process_goes_on() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:

        def stopped() -> str:
            """Stop it, and return the word once it has left its processor."""
            process.send_signal(signal.SIGSTOP)
            return wait_until(
                lambda: stop if (stop := stop_of(process.pid)) == stop_of(process.pid) else ""
            )

        try:
            before, first = stop_of(process.pid), stopped()
            later = stop_of(process.pid)
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: not stop_of(process.pid))
            second = stopped()
        finally:
            process.kill()

    assert before == ""
    assert first == later != second
    assert stop_of(process.pid) == ""


def test_process_that_has_ended_has_no_parent_and_is_no_worker() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        parent = parent_of(process.pid)
        process.kill()

    assert parent == os.getpid()
    assert (parent_of(process.pid), worker_title(process.pid)) == (0, "")
