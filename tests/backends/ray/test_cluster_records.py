"""The records of a cluster: a text is replaced by those who know it, with its folders."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from policy_server.backends.ray.cluster_records import RecordBook, open_cluster_records
from policy_server.backends.ray.ray_calls import RayCalls
from policy_server.errors import NotReadyError

A: dict[str, list[Any]] = {"policy.zip": ["reference of a"]}
B: dict[str, list[Any]] = {"policy.zip": ["reference of b"]}


def test_text_is_replaced_by_those_who_know_it() -> None:
    book = RecordBook()

    first = book.replace("door", None, "one", [], {})
    late = book.replace("door", None, "other", [], {})
    second = book.replace("door", "one", "two", [], {})

    assert (first, late, second) == (True, False, True)
    assert (book.text("door"), book.text("lift")) == ("two", None)


def test_folders_stay_while_the_text_has_them() -> None:
    book = RecordBook()
    book.replace("door", None, "one", ["a"], {"a": A})

    book.replace("door", "one", "two", ["a", "b"], {"b": B})
    both = (book.folder("door", "a"), book.folder("door", "b"))
    book.replace("door", "two", "three", ["b"], {})

    assert both == (A, B)
    assert book.folders("door") == ["b"]
    assert book.folder("door", "a") is None


def test_text_is_not_replaced_where_its_folders_were_lost() -> None:
    book = RecordBook()

    is_replaced = book.replace("door", None, "one", ["a"], {})

    assert not is_replaced
    assert book.text("door") is None


class SlowActor:
    """An actor of Ray's that is up once it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        """Be looked at by `ray.wait`."""
        self.looks = looks
        self.text = SimpleNamespace(remote=lambda key: f"the text of {key!r}")

    def wait(self, asked: list[str], *, timeout: float) -> tuple[list[str], list[str]]:
        """Return what is there, and what is not."""
        assert timeout < 1
        self.looks -= 1
        return (asked, []) if self.looks < 0 else ([], asked)


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> SlowActor:
    """Return the actor that Ray starts."""
    actor = SlowActor(looks=3)
    options = SimpleNamespace(remote=lambda: actor)
    monkeypatch.setattr(ray, "remote", lambda _: SimpleNamespace(options=lambda **_: options))
    monkeypatch.setattr(ray, "wait", actor.wait)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    return actor


async def test_records_are_waited_for_until_their_actor_is_up(actor: SlowActor) -> None:
    await open_cluster_records(RayCalls(), timeout_s=60)

    assert actor.looks == -1


async def test_actor_that_does_not_start_is_one_line(actor: SlowActor) -> None:
    with pytest.raises(NotReadyError, match="did not start within 0 s; see whether the cluster"):
        await open_cluster_records(RayCalls(), timeout_s=0)

    assert actor.looks == 2


@pytest.mark.usefixtures("actor")
async def test_records_are_not_asked_while_this_process_leaves_the_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Ray's library would end the process: a call that begins after `ray.shutdown` does.
    calls = RayCalls()
    records = await open_cluster_records(calls, timeout_s=60)
    asked: list[object] = []
    monkeypatch.setattr(ray, "get", lambda answer, **_: asked.append(answer))

    async with calls.held():
        with pytest.raises(NotReadyError, match="ray: ended meanwhile"):
            records.read("door")

    assert asked == []
    assert records.read("door") is None
    assert asked == ["the text of 'door'"]


@pytest.mark.usefixtures("actor")
async def test_records_that_ray_breaks_off_as_this_process_leaves_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = await open_cluster_records(RayCalls(), timeout_s=60)
    monkeypatch.setattr(ray, "get", lambda *_, **__: sys.exit(0))

    with pytest.raises(NotReadyError, match="ray: ended meanwhile"):
        records.read("door")
