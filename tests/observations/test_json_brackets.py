"""Brackets of JSON text: followed in any pieces, cut only where a part is whole."""

from __future__ import annotations

import pytest

from policy_server.observations.json_brackets import Brackets


def follow(text: bytes, *, depth: int, opened: bytes = b"", step: int = 10**9) -> Brackets:
    """Let a text grow in steps."""
    brackets = Brackets(opened, depth=depth)
    for end in range(step, len(text) + step, step):
        brackets.follow(text[:end])
    return brackets


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_ends_of_items_and_of_parts_are_found_in_any_steps(step: int) -> None:
    text = b'[{"a": [1, 2]}, {"a,]": [3, 4'

    brackets = follow(text, depth=1, step=step)

    assert text[: brackets.item_end] == b'[{"a": [1, 2]}'
    assert text[: brackets.inner_end] == b'[{"a": [1, 2]}, {"a,]": [3'
    assert brackets.inner_closing == b"]}]"
    assert brackets.closed_at == -1


@pytest.mark.parametrize("step", [1, 2, 5, 1000])
def test_end_of_the_list_is_found_and_nothing_behind_it(step: int) -> None:
    text = b'1, "]\\"]" , 2], "b": [3, 4]'

    brackets = follow(text, depth=2, opened=b"{[", step=step)

    assert text[: brackets.closed_at] == b'1, "]\\"]" , 2'
    assert text[: brackets.item_end] == b'1, "]\\"]" '


@pytest.mark.parametrize("text", [b"[,1", b"[1,,", b"[1,]", b"[1 ,", b"1,2", b'["1,2'])
def test_no_part_ends_where_text_is_no_json_or_has_not_come(text: bytes) -> None:
    assert follow(text, depth=1).item_end == -1


def test_more_brackets_than_a_parser_takes_are_not_followed() -> None:
    assert not follow(b"[" * 200, depth=1).is_too_deep
    assert follow(b"[" * 201, depth=1).is_too_deep
