"""The ledger of a Ray on one machine: who uses an application, and when it may go."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from policy_server.backends.ray.ledger import FolderLedger
from policy_server.backends.ray_processes import Process
from tests.support.waiting import wait_until

APPLICATION = "policy-default-0123456789ab"
# More than Linux gives a process.
NOBODY = Process(2**22 + 1, "0")
PARENT = Process.of(os.getppid())


class Serve:
    """Remembers what was removed."""

    def __init__(self) -> None:
        self.removed: list[str] = []


def ledger_in(folder: Path) -> tuple[FolderLedger, Serve]:
    """Return a ledger, and what it removes applications from."""
    serve = Serve()
    return FolderLedger(folder / "ledger", serve.removed.append), serve


def enter_as(folder: Path, process: Process) -> None:
    """Enter an application for another process."""
    (folder / "ledger" / APPLICATION / "users" / str(process)).touch()


def test_retired_application_goes_with_its_last_user(tmp_path: Path) -> None:
    ledger, serve = ledger_in(tmp_path)
    ledger.enter(APPLICATION)
    enter_as(tmp_path, PARENT)

    ledger.leave(APPLICATION, is_retired=True)
    while_used = list(serve.removed)
    (tmp_path / "ledger" / APPLICATION / "users" / str(PARENT)).unlink()
    ledger.enter(APPLICATION)
    ledger.leave(APPLICATION, is_retired=True)

    assert while_used == []
    assert serve.removed == [APPLICATION]


@pytest.mark.parametrize(
    "died",
    [NOBODY, Process(PARENT.pid, "1")],
    ids=["no process has its number", "another process has its number"],
)
def test_process_that_died_uses_nothing(died: Process, tmp_path: Path) -> None:
    ledger, serve = ledger_in(tmp_path)
    ledger.enter(APPLICATION)
    enter_as(tmp_path, died)

    ledger.leave(APPLICATION, is_retired=True)

    assert serve.removed == [APPLICATION]


def test_application_that_is_not_retired_stays_without_users(tmp_path: Path) -> None:
    ledger, serve = ledger_in(tmp_path)
    ledger.enter(APPLICATION)

    ledger.leave(APPLICATION, is_retired=False)

    assert serve.removed == []


@pytest.mark.parametrize("content", [b"", b"weights" * 1000], ids=["empty", "some"])
def test_files_are_there_for_replicas_until_the_application_goes(
    content: bytes, tmp_path: Path
) -> None:
    ledger, _ = ledger_in(tmp_path)
    source = tmp_path / "saved_model.pb"
    source.write_bytes(content)
    ledger.enter(APPLICATION)

    files = ledger.store(APPLICATION, {"saved_model.pb": source, "variables/index": content})
    # A replica that is restarted later reads them again.
    source.unlink()
    for _ in range(2):
        with files.opened() as folder:
            read = [(folder / name).read_bytes() for name in ("saved_model.pb", "variables/index")]
            assert read == [content, content]
    ledger.leave(APPLICATION, is_retired=True)

    assert not folder.exists()


def test_one_process_at_a_time_deploys_an_application(tmp_path: Path) -> None:
    first, second = ledger_in(tmp_path)[0], ledger_in(tmp_path)[0]
    is_deploying = threading.Event()

    def deploy() -> None:
        with second.deploying(APPLICATION):
            is_deploying.set()

    with first.deploying(APPLICATION):
        other = threading.Thread(target=deploy)
        other.start()
        with second.deploying("policy-another-0123456789ab"):
            has_waited = not is_deploying.wait(0.2)
    started = time.monotonic()
    other.join(10)

    assert has_waited
    assert is_deploying.is_set()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("is_used_again", [False, True])
def test_application_whose_deployment_goes_on_is_removed_behind_it_unless_used_again(
    tmp_path: Path, *, is_used_again: bool
) -> None:
    ledger, serve = ledger_in(tmp_path)
    ledger.enter(APPLICATION)
    leaving = threading.Thread(
        target=ledger.leave, args=(APPLICATION,), kwargs={"is_retired": True}
    )

    with ledger.deploying(APPLICATION):
        leaving.start()
        users = tmp_path / "ledger" / APPLICATION / "users"
        wait_until(lambda: not [*users.iterdir()])
        if is_used_again:
            ledger.enter(APPLICATION)
        leaving.join(0.2)
        meanwhile = list(serve.removed)
    leaving.join(60)

    assert meanwhile == []
    assert serve.removed == ([] if is_used_again else [APPLICATION])


def test_files_are_touched_so_that_what_clears_temporary_folders_leaves_them(
    tmp_path: Path,
) -> None:
    ledger, _ = ledger_in(tmp_path)
    server = tmp_path / "server-1"
    server.touch()
    ledger.enter(APPLICATION)
    with ledger.store(APPLICATION, {"variables/index": b"1"}).opened() as folder:
        kept = [server, folder / "variables" / "index", *(folder.parent / "users").iterdir()]
    for path in kept:
        os.utime(path, (0, 0))

    lost = ledger.renew([APPLICATION])

    assert lost == []
    assert all(path.stat().st_mtime > 0 for path in kept)


def test_files_that_have_gone_are_stored_again(tmp_path: Path) -> None:
    ledger, _ = ledger_in(tmp_path)
    other, _ = ledger_in(tmp_path)
    files = {"policy.npz": b"1", "variables/index": b"2"}
    with ledger.store(APPLICATION, files).opened() as folder:
        (folder / "variables" / "index").unlink()

    assert ledger.renew([APPLICATION, "another"]) == [APPLICATION, "another"]
    ledger.store(APPLICATION, files)
    assert ledger.renew([APPLICATION]) == []
    # A process that has stored nothing knows the folder alone.
    assert other.renew([APPLICATION]) == []
    ledger.leave(APPLICATION, is_retired=True)
