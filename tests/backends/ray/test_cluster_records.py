"""The records of a cluster: a text is replaced by those who know it, with its folders."""

from __future__ import annotations

from typing import Any

from policy_server.backends.ray.cluster_records import RecordBook

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
