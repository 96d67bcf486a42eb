"""Observations: what is taken, what is refused and where, and rows in the order of training."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_server.errors import ObservationError
from policy_server.observations import ObservationSpace
from policy_server.schema import (
    EXACT_INTEGER_MAX,
    FLOAT32_MAX,
    ObservationField,
    parse_schema,
)

SPACE = ObservationSpace(
    parse_schema(
        "observations: {n: {type: int, maximum: 9}, x: {type: float}, on_: {type: bool}, "
        "l: {type: 'List[float]', min_items: 1, max_items: 3}}"
    ).observations
)
GOOD = '"n": 1, "x": 0.5, "on_": true, "l": [1, 2.5]'


def problems_of(body: str | bytes, *, is_raw: bool = False) -> list[tuple[str, str, str]]:
    """Return what is wrong with a body: place, type and message."""
    parse = SPACE.parse_raw if is_raw else SPACE.parse_named
    with pytest.raises(ObservationError) as caught:
        parse(body.encode() if isinstance(body, str) else body)
    return [
        (".".join(map(str, item["loc"])), item["type"], item["msg"])
        for item in caught.value.problems
    ]


def test_row_has_the_schemas_order_whatever_the_bodys() -> None:
    assert SPACE.parse_named(b'{"l": [7, 8], "on_": true, "n": 3, "x": -0.5}') == [
        3,
        -0.5,
        1,
        7,
        8,
    ]


def test_raw_observation_is_its_row() -> None:
    assert SPACE.parse_raw(b'{"obs": [3, -0.5, 1]}') == [3, -0.5, 1]


@pytest.mark.parametrize("name", ["copy", "json", "model_config", "_id", "__class__", "self"])
def test_name_that_python_uses_is_an_observation(name: str) -> None:
    space = ObservationSpace((ObservationField(name, "int"),))

    assert space.parse_named(json.dumps({name: 4}).encode()) == [4]
    assert space.json_schema() is not None
    assert problem_places(space, b'{"field_0": 4}') == [f"body.{name}", "body.field_0"]


def problem_places(space: ObservationSpace, body: bytes) -> list[str]:
    """Return where the mistakes of a named observation are."""
    with pytest.raises(ObservationError) as caught:
        space.parse_named(body)
    return [".".join(map(str, item["loc"])) for item in caught.value.problems]


@pytest.mark.parametrize(
    ("change", "place", "kind"),
    [
        ('"n": "1"', "body.n", "int_type"),
        ('"n": true', "body.n", "int_type"),
        ('"n": 1.5', "body.n", "int_from_float"),
        ('"n": 1e-9', "body.n", "int_from_float"),
        ('"n": "1.0"', "body.n", "int_type"),
        ('"n": 1e400', "body.n", "int_type"),
        ('"n": 1e23', "body.n", "less_than_equal"),
        ('"n": null', "body.n", "int_type"),
        ('"n": NaN', "body.n", "int_type"),
        ('"n": 10', "body.n", "less_than_equal"),
        ('"n": -1' + "0" * 39, "body.n", "number_too_large"),
        ('"x": "0.5"', "body.x", "float_type"),
        ('"x": false', "body.x", "float_type"),
        ('"x": [1]', "body.x", "float_type"),
        ('"x": NaN', "body.x", "finite_number"),
        ('"x": Infinity', "body.x", "finite_number"),
        ('"x": -Infinity', "body.x", "finite_number"),
        ('"x": 1e400', "body.x", "finite_number"),
        ('"x": 1e39', "body.x", "number_too_large"),
        ('"x": -1e39', "body.x", "number_too_large"),
        ('"on_": 1', "body.on_", "bool_type"),
        ('"on_": "true"', "body.on_", "bool_type"),
        ('"l": 1', "body.l", "list_type"),
        ('"l": {"0": 1}', "body.l", "list_type"),
        ('"l": []', "body.l", "too_short"),
        ('"l": [1, 2, 3, 4]', "body.l", "too_long"),
        ('"l": [1, "2", "3"]', "body.l.1", "float_type"),
        ('"l": [1, [2]]', "body.l.1", "float_type"),
        ('"l": [1, NaN]', "body.l.1", "finite_number"),
        ('"more": 1', "body.more", "extra_forbidden"),
    ],
)
def test_wrong_value_is_named_with_its_place(change: str, place: str, kind: str) -> None:
    # The last of equal keys counts.
    ((found_place, found_kind, _),) = problems_of(f"{{{GOOD}, {change}}}")

    assert (found_place, found_kind) == (place, kind)


@pytest.mark.parametrize("text", ["5", "5.0", "5e0", "0.5e1", "50E-1", "5.000"])
def test_int_is_a_whole_number_however_it_is_written(text: str) -> None:
    row = SPACE.parse_named(f'{{{GOOD}, "n": {text}}}'.encode())

    assert row[0] == 5
    assert type(row[0]) is int


def test_every_missing_field_is_named() -> None:
    assert [place for place, kind, _ in problems_of("{}") if kind == "missing"] == [
        "body.n",
        "body.x",
        "body.on_",
        "body.l",
    ]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "json_invalid"),
        (b"{", "json_invalid"),
        (b"nonsense", "json_invalid"),
        (b'{"\xff\xfe": 1}', "json_invalid"),
        (b'{"a\\ud800": 1}', "json_invalid"),
        (b"[" * 100_000, "json_invalid"),
        (b'{"n": 1' + b"0" * 5000 + b"}", "json_invalid"),
        (f"{{{GOOD}}} x".encode(), "json_invalid"),
        (b"null", "model_type"),
        (b"[]", "model_type"),
        (b"7", "model_type"),
        (b'"{}"', "model_type"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:12]),
)
def test_body_that_is_no_object_is_one_problem(body: bytes, kind: str) -> None:
    ((place, found, message),) = problems_of(body)

    assert (place, found) == ("body", kind)
    assert message


@pytest.mark.parametrize(
    ("body", "place", "kind"),
    [
        ('{"obs": [1, true]}', "body.obs.1", "float_type"),
        ('{"obs": [1, NaN]}', "body.obs.1", "finite_number"),
        ('{"obs": [1e39]}', "body.obs.0", "number_too_large"),
        ('{"obs": "1"}', "body.obs", "list_type"),
        ('{"obs": [], "n": 1}', "body.n", "extra_forbidden"),
        ("{}", "body.obs", "missing"),
    ],
)
def test_wrong_raw_observation_is_named_with_its_place(body: str, place: str, kind: str) -> None:
    ((found_place, found_kind, _),) = problems_of(body, is_raw=True)

    assert (found_place, found_kind) == (place, kind)


def test_largest_float_is_taken_as_numpy_prints_it() -> None:
    body = json.dumps({"obs": [3.4028235e38, -3.4028235e38]}).encode()

    row = np.array(SPACE.parse_raw(body), np.float32)

    assert row.tolist() == [np.finfo(np.float32).max, np.finfo(np.float32).min]


@pytest.mark.parametrize(
    ("body", "is_raw"),
    [
        ('{"obs": [' + '"a",' * 100_000 + "1]}", True),
        ("{" + ", ".join(f'"{i}": 1' for i in range(10_000)) + "}", False),
    ],
    ids=["items", "unknown fields"],
)
def test_body_of_many_mistakes_gets_a_short_answer(body: str, *, is_raw: bool) -> None:
    assert len(problems_of(body, is_raw=is_raw)) <= 100


@pytest.mark.parametrize(
    ("row", "is_raw", "kind", "place", "message"),
    [
        ([1.0], True, "too_short", "body.obs", "List should have 2 items, not 1"),
        ([1.0] * 3, True, "too_long", "body.obs", "List should have 2 items, not 3"),
        ([1.0], False, "too_short", "body.l", "The observation should have 2 values in all, not 1"),
    ],
    ids=["short", "long", "named"],
)
def test_row_of_another_width_than_the_policys_is_refused(
    row: list[float], kind: str, place: str, message: str, *, is_raw: bool
) -> None:
    with pytest.raises(ObservationError) as caught:
        SPACE.check_width(row, 2, is_raw=is_raw)

    ((problem),) = caught.value.problems
    assert problem == {"type": kind, "loc": place.split("."), "msg": message}


@pytest.mark.parametrize("width", [2, None], ids=["equal", "open"])
def test_row_of_the_policys_width_passes(width: int | None) -> None:
    SPACE.check_width([1.0, 2.0], width, is_raw=True)


def test_mistake_in_width_without_an_open_list_is_the_bodys() -> None:
    space = ObservationSpace((ObservationField("n", "int"),))

    with pytest.raises(ObservationError, match=r"^body: The observation should have 2 values"):
        space.check_width([1.0], 2, is_raw=False)


def test_json_schema_states_types_bounds_and_an_example() -> None:
    assert SPACE.json_schema() == {
        "title": "Observation",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "n": {
                "title": "n",
                "type": "integer",
                "minimum": -EXACT_INTEGER_MAX,
                "maximum": 9,
                "examples": [0],
            },
            "x": {
                "title": "x",
                "type": "number",
                "minimum": -FLOAT32_MAX,
                "maximum": FLOAT32_MAX,
                "examples": [0.0],
            },
            "on_": {"title": "on_", "type": "boolean", "examples": [False]},
            "l": {
                "title": "l",
                "type": "array",
                "items": {"type": "number", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX},
                "minItems": 1,
                "maxItems": 3,
                "examples": [[0.0]],
            },
        },
        "required": ["n", "x", "on_", "l"],
        "examples": [{"n": 0, "x": 0.0, "on_": False, "l": [0.0]}],
    }


def test_raw_json_schema_states_the_policys_width() -> None:
    known = SPACE.raw_json_schema(2)
    open_ = SPACE.raw_json_schema(None)

    assert (known["properties"]["obs"]["minItems"], known["properties"]["obs"]["maxItems"]) == (
        2,
        2,
    )
    assert known["examples"] == [{"obs": [0.0, 0.0]}]
    assert "minItems" not in open_["properties"]["obs"]
    assert open_["examples"] == [{"obs": [0.0, 0.0, 0.0, 0.0]}]


def test_space_without_names_has_raw_observations_only() -> None:
    space = ObservationSpace(None)

    assert space.json_schema() is None
    assert space.example is None
    assert space.raw_example(None) == []
    assert space.raw_example(3) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("field", "example"),
    [
        (ObservationField("a", "int", minimum=3), 3),
        (ObservationField("a", "int", maximum=-3), -3),
        (ObservationField("a", "float", minimum=-1, maximum=-0.5), -0.5),
        (ObservationField("a", "float", example=7.5), 7.5),
        (ObservationField("a", "bool", is_list=True), [False]),
        (ObservationField("a", "int", is_list=True, min_items=3), [0, 0, 0]),
        (ObservationField("a", "int", is_list=True, max_items=1), [0]),
    ],
    ids=["from below", "from above", "between", "given", "list", "long list", "short list"],
)
def test_example_is_the_given_one_or_lies_within_the_bounds(
    field: ObservationField, example: object
) -> None:
    space = ObservationSpace((field,))

    assert space.example == {"a": example}
    space.parse_named(json.dumps(space.example).encode())


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_raw_numbers_arrive_without_loss(values: list[float]) -> None:
    assert SPACE.parse_raw(json.dumps({"obs": values}).encode()) == values


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.floats(), st.floats(width=32), st.booleans()
)
LEAVES = st.one_of(NUMBERS, st.none(), st.text(max_size=3))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
NEARLY = st.fixed_dictionaries(
    {
        "n": st.integers(-3, 10) | VALUES,
        "x": NUMBERS,
        "on_": st.booleans(),
        "l": st.lists(NUMBERS, max_size=4) | VALUES,
    },
    optional={"more": VALUES},
)


@given(NEARLY | VALUES | st.fixed_dictionaries({"obs": st.lists(NUMBERS) | VALUES}), st.booleans())
def test_values_are_taken_and_refused_as_their_json_is(values: object, is_raw: bool) -> None:  # noqa: FBT001 -- hypothesis gives it
    def outcome(parse: Callable[[], list[float]]) -> str:
        try:
            return repr(parse())
        except ObservationError as error:
            return repr(error.problems)

    body = json.dumps(values).encode()
    from_json = outcome(lambda: (SPACE.parse_raw if is_raw else SPACE.parse_named)(body))

    assert outcome(lambda: SPACE.parse_values(values, is_raw=is_raw)) == from_json
