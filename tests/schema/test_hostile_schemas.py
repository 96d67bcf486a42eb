"""Files that nobody means: bombs, and small changes; all are taken or refused in one line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from policy_server.errors import SchemaError
from policy_server.schema import parse_schema
from tests.fuzz.schema_texts import BOMBS, is_clear, read_texts, refusal_of
from tests.support.audit import audited

# What is large and yet plain.
TAKEN = {"long fraction", "choices", "dimensions"}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_one_line_in_bounded_time(name: str, tmp_path: Path) -> None:
    began = time.process_time()

    line = refusal_of(BOMBS[name].encode(), tmp_path / "schema.yaml")

    assert time.process_time() - began < 10
    assert (line is None) == (name in TAKEN)
    assert line is None or is_clear(line)


@pytest.mark.parametrize(
    "text", ["example: &a [*a]", "example: &a {x: *a}", "example: [&a [[*a]]]"]
)
def test_anchor_that_holds_itself_is_refused(text: str) -> None:
    with pytest.raises(SchemaError, match=r"line 1: is no YAML: an anchor holds itself"):
        parse_schema(f"observations: {{x: {{type: float, {text}}}}}\nparameters: {{api_key: k}}")


def test_names_in_a_refusal_are_shown_without_what_no_terminal_shows() -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema('observations: {}\n"par\\nam\\x1b[2Jeters\\u202e": {}')

    assert r"par\nam\x1b[2Jeters\u202e: unknown key" in caught.value.message
    assert caught.value.message.isprintable()


def test_long_name_is_shortened_in_a_refusal() -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema("observations: {? " + "x" * 100_000 + " : {type: text}}")

    assert is_clear(caught.value.message)
    assert caught.value.message.endswith("List[bool], got 'text'")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "!!python/object/new:subprocess.Popen [[touch, ran]]",
        "!!python/name:os.system ''",
        "!!python/module:this ''",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch ran']",
    ],
)
def test_tag_of_a_python_object_runs_nothing(tag: str) -> None:
    with (
        audited() as events,
        pytest.raises(SchemaError, match=r"put text that starts with \* or ! or & in quotes"),
    ):
        parse_schema(f"observations: {{x: {{type: float, example: {tag}}}}}")

    assert events == []


def test_shipped_files_with_any_change_are_taken_or_refused_in_one_line() -> None:
    ends = read_texts(300, seed=19)

    assert ends["taken"] > 15
    assert ends["refused"] > 200
