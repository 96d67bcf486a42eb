"""The keys `shape`, `one_hot` and `normalize`: what is read, and each mistake in one line."""

from __future__ import annotations

import pytest

from policy_server.errors import SchemaError
from policy_server.schema import Normalization, ObservationField, parse_schema, public_schema


def field_of(entry: str) -> ObservationField:
    """Return the only observation of a schema.yaml with this entry."""
    (field,) = parse_schema(f"observations: {{a: {entry}}}").observations or ()
    return field


@pytest.mark.parametrize(
    ("entry", "items", "columns"),
    [
        pytest.param("{type: int, one_hot: 4}", 1, 4, id="integer"),
        pytest.param(
            "{type: 'List[int]', min_items: 2, max_items: 2, one_hot: 3}", 2, 6, id="one size"
        ),
        pytest.param("{type: 'List[int]', one_hot: [2, 3]}", 2, 5, id="sizes"),
        pytest.param("{type: 'List[int]', shape: [2, 3], one_hot: 4}", 6, 24, id="grid"),
        pytest.param("{type: 'List[float]', shape: [2, 3, 4]}", 24, 24, id="shape"),
    ],
)
def test_words_count_the_columns_of_the_row(entry: str, items: int, columns: int) -> None:
    field = field_of(entry)

    assert field.items == items
    assert (field.min_columns, field.max_columns) == (columns, columns)


def test_open_list_of_one_hot_integers_has_as_many_columns_as_its_items() -> None:
    schema = parse_schema(
        "observations: {a: {type: 'List[int]', min_items: 1, max_items: 3, one_hot: 4}}"
    )

    assert (schema.min_width, schema.max_width, schema.width) == (4, 12, None)


def test_list_without_a_bound_gives_no_longer_row_than_one_with() -> None:
    assert field_of("{type: 'List[int]', one_hot: 1000}").max_items == 1000


def test_normalization_has_one_number_for_all_or_one_for_each() -> None:
    field = field_of(
        "{type: 'List[float]', min_items: 2, max_items: 2, "
        "normalize: {mean: [1, 2], std: 0.5, clip: 10, epsilon: 1e-8}}"
    )

    assert field.normalize == Normalization((1.0, 2.0), (0.5,), 10.0, 1e-8)


def test_public_schema_is_a_schema_again() -> None:
    text = (
        "observations: {a: {type: int, one_hot: 4, minimum: 1, example: 4}, "
        "b: {type: 'List[int]', one_hot: [2, 3]}, "
        "c: {type: 'List[float]', shape: [1, 2], example: [[0, 1]], "
        "normalize: {mean: 0, std: [1, 2], clip: 5}}}"
    )

    schema = parse_schema(text)
    document = public_schema(schema)
    del document["parameters"]

    assert parse_schema(str(document)).observations == schema.observations


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        pytest.param(
            "{type: float, one_hot: 4}",
            ".one_hot: is for integers, the type is float; remove it",
            id="one_hot of a float",
        ),
        pytest.param(
            "{type: int, one_hot: 0}",
            ".one_hot: expected how many integers there are, such as 4 for 0 to 3, got [0]",
            id="no place",
        ),
        pytest.param(
            "{type: int, one_hot: []}",
            ".one_hot: expected how many integers there are, such as 4 for 0 to 3, got []",
            id="no size",
        ),
        pytest.param(
            "{type: int, one_hot: a}",
            ".one_hot: expected a valid integer, got 'a'",
            id="text",
        ),
        pytest.param(
            "{type: int, one_hot: 4, maximum: 3}",
            ".maximum: one_hot tells the integers' range; remove it",
            id="maximum beside one_hot",
        ),
        pytest.param(
            "{type: int, one_hot: 4, normalize: {mean: 0, std: 1}}",
            ".normalize: one_hot tells the integers' range; remove it",
            id="normalize beside one_hot",
        ),
        pytest.param(
            "{type: int, one_hot: [2, 3]}",
            ".one_hot: has 2 values for a single int; give one",
            id="sizes of one integer",
        ),
        pytest.param(
            "{type: 'List[int]', one_hot: [2, 3], max_items: 3}",
            ".one_hot: has 2 values, one for each item; give one for all, or a shape, or min_items "
            "and max_items, of as many items",
            id="sizes of other items",
        ),
        pytest.param(
            "{type: 'List[int]', one_hot: [2, 3], shape: [2]}",
            ".one_hot: has a size for each item of a shape; give one size for all",
            id="sizes of a shape",
        ),
        pytest.param(
            "{type: 'List[int]', one_hot: 1000, max_items: 1001}",
            ".one_hot: gives more than 1000000 numbers in all; mend it, or the number of items",
            id="too many numbers",
        ),
        pytest.param(
            "{type: int, one_hot: 4, example: 4}",
            ".example: expected a value of type int within its bounds, got 4",
            id="example beyond one_hot",
        ),
        pytest.param(
            "{type: float, shape: [2]}",
            ".shape: is for lists, the type is float; remove it or make the type List[float]",
            id="shape of a number",
        ),
        pytest.param(
            "{type: 'List[float]', shape: [2, 0]}",
            ".shape: expected the length of each level, such as [84, 84, 3], with at most 1000000 "
            "items in all, got [2, 0]",
            id="empty level",
        ),
        pytest.param(
            "{type: 'List[float]', shape: [2000, 2000]}",
            ".shape: expected the length of each level, such as [84, 84, 3], with at most 1000000 "
            "items in all, got [2000, 2000]",
            id="too many items",
        ),
        pytest.param(
            "{type: 'List[float]', shape: [2], max_items: 2}",
            ".max_items: the shape tells how many items there are; remove it",
            id="lengths beside a shape",
        ),
        pytest.param(
            "{type: 'List[float]', shape: [2, 2], example: [1, 2, 3, 4]}",
            ".example: expected a List[float] of the shape [2, 2] within its bounds, got "
            "[1, 2, 3, 4]",
            id="flat example of a shape",
        ),
        pytest.param(
            "{type: 'List[float]', shape: [2, 2], example: [[1, 2], [3]]}",
            ".example: expected a List[float] of the shape [2, 2] within its bounds, got "
            "[[1, 2], [3]]",
            id="ragged example of a shape",
        ),
        pytest.param(
            "{type: bool, normalize: {mean: 0, std: 1}}",
            ".normalize: is for numbers, the type is bool; remove it",
            id="normalize of a bool",
        ),
        pytest.param(
            "{type: float, normalize: 3}",
            ".normalize: expected a mapping, such as {mean: 0.5, std: 2}, got 3",
            id="normalize that is no mapping",
        ),
        pytest.param(
            "{type: float, normalize: {mean: 0}}",
            ".normalize.std: is missing; expected a number, or one for each item",
            id="no std",
        ),
        pytest.param(
            "{type: float, normalize: {mean: 0, std: 1, clips: 3}}",
            ".normalize.clips: unknown key; did you mean 'clip'?",
            id="strange key",
        ),
        pytest.param(
            "{type: float, normalize: {mean: 0, std: 0}}",
            ".normalize.std: expected numbers above 0, or from 0 on with an epsilon above 0, got "
            "0.0 and 0",
            id="division by zero",
        ),
        pytest.param(
            "{type: float, normalize: {mean: 0, std: 1, clip: 0}}",
            ".normalize.clip: expected a number above 0, got 0",
            id="clip to nothing",
        ),
        pytest.param(
            "{type: 'List[float]', min_items: 3, max_items: 3, normalize: {mean: [0, 1], std: 1}}",
            ".normalize.mean: has 2 values, one for each item; give one for all, or a shape, or "
            "min_items and max_items, of as many items",
            id="means of other items",
        ),
        pytest.param(
            "{type: 'List[float]', normalize: {mean: 0, std: [1, 2]}}",
            ".normalize.std: has 2 values, one for each item; give one for all, or a shape, or "
            "min_items and max_items, of as many items",
            id="deviations of an open list",
        ),
    ],
)
def test_mistake_in_a_word_is_one_line(entry: str, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        field_of(entry)

    assert caught.value.message == f"schema.yaml: observations.a{message}"
