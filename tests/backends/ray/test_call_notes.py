"""A replica's note of its call: it can be read from outside, and outlives the replica."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from policy_server.backends.ray.call_notes import CallNote, NotedCall


def test_note_is_read_while_it_is_kept_and_after(tmp_path: Path) -> None:
    socket, note = tmp_path / "calls", CallNote()
    note.publish(socket)
    noted = NotedCall.of(os.getpid(), str(socket))
    assert noted is not None
    read = [noted.number()]
    for number in (7, 2**64 - 1):
        note.begin(number)
        read.append(noted.number())
    note.end()
    read.append(noted.number())
    note.begin(8)
    note.close()
    # What ends in a call has no later one.
    note.end()
    read.append(noted.number())
    noted.close()

    assert read == [0, 7, 2**64 - 1, 0, 8]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("process", [None, os.getpid()], ids=["of another machine", "of this one"])
def test_replica_without_a_note_has_none(process: int | None, tmp_path: Path) -> None:
    assert NotedCall.of(process, str(tmp_path / "calls")) is None
    assert NotedCall.of(process, "") is None


def test_link_that_leads_elsewhere_is_no_note(tmp_path: Path) -> None:
    (tmp_path / "calls-computes").symlink_to("elsewhere")

    assert NotedCall.of(os.getpid(), str(tmp_path / "calls")) is None


def test_replica_on_a_system_without_such_memory_notes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    note = CallNote()
    note.publish(tmp_path / "calls")
    note.begin(1)
    note.end()
    note.close()

    assert list(tmp_path.iterdir()) == []
