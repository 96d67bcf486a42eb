"""The parts of an observation: their names in schema.yaml, and their columns."""

from __future__ import annotations

import pytest

from policy_server.policy import ObservationPart, distinct_names, part_names

KEYS: dict[str, tuple[list[str], list[str]]] = {
    "three_that_are_one": (
        ["speed x", "speed-x", "speed_x"],
        ["speed_x_2", "speed_x_3", "speed_x"],
    ),
    "the_number_is_taken": (["a b", "a-b", "a_b_2"], ["a_b", "a_b_3", "a_b_2"]),
    "digits": (["1", "_1", "1 "], ["_1_2", "_1", "_1_"]),
    "no_letter_of_ours": (["速度", "位置", "-", ""], ["__", "___2", "_", "__2"]),
    "names_already": (["b", "a"], ["b", "a"]),
}


@pytest.mark.parametrize(("keys", "names"), KEYS.values(), ids=KEYS)
def test_each_key_has_a_name_of_its_own(keys: list[str], names: list[str]) -> None:
    assert distinct_names(keys) == tuple(names)


def test_part_without_a_key_is_the_observation() -> None:
    assert part_names([ObservationPart("", "box", (3,))]) == ("observation",)


@pytest.mark.parametrize(
    ("part", "columns", "words"),
    [
        pytest.param(ObservationPart("a", "box", ()), 1, "a number", id="number"),
        pytest.param(ObservationPart("a", "box", (2, 3)), 6, "2 x 3 numbers", id="array"),
        pytest.param(
            ObservationPart("a", "one_hot", (), (4,)), 4, "an integer from 0 to 3", id="integer"
        ),
        pytest.param(
            ObservationPart("a", "one_hot", (2,), (2, 3)),
            5,
            "integers from 0 to 1, 0 to 2",
            id="integers",
        ),
        pytest.param(ObservationPart("a", "binary", (3,)), 3, "3 zeros and ones", id="binary"),
        pytest.param(
            ObservationPart("a", "box", (2,), is_normalized=True),
            2,
            "2 numbers, normalized by the policy",
            id="normalized",
        ),
    ],
)
def test_part_is_told_in_words_with_its_columns(
    part: ObservationPart, columns: int, words: str
) -> None:
    assert (part.columns, str(part)) == (columns, words)
