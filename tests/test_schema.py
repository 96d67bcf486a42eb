"""schema.yaml: what it can say, and one clear line for each way of getting it wrong."""

# The table of mistakes has one line a case.
# ruff: noqa: E501

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policy_server.errors import SchemaError
from policy_server.observations import ObservationSpace
from policy_server.schema import (
    FLOAT32_MAX,
    ActionField,
    ObservationField,
    ServerSchema,
    parse_schema,
    public_schema,
    read_schema,
)

WHOLE = """
# every key that there is
observations:
  id: {type: int, description: Who moves, example: 3, minimum: 0, maximum: 10}
  has_neighbour: {type: bool}
  links: {type: "List[float]", min_items: 2, max_items: 5, minimum: -1.5, example: [1, 2.5]}
  marks:
    type: list[ bool ]
    max_items: 3
actions:
  move: {labels: [up, down, 3], description: Where to}
  wait: {choices: 4}
  force: {low: -2, high: [2, 3], normalized: False, dimensions: 2}
parameters:
  discrete: True
  tuple: True
  api_key: "1234567asdfgh"
  url_path: /app/v1/
"""


def test_whole_schema_becomes_values_in_the_files_order() -> None:
    schema = parse_schema(WHOLE.replace("low: -2,", "low: [-2, -3],"))

    assert schema.observations == (
        ObservationField("id", "int", description="Who moves", example=3, minimum=0, maximum=10),
        ObservationField("has_neighbour", "bool"),
        ObservationField(
            "links",
            "float",
            is_list=True,
            min_items=2,
            max_items=5,
            minimum=-1.5,
            example=[1, 2.5],
        ),
        ObservationField("marks", "bool", is_list=True, max_items=3),
    )
    assert schema.actions == (
        ActionField("move", "Where to", choices=3, labels=("up", "down", "3")),
        ActionField("wait", choices=4),
        ActionField("force", dimensions=2, low=(-2, -3), high=(2, 3), normalized=False),
    )
    assert (schema.discrete, schema.tuple, schema.api_key) == (True, True, "1234567asdfgh")
    assert (schema.url_path, schema.root_path) == ("app/v1", "/app/v1")


@pytest.mark.parametrize(
    ("text", "fewest", "most", "width"),
    [
        ("observations: {a: {type: int}, b: {type: bool}}", 2, 2, 2),
        ("observations: {a: {type: 'List[int]', min_items: 3, max_items: 3}}", 3, 3, 3),
        ("observations: {a: {type: 'List[int]', min_items: 3}, b: {type: int}}", 4, None, None),
        ("observations: {a: {type: 'List[int]', max_items: 3}, b: {type: int}}", 1, 4, None),
        ("parameters: {discrete: True}", 0, 0, None),
    ],
    ids=["scalars", "exact list", "open list", "bounded list", "raw only"],
)
def test_width_is_known_where_every_length_is(
    text: str, fewest: int, most: int | None, width: int | None
) -> None:
    schema = parse_schema(text)

    assert (schema.min_width, schema.max_width, schema.width) == (fewest, most, width)


def test_raw_only_schema_leaves_everything_to_the_policy() -> None:
    assert parse_schema("parameters: {api_key: abc}") == ServerSchema(api_key="abc")


@pytest.mark.parametrize("text", ["parameters:", "parameters: {}", "parameters: {url_path: /}"])
def test_parameters_may_be_empty(text: str) -> None:
    assert parse_schema(text) == ServerSchema()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e6", 1e6), ("-2.5e3", -2500.0), ("1e-3", 0.001), (".5e1", 5.0), ("1.e+2", 100.0)],
)
def test_exponents_are_numbers(text: str, value: float) -> None:
    schema = parse_schema(f"observations: {{x: {{type: float, minimum: {text}}}}}")

    assert schema.observations is not None
    assert schema.observations[0].minimum == value


def test_anchors_and_merges_are_understood() -> None:
    schema = parse_schema(
        "observations:\n  a: &angle {type: float, minimum: -1}\n  b: {<<: *angle, minimum: -2}\n"
    )

    assert schema.observations is not None
    assert [item.minimum for item in schema.observations] == [-1, -2]


MISTAKES = {
    # The file.
    "empty": ("", ": is empty; expected the sections 'observations' and 'parameters'"),
    "comment only": ("# later\n", ": is empty; expected the sections 'observations' and 'parameters'"),
    "a list": ("- a", ": expected the sections 'observations' and 'parameters', got a list; put a space after each colon"),
    "text": ("hello", ": expected the sections 'observations' and 'parameters', got text; put a space after each colon"),
    "a number": ("7", ": expected the sections 'observations' and 'parameters', got a number; put a space after each colon"),
    "not YAML": ("observations: {a", " line 1: is no YAML: while parsing a flow mapping: expected ',' or '}', but got '<stream end>'"),
    "unclosed quote": ("a: 'b", " line 1: is no YAML: while scanning a quoted scalar: found unexpected end of stream"),
    "two documents": ("a: 1\n---\nb: 2", " line 2: is no YAML: expected a single document in the stream: but found another document"),
    "control character": ("a: \x00", ": is no YAML: holds the control character 0; remove it"),
    "tab": ("observations:\n\ta: {type: int}", " line 2: a tab indents the line; YAML allows spaces only: replace it"),
    "tab after spaces": ("observations:\n  \ta: {type: int}", " line 2: a tab indents the line; YAML allows spaces only: replace it"),
    "bare list": ("observations:\n  a: {type: List[float], min_items: 2}", " line 2: List[...] inside {...} is no YAML; put it in quotes"),
    "duplicate observation": ("observations:\n  a: {type: int}\n  a: {type: int}", " line 3: the key 'a' is given twice; remove one"),
    "duplicate section": ("parameters: {}\nparameters: {}", " line 2: the key 'parameters' is given twice; remove one"),
    "unhashable key": ("{[a]: 1}", " line 1: is no YAML: while constructing a mapping: found unhashable key"),
    "bad date": ("a: 2020-13-45", ": is no YAML: holds a number or date that can't be read; put text in quotes"),
    "too deep": ("a: " + "[" * 20_000, ": is nested too deeply; expected three levels"),
    # Keys.
    "unknown section": ("observation: {}", ": observation: unknown key; did you mean 'observations'?"),
    "strange section": ("x: {}", ": x: unknown key; expected one of observations, actions, parameters"),
    "unknown parameter": ("parameters: {discret: True}", ": parameters.discret: unknown key; did you mean 'discrete'?"),
    "unknown key": ("observations: {a: {type: int, minitems: 3}}", ": observations.a.minitems: unknown key; did you mean 'min_items'?"),
    "strange key": ("observations: {a: {type: int, q: 3}}", ": observations.a.q: unknown key; expected one of type, min_items, max_items, description, example, minimum, maximum"),
    "unknown action key": ("actions: {a: {label: [x]}}", ": actions.a.label: unknown key; did you mean 'labels'?"),
    "missing type": ("observations: {a: {min_items: 2}}", ": observations.a.type: is missing; expected one of int, float, bool, List[int], List[float], List[bool]"),
    "two mistakes": ("observations: {a: {}, b: {}}", ": observations.a.type: is missing; expected one of int, float, bool, List[int], List[float], List[bool] (and 1 more mistake)"),
    "three mistakes": ("observations: {a: {}, b: {}, c: {}}", ": observations.a.type: is missing; expected one of int, float, bool, List[int], List[float], List[bool] (and 2 more mistakes)"),
    # Shapes.
    "observations as list": ("observations: [a, b]", ": observations: expected a mapping of names, such as 'speed: {type: float}', got ['a', 'b']"),
    "observation as text": ("observations: {a: int}", ": observations.a: expected a mapping, such as {type: float}, got 'int'"),
    "observation as nothing": ("observations: {a: }", ": observations.a: expected a mapping, such as {type: float}, got nothing"),
    "actions as list": ("actions: [a]", ": actions: expected a mapping of names, such as 'move: {labels: [left, right]}', got ['a']"),
    "action as list": ("actions: {a: [left]}", ": actions.a: expected a mapping, such as {labels: [left, right]}, got ['left']"),
    "parameters as list": ("parameters: [a]", ": parameters: expected a mapping, such as 'discrete: True', with a space after each colon, got a list"),
    "no observations": ("observations:", ": observations: is empty; list at least one, or leave the section out for raw observations"),
    "empty observations": ("observations: {}", ": observations: is empty; list at least one, or leave the section out for raw observations"),
    "no actions": ("actions: {}", ": actions: is empty; name each action component, or leave the section out"),
    # Types.
    "unknown type": ("observations: {a: {type: str}}", ": observations.a.type: expected one of int, float, bool, List[int], List[float], List[bool], got 'str'"),
    "unknown item type": ("observations: {a: {type: 'List[str]'}}", ": observations.a.type: expected one of int, float, bool, List[int], List[float], List[bool], got 'List[str]'"),
    "nested list": ("observations: {a: {type: 'List[List[int]]'}}", ": observations.a.type: expected one of int, float, bool, List[int], List[float], List[bool], got 'List[List[int]]'"),
    "type is a list": ("observations: {a: {type: [int]}}", ": observations.a.type: expected one of int, float, bool, List[int], List[float], List[bool], got ['int']"),
    "type is nothing": ("observations: {a: {type: }}", ": observations.a.type: expected one of int, float, bool, List[int], List[float], List[bool], got nothing"),
    "discrete as text": ("parameters: {discrete: 'True'}", ": parameters.discrete: expected a valid boolean, got 'True'"),
    "parameters as date": ("parameters: 2020-01-01", ": parameters: expected a mapping, such as 'discrete: True', with a space after each colon, got a date or the like"),
    "description as mapping": ("observations: {a: {type: int, description: {b: 1}}}", ": observations.a.description: expected text, got a mapping; put it in quotes"),
    "description as truth value": ("observations: {a: {type: int, description: yes}}", ": observations.a.description: expected text, got a truth value; put it in quotes"),
    "tuple as number": ("parameters: {tuple: 1}", ": parameters.tuple: expected a valid boolean, got 1"),
    "description as number": ("observations: {a: {type: int, description: 5}}", ": observations.a.description: expected text, got a number; put it in quotes"),
    # Names.
    "name with a blank": ("observations: {a b: {type: int}}", ": observations: the name 'a b' can't be used; expected letters, digits and underscores, not starting with a digit"),
    "name with a digit first": ("observations: {1a: {type: int}}", ": observations: the name '1a' can't be used; expected letters, digits and underscores, not starting with a digit"),
    "number as name": ("observations: {7: {type: int}}", ": observations: the name 7 can't be used; expected letters, digits and underscores, not starting with a digit"),
    "name with a line break": ('observations: {"a\\n": {type: int}}', ": observations: the name 'a\\n' can't be used; expected letters, digits and underscores, not starting with a digit"),
    "empty name": ("observations: {'': {type: int}}", ": observations: the name '' can't be used; expected letters, digits and underscores, not starting with a digit"),
    "truth value as name": ("observations: {on: {type: int}}", ": observations: the name True is a truth value (YAML reads on, off, yes and no so); put it in quotes"),
    "action's name": ("actions: {a-b: {choices: 2}}", ": actions: the name 'a-b' can't be used; expected letters, digits and underscores, not starting with a digit"),
    # Lengths.
    "min over max": ("observations: {a: {type: 'List[int]', min_items: 3, max_items: 2}}", ": observations.a: min_items 3 is larger than max_items 2; swap them"),
    "length of a scalar": ("observations: {a: {type: int, max_items: 2}}", ": observations.a.max_items: is for lists, the type is int; remove it or make the type List[int]"),
    "negative length": ("observations: {a: {type: 'List[int]', min_items: -1}}", ": observations.a.min_items: expected a number from 0 to 1000000, got -1"),
    "no items": ("observations: {a: {type: 'List[int]', max_items: 0}}", ": observations.a.max_items: expected a number from 1 to 1000000, got 0"),
    "a billion items": ("observations: {a: {type: 'List[int]', min_items: 1000000000}}", ": observations.a.min_items: expected a number from 0 to 1000000, got 1000000000"),
    "length as text": ("observations: {a: {type: 'List[int]', min_items: '2'}}", ": observations.a.min_items: expected a valid integer, got '2'"),
    "length as bool": ("observations: {a: {type: 'List[int]', min_items: True}}", ": observations.a.min_items: expected a valid integer, got True"),
    # Ranges.
    "minimum over maximum": ("observations: {a: {type: int, minimum: 3, maximum: 2}}", ": observations.a: minimum 3 is larger than maximum 2; swap them"),
    "minimum of a bool": ("observations: {a: {type: bool, minimum: 0}}", ": observations.a.minimum: is for numbers, the type is bool; remove it"),
    "minimum as text": ("observations: {a: {type: int, minimum: low}}", ": observations.a.minimum: expected a number, got 'low'"),
    "minimum as bool": ("observations: {a: {type: int, minimum: True}}", ": observations.a.minimum: expected a number, got True"),
    "infinite maximum": ("observations: {a: {type: float, maximum: .inf}}", ": observations.a.maximum: expected a finite number that fits a 32-bit float, got inf"),
    "maximum that is no number": ("observations: {a: {type: float, maximum: .nan}}", ": observations.a.maximum: expected a finite number that fits a 32-bit float, got nan"),
    "huge maximum": ("observations: {a: {type: int, maximum: 0x1" + "0" * 5000 + "}}", ": observations.a.maximum: expected a finite number that fits a 32-bit float, got an integer that is too large"),
    "endless digits": ("observations: {a: {type: int, maximum: 1" + "0" * 5000 + "}}", ": is no YAML: holds a number or date that can't be read; put text in quotes"),
    "fraction for an int": ("observations: {a: {type: int, minimum: 0.5}}", ": observations.a.minimum: expected an integer as the type is int, got 0.5"),
    # Examples.
    "example of another type": ("observations: {a: {type: int, example: 1.5}}", ": observations.a.example: expected a value of type int within its bounds, got 1.5"),
    "bool as int's example": ("observations: {a: {type: int, example: True}}", ": observations.a.example: expected a value of type int within its bounds, got True"),
    "int as bool's example": ("observations: {a: {type: bool, example: 1}}", ": observations.a.example: expected a value of type bool within its bounds, got 1"),
    "example out of bounds": ("observations: {a: {type: float, maximum: 1, example: 2}}", ": observations.a.example: expected a value of type float within its bounds, got 2"),
    "example too large": ("observations: {a: {type: float, example: 1.0e+39}}", ": observations.a.example: expected a value of type float within its bounds, got 1e+39"),
    "example is no list": ("observations: {a: {type: 'List[int]', example: 2}}", ": observations.a.example: expected a List[int] within its bounds, got 2"),
    "example too short": ("observations: {a: {type: 'List[int]', min_items: 2, example: [1]}}", ": observations.a.example: expected a List[int] within its bounds, got [1]"),
    "long example": ("observations: {a: {type: int, example: " + "x" * 99 + "}}", ": observations.a.example: expected a value of type int within its bounds, got 'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx'"),
    # Actions.
    "equal labels": ("actions: {a: {labels: [x, x]}}", ": actions.a.labels: expected a label of its own for each choice, got ['x', 'x']"),
    "labels equal as text": ("actions: {a: {labels: [1, '1']}}", ": actions.a.labels: expected a label of its own for each choice, got [1, '1']"),
    "no labels": ("actions: {a: {labels: []}}", ": actions.a.labels: expected a label of its own for each choice, got []"),
    "truth value as label": ("actions: {a: {labels: [yes, maybe]}}", ": actions.a.labels: expected text, got True; put it in quotes"),
    "labels and choices": ("actions: {a: {labels: [x, y], choices: 3}}", ": actions.a: gives 2 labels for 3 choices; give one a choice"),
    "no choices": ("actions: {a: {choices: 0}}", ": actions.a.choices: expected a positive number, got 0"),
    "no dimensions": ("actions: {a: {dimensions: -1}}", ": actions.a.dimensions: expected a positive number, got -1"),
    "low alone": ("actions: {a: {low: 0}}", ": actions.a.high: is missing; continuous actions are bounded by low and high together"),
    "high alone": ("actions: {a: {high: 0}}", ": actions.a.low: is missing; continuous actions are bounded by low and high together"),
    "different lengths": ("actions: {a: {low: [0, 1], high: [2, 3, 4]}}", ": actions.a: low has 2 numbers and high 3; give both the same length"),
    "dimensions and bounds": ("actions: {a: {low: [0, 1], high: [2, 3], dimensions: 3}}", ": actions.a: low and high have 2 numbers for 3 dimensions; give one, or one a dimension"),
    "low above high": ("actions: {a: {low: [0, 5], high: [2, 3]}}", ": actions.a: expected low below high, got low 5.0 and high 3.0"),
    "empty bounds": ("actions: {a: {low: [], high: []}}", ": actions.a.low: expected a number, or one for each dimension, got [] (and 1 more mistake)"),
    "infinite bounds": ("actions: {a: {low: 0, high: .inf}}", ": actions.a.high: expected a finite number that fits a 32-bit float, got inf"),
    "text as bound": ("actions: {a: {low: [0, zero], high: 1}}", ": actions.a.low: expected a number, got [0, 'zero']"),
    "labels and bounds": ("actions: {a: {labels: [x], low: 0, high: 1}}", ": actions.a: labels and choices are for integer actions, low, high and dimensions for continuous ones; keep one kind"),
    "choices and dimensions": ("actions: {a: {choices: 2, dimensions: 1}}", ": actions.a: labels and choices are for integer actions, low, high and dimensions for continuous ones; keep one kind"),
    # Parameters.
    "url_path with a scheme": ("parameters: {url_path: 'http://x/app'}", ": parameters.url_path: expected a path such as app/v1, got 'http://x/app'"),
    "url_path that climbs": ("parameters: {url_path: a/../b}", ": parameters.url_path: expected a path such as app/v1, got 'a/../b'"),
    "url_path as number": ("parameters: {url_path: 1}", ": parameters.url_path: expected text, got a number; put it in quotes"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_line_with_place_expectation_and_finding(text: str, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(text)

    assert caught.value.message == f"schema.yaml{message}"
    assert "\n" not in caught.value.message


SECRETS = {
    "a number": "parameters: {api_key: 8112233}",
    "a list": "parameters: {api_key: [s8112233]}",
    "a date": "parameters: {api_key: 8112-12-31}",
    "no space after the colon": "parameters:\n  api_key:s8112233\n",
    "no space after the colon, in braces": "parameters: {discrete: True, api_key:s8112233}",
    "no space after the colon, at the top": "api_key:s8112233",
    "no space, among others": "parameters:\n  discrete: True\n  api_key:s8112233\n",
    "an alias": "parameters: {api_key: *s8112233}",
    "a tag": "parameters: {api_key: !s8112233}",
    "a tag with a handle": "parameters: {api_key: !s8112233!x}",
    "a reserved character": "parameters: {api_key: @s8112233}",
    "an unclosed quote": "parameters: {api_key: 's8112233}",
    "a converted text": "parameters: {api_key: !!int s8112233}",
    "a converted truth value": "parameters: {api_key: !!bool s8112233}",
    "a converted date": "parameters: {api_key: !!timestamp s8112233}",
    "a blank at its end": "parameters: {api_key: 's8112233 '}",
    "an umlaut": "parameters: {api_key: 's8112233ü'}",
    "a line break": 'parameters: {api_key: "s8112233\\n"}',
    "a misspelt name": "parameters: {apikey: s8112233}",
    "another section": "api_key: s8112233",
    "in a list": "parameters: [{api_key: s8112233}]",
}


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_mistake_with_the_key_does_not_show_it(text: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(text)

    assert "8112" not in caught.value.message
    assert "\n" not in caught.value.message


def test_empty_key_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"parameters\.api_key: expected printable ASCII text"):
        parse_schema("parameters: {api_key: ''}")


def test_missing_file_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SchemaError) as caught:
        read_schema(tmp_path / "schema.yaml")

    assert caught.value.message == (
        f"{tmp_path}/schema.yaml: not found; write one (docs/schema.md), or draft it from the "
        "model with `python generate.py schema`"
    )


def test_folder_in_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"can't be read: Is a directory$"):
        read_schema(tmp_path)


def test_file_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_bytes("observations: {größe: {type: int}}".encode("latin-1"))

    with pytest.raises(SchemaError, match=r"schema\.yaml: expected text in UTF-8; save it in that"):
        read_schema(path)


def test_file_that_windows_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "served.yaml"
    path.write_bytes(b"\xef\xbb\xbfobservations:\r\n  a: {type: int}\r\n")

    assert read_schema(path) == ServerSchema(
        source="served.yaml", observations=(ObservationField("a", "int"),)
    )


def test_public_schema_has_the_files_shape_without_the_key() -> None:
    document = public_schema(parse_schema(WHOLE.replace("low: -2,", "low: [-2, -3],")))

    assert json.loads(json.dumps(document)) == {
        "observations": {
            "id": {
                "type": "int",
                "description": "Who moves",
                "example": 3,
                "minimum": 0,
                "maximum": 10,
            },
            "has_neighbour": {"type": "bool"},
            "links": {
                "type": "List[float]",
                "min_items": 2,
                "max_items": 5,
                "example": [1, 2.5],
                "minimum": -1.5,
            },
            "marks": {"type": "List[bool]", "min_items": 0, "max_items": 3},
        },
        "actions": {
            "move": {"description": "Where to", "choices": 3, "labels": ["up", "down", "3"]},
            "wait": {"choices": 4},
            "force": {"dimensions": 2, "low": [-2, -3], "high": [2, 3], "normalized": False},
        },
        "parameters": {"discrete": True, "tuple": True, "url_path": "app/v1"},
    }


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=8).filter(
    lambda name: isinstance(yaml.safe_load(name), str)
)


@st.composite
def _observations(draw: st.DrawFn) -> dict[str, object]:
    kind = draw(st.sampled_from(["int", "float", "bool"]))
    item: dict[str, object] = {"type": kind}
    if kind != "bool" and draw(st.booleans()):
        numbers: st.SearchStrategy[float] = (
            st.integers(-(10**9), 10**9) if kind == "int" else st.floats(-FLOAT32_MAX, FLOAT32_MAX)
        )
        low, high = sorted([draw(numbers), draw(numbers)])
        item |= draw(st.sampled_from([{"minimum": low}, {"maximum": high}]))
        item |= draw(st.sampled_from([{}, {"minimum": low, "maximum": high}]))
    if draw(st.booleans()):
        low, high = sorted([draw(st.integers(0, 5)), draw(st.integers(1, 5))])
        item["type"] = f"List[{kind}]"
        item |= draw(st.sampled_from([{}, {"min_items": low}, {"max_items": high}]))
    return item


@given(st.dictionaries(NAMES, _observations(), min_size=1, max_size=5))
def test_any_schema_survives_a_round_trip_and_accepts_its_own_example(
    observations: dict[str, dict[str, object]],
) -> None:
    schema = parse_schema(yaml.safe_dump({"observations": observations}, sort_keys=False))
    again = public_schema(schema)
    del again["parameters"]

    assert parse_schema(yaml.safe_dump(again, sort_keys=False)) == schema
    space = ObservationSpace(schema.observations)
    row = space.parse_named(json.dumps(space.example).encode())
    assert schema.min_width <= len(row)
    assert space.parse_raw(json.dumps({"obs": space.raw_example(None)}).encode()) == row
