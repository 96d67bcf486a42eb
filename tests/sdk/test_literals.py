"""Literals of observations in the programs of client libraries."""

from __future__ import annotations

import pytest

from policy_server.sdk import LANGUAGES, LanguageName
from policy_server.sdk.literals import literal

IMAGE = [[[0.0] * 4 for _ in range(84)] for _ in range(84)]


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("python", "[[[0.0, 0.0, 0.0, 0.0]] * 84] * 84"),
        (
            "java",
            "java.util.Collections.nCopies(84, java.util.Collections.nCopies(84, "
            "List.of(0.0, 0.0, 0.0, 0.0)))",
        ),
        ("scala", "Seq.fill(84)(Seq.fill(84)(Seq(0.0, 0.0, 0.0, 0.0)))"),
        ("r", "rep(list(rep(list(list(0.0, 0.0, 0.0, 0.0)), 84)), 84)"),
        ("typescript", "Array(84).fill(Array(84).fill([0.0, 0.0, 0.0, 0.0]))"),
        (
            "csharp",
            "new List<List<List<double>>>(System.Linq.Enumerable.Repeat("
            "new List<List<double>>(System.Linq.Enumerable.Repeat("
            "new List<double> { 0.0, 0.0, 0.0, 0.0 }, 84)), 84))",
        ),
        ("kotlin", "List(84) { List(84) { listOf(0.0, 0.0, 0.0, 0.0) } }"),
    ],
)
def test_image_of_equal_numbers_is_written_as_a_repetition(
    language: LanguageName, expected: str
) -> None:
    """Java's compiler took minutes for one that was written out."""
    assert literal(language, IMAGE, "number") == expected


def test_long_lists_of_java_say_their_type() -> None:
    rows = [[row + column for column in range(30)] for row in range(2)]

    text = literal("java", rows, "integer")

    assert text.startswith("List.<List<Long>>of(List.of(0L, 1L, 2L,")
    assert literal("java", [list(range(100))], "integer").startswith(
        "List.<List<Long>>of(List.<Long>of("
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_property_that_may_be_missing_is_an_option_in_scala_alone(language: LanguageName) -> None:
    text = literal(language, [1, 0], "integer", is_optional=True)

    assert (text == "Some(Seq(1L, 0L))") == (language == "scala")
    assert language == "scala" or text == literal(language, [1, 0], "integer")
