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
module: 7
observations:
  id: {type: int, description: Who moves, example: 3, minimum: 0, maximum: 10}
  has_neighbour: {type: bool}
  links: {type: "List[float]", min_items: 2, max_items: 5, minimum: -1.5, example: [1, 2.5]}
  marks:
    type: list[ bool ]
    max_items: 3
actions:
  move: {labels: [up, down, 3], description: Where to}
  wait: {choices: 4, values: q_values}
  force: {low: -2, high: [2, 3], normalized: False, dimensions: 2}
parameters:
  discrete: True
  tuple: True
  normalization: none
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
        ActionField("wait", choices=4, values="q_values"),
        ActionField("force", dimensions=2, low=(-2, -3), high=(2, 3), normalized=False),
    )
    assert (schema.discrete, schema.tuple, schema.api_key) == (True, True, "1234567asdfgh")
    assert schema.module == "7"
    assert schema.is_unscaled
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


TEXTS = [
    *("06:00", "14:30", "22:15", "010", "0x1f", "1e3", "1_000", "1.50", "7", "-0", ".5", "1."),
    *("no", "No", "on", "OFF", "yes", "y", "true", "True", "~", "null", ".inf", ".nan", "=", "<<"),
    *("2024-01-01", "2024-01-01 10:00:00", "1:20:30", "12e03", "0o17", "0b1", "1,5", "+1"),
]


def test_labels_are_the_texts_that_stand_there() -> None:
    schema = parse_schema(
        f"actions: {{a: {{labels: [{', '.join(TEXTS)}]}}}}".replace("1,5", "'1,5'")
    )

    assert schema.actions is not None
    assert schema.actions[0].labels == tuple(TEXTS)
    assert {type(label) for label in schema.actions[0].labels} == {str}


@pytest.mark.parametrize("text", [item for item in TEXTS if item not in ("~", "null")])
def test_text_is_the_text_that_stands_there(text: str) -> None:
    schema = parse_schema(
        f"observations:\n  a:\n    type: int\n    description: {text}\n"
        f"actions:\n  b:\n    description: {text}\nparameters:\n  api_key: {text}\n"
    )

    assert schema.observations is not None
    assert schema.actions is not None
    found = (schema.observations[0].description, schema.actions[0].description, schema.api_key)
    assert found == (text, text, text)
    assert {type(item) for item in found} == {str}


@pytest.mark.parametrize("name", ["on", "no", "Yes", "y", "null", "true", "_1"])
def test_name_is_the_text_that_stands_there(name: str) -> None:
    schema = parse_schema(
        f"observations: {{{name}: {{type: int}}}}\nactions: {{{name}: {{choices: 2}}}}"
    )

    assert schema.observations is not None
    assert schema.actions is not None
    assert (schema.observations[0].name, schema.actions[0].name) == (name, name)
    assert type(schema.observations[0].name) is str


@pytest.mark.parametrize("path", ["010", "1e3", "no", "1.5"])
def test_url_path_is_the_text_that_stands_there(path: str) -> None:
    assert parse_schema(f"parameters: {{url_path: {path}}}").url_path == path


@pytest.mark.parametrize("nothing", ["", "~", "null"])
def test_key_that_says_nothing_is_as_if_left_out(nothing: str) -> None:
    text = f"parameters: {{api_key: {nothing}, discrete: {nothing}, url_path: {nothing}}}"

    assert parse_schema(text) == ServerSchema()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("010", 10), ("-010", -10), ("1e3", 1000), ("1E+3", 1000), ("+7", 7), ("5.0", 5)],
        *[("1_000", 1000), ("0x10", 16), ("0o10", 8), ("0b11", 3), ("12e03", 12000), ("00", 0)],
    ],
)
def test_number_is_the_one_that_a_person_reads(text: str, value: int) -> None:
    schema = parse_schema(
        f"observations:\n  a: {{type: int, minimum: {text}, maximum: {text}, example: {text}}}\n"
        f"  b: {{type: 'List[int]', example: [{text}], minimum: {text}}}\n"
        f"  c: {{type: float, minimum: {text}, example: {text}}}\n"
        f"actions: {{d: {{low: {text}, high: [90000.5]}}}}"
    )

    assert schema.observations is not None
    assert schema.actions is not None
    a, b, c = schema.observations
    numbers = [a.minimum, a.maximum, a.example, b.minimum, *b.example]
    assert numbers == [value] * 5
    assert {type(number) for number in numbers} == {int}
    assert (c.minimum, c.example) == (value, value)
    assert schema.actions[0].low == (value,)


@pytest.mark.parametrize("text", ["010", "1e1", "10.0", "0xa"])
def test_count_is_the_number_that_a_person_reads(text: str) -> None:
    schema = parse_schema(
        f"observations: {{a: {{type: 'List[int]', min_items: {text}, max_items: {text}}}}}\n"
        f"actions: {{b: {{choices: {text}}}, c: {{dimensions: {text}}}}}"
    )

    assert schema.width == 10
    assert schema.actions is not None
    assert (schema.actions[0].choices, schema.actions[1].dimensions) == (10, 10)


@pytest.mark.parametrize(
    ("text", "value"), [("True", True), ("yes", True), ("ON", True), ("off", False), ("no", False)]
)
def test_truth_value_is_one_of_yamls_words(text: str, *, value: bool) -> None:
    schema = parse_schema(
        f"observations: {{a: {{type: bool, example: {text}}}}}\n"
        f"actions: {{b: {{low: 0, high: 1, normalized: {text}}}}}\n"
        f"parameters: {{discrete: {text}, tuple: {text}}}"
    )

    assert schema.observations is not None
    assert schema.actions is not None
    assert schema.observations[0].example is value
    assert schema.actions[0].normalized is value
    assert (schema.discrete, schema.tuple) == (value, value)


def test_values_by_an_explicit_tag_keep_their_type() -> None:
    schema = parse_schema(
        "observations: {a: {type: float, minimum: !!float 1, maximum: !!int 2, description: !!str 3}}"
        "\nparameters: {discrete: !!bool yes}"
    )

    assert schema.observations is not None
    a = schema.observations[0]
    assert (a.minimum, a.maximum, a.description, schema.discrete) == (1.0, 2, "3", True)


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
    "a number": ("7", ": expected the sections 'observations' and 'parameters', got text; put a space after each colon"),
    "not YAML": ("observations: {a", " line 1: is no YAML: a bracket is not closed; close { by } and [ by ]"),
    "unclosed quote": ("a: 'b", " line 1: is no YAML: a quote is not closed; close it at the end of the text"),
    "two documents": ("a: 1\n---\nb: 2", " line 2: is no YAML: a second document starts; remove the line '---'"),
    "control character": ("a: \x00", ": is no YAML: holds the control character 0; remove it"),
    "tab": ("observations:\n\ta: {type: int}", " line 2: a tab indents the line; YAML allows spaces only: replace it"),
    "tab after spaces": ("observations:\n  \ta: {type: int}", " line 2: a tab indents the line; YAML allows spaces only: replace it"),
    "bare list": ("observations:\n  a: {type: List[float], min_items: 2}", " line 2: List[...] inside {...} is no YAML; put it in quotes"),
    "duplicate observation": ("observations:\n  a: {type: int}\n  a: {type: int}", " line 3: the key 'a' is given twice; remove one"),
    "duplicate section": ("parameters: {}\nparameters: {}", " line 2: the key 'parameters' is given twice; remove one"),
    "unhashable key": ("{[a]: 1}", " line 1: is no YAML: a name is a mapping or a list; put text in braces or brackets in quotes"),
    "bad date": ("a: !!timestamp 2020-13-45", ": is no YAML: holds a number or date that can't be read; put text in quotes"),
    "too deep": ("a: " + "[" * 20_000, ": is nested too deeply; expected three levels"),
    # Keys.
    "unknown section": ("observation: {}", ": observation: unknown key; did you mean 'observations'?"),
    "strange section": ("x: {}", ": x: unknown key; expected one of observations, actions, module, parameters, policies, default, multi_agent"),
    "module in parameters": ("parameters: {module: left}", ": parameters.module: stands at the top of the file, beside 'parameters'; move it there"),
    "number for a module": ("module: [left]", ": module: expected text, got a list; put it in quotes"),
    "unknown parameter": ("parameters: {discret: True}", ": parameters.discret: unknown key; did you mean 'discrete'?"),
    "unknown key": ("observations: {a: {type: int, minitems: 3}}", ": observations.a.minitems: unknown key; did you mean 'min_items'?"),
    "strange key": ("observations: {a: {type: int, q: 3}}", ": observations.a.q: unknown key; expected one of type, min_items, max_items, description, example, minimum, maximum, one_hot, normalize, shape"),
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
    "colon missing before braces": ("observations:\n  speed {type: float}", ": observations: a name lacks its colon; write 'speed: {...}'"),
    "misspelt type": ("observations: {a: {typ: int}}", ": observations.a.typ: unknown key; did you mean 'type'? (and 1 more mistake)"),
    "no space before the type": ("observations: {a: {type:int}}", ": observations.a.type: put a space after the colon (and 1 more mistake)"),
    "no space before another name": ("observations:\n  b:{type: int}", ": observations: a name lacks its space; write 'b: {...}'"),
    "two colons": ("observations: {a: {type:: int}}", ": observations.a.type: remove the second colon (and 1 more mistake)"),
    # Types.
    "unknown type": ("observations: {a: {type: str}}", ": observations.a.type: expected one of int, float, bool, List[int], List[float], List[bool], got 'str'"),
    "unknown item type": ("observations: {a: {type: 'List[str]'}}", ": observations.a.type: expected one of int, float, bool, List[int], List[float], List[bool], got 'List[str]'"),
    "nested list": ("observations: {a: {type: 'List[List[int]]'}}", ": observations.a.type: expected one of int, float, bool, List[int], List[float], List[bool], got 'List[List[int]]'"),
    "type is a list": ("observations: {a: {type: [int]}}", ": observations.a.type: expected one of int, float, bool, List[int], List[float], List[bool], got ['int']"),
    "type is nothing": ("observations: {a: {type: }}", ": observations.a.type: expected one of int, float, bool, List[int], List[float], List[bool], got nothing"),
    "discrete as text": ("parameters: {discrete: 'True'}", ": parameters.discrete: expected a valid boolean, got 'True'"),
    "parameters as date": ("parameters: 2020-01-01", ": parameters: expected a mapping, such as 'discrete: True', with a space after each colon, got text"),
    "description as mapping": ("observations: {a: {type: int, description: {b: 1}}}", ": observations.a.description: expected text, got a mapping; put it in quotes"),
    "tuple as number": ("parameters: {tuple: 1}", ": parameters.tuple: expected a valid boolean, got 1"),
    # Names.
    "name with a blank": ("observations: {a b: {type: int}}", ": observations: the name 'a b' can't be used; expected letters, digits and underscores, not starting with a digit"),
    "name with a digit first": ("observations: {1a: {type: int}}", ": observations: the name '1a' can't be used; expected letters, digits and underscores, not starting with a digit"),
    "number as name": ("observations: {7: {type: int}}", ": observations: the name '7' can't be used; expected letters, digits and underscores, not starting with a digit"),
    "name with a line break": ('observations: {"a\\n": {type: int}}', ": observations: the name 'a\\n' can't be used; expected letters, digits and underscores, not starting with a digit"),
    "empty name": ("observations: {'': {type: int}}", ": observations: the name '' can't be used; expected letters, digits and underscores, not starting with a digit"),
    "action's name": ("actions: {a-b: {choices: 2}}", ": actions: the name 'a-b' can't be used; expected letters, digits and underscores, not starting with a digit"),
    # Lengths.
    "min over max": ("observations: {a: {type: 'List[int]', min_items: 3, max_items: 2}}", ": observations.a: min_items 3 is larger than max_items 2; swap them"),
    "length of a scalar": ("observations: {a: {type: int, max_items: 2}}", ": observations.a.max_items: is for lists, the type is int; remove it or make the type List[int]"),
    "negative length": ("observations: {a: {type: 'List[int]', min_items: -1}}", ": observations.a.min_items: expected a number from 0 to 1000000, got -1"),
    "no items": ("observations: {a: {type: 'List[int]', max_items: 0}}", ": observations.a.max_items: expected a number from 1 to 1000000, got 0"),
    "a billion items": ("observations: {a: {type: 'List[int]', min_items: 1000000000}}", ": observations.a.min_items: expected a number from 0 to 1000000, got 1000000000"),
    "length as text": ("observations: {a: {type: 'List[int]', min_items: '2'}}", ": observations.a.min_items: expected a valid integer, got '2'"),
    "length beyond any": ("observations: {a: {type: 'List[int]', min_items: 1" + "0" * 400 + "}}", ": observations.a.min_items: expected a valid integer, got an integer that is too large"),
    "shape beyond any": ("observations: {a: {type: 'List[int]', shape: [0x" + "f" * 400 + "]}}", ": observations.a.shape: expected a valid integer, got [4446241647709404462001681406...59538970957296160626364645375]"),
    "half a character": ('observations: {a: {type: int, description: "x\\ud800"}}', " line 1: holds half a character, such as \\ud83d; write the character itself, or as \\U0001F600"),
    "number of sixties by its tag": ("observations: {a: {type: float, minimum: !!float 1:30}}", ": is no YAML: holds a number or date that can't be read; put text in quotes"),
    "length as bool": ("observations: {a: {type: 'List[int]', min_items: True}}", ": observations.a.min_items: expected a valid integer, got True"),
    # Ranges.
    "minimum over maximum": ("observations: {a: {type: int, minimum: 3, maximum: 2}}", ": observations.a: minimum 3 is larger than maximum 2; swap them"),
    "minimum of a bool": ("observations: {a: {type: bool, minimum: 0}}", ": observations.a.minimum: is for numbers, the type is bool; remove it"),
    "minimum in quotes": ("observations: {a: {type: int, minimum: '1'}}", ": observations.a.minimum: expected a number, got '1'"),
    "minimum as time": ("observations: {a: {type: int, minimum: 14:30}}", ": observations.a.minimum: expected a number, got '14:30'"),
    "minimum as date": ("observations: {a: {type: int, minimum: 2024-01-01}}", ": observations.a.minimum: expected a number, got '2024-01-01'"),
    "minimum as text": ("observations: {a: {type: int, minimum: low}}", ": observations.a.minimum: expected a number, got 'low'"),
    "minimum as bool": ("observations: {a: {type: int, minimum: True}}", ": observations.a.minimum: expected a number, got True"),
    "infinite maximum": ("observations: {a: {type: float, maximum: .inf}}", ": observations.a.maximum: expected a finite number that fits a 32-bit float, got inf"),
    "maximum that is no number": ("observations: {a: {type: float, maximum: .nan}}", ": observations.a.maximum: expected a finite number that fits a 32-bit float, got nan"),
    "huge maximum": ("observations: {a: {type: int, maximum: 0x1" + "0" * 5000 + "}}", ": observations.a.maximum: expected a finite number that fits a 32-bit float, got an integer that is too large"),
    "endless digits": ("observations: {a: {type: int, maximum: 1" + "0" * 5000 + "}}", ": observations.a.maximum: expected a finite number that fits a 32-bit float, got inf"),
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
    "label as a mapping": ("actions: {a: {labels: [x: y]}}", ": actions.a.labels: expected text, got {'x': 'y'}; put it in quotes"),
    "empty label": ("actions: {a: {labels:\n  - x\n  -\n  }}", " line 2: is no YAML: a list item '- ...' stands where none can; put each on a line of its own below its name, or write [...]"),
    "nothing as label": ("actions:\n  a:\n    labels:\n      - x\n      -", ": actions.a.labels: expected text, got nothing; put it in quotes"),
    "number by its tag as label": ("actions: {a: {labels: [!!int 1, x]}}", ": actions.a.labels: expected text, got 1; put it in quotes"),
    "labels that hold themselves": ("actions: {a: {labels: &x [*x]}}", " line 1: is no YAML: an anchor holds itself; write its values out"),
    "labels and choices": ("actions: {a: {labels: [x, y], choices: 3}}", ": actions.a: gives 2 labels for 3 choices; give one a choice"),
    "unknown values": ("actions: {a: {values: q}}", ": actions.a.values: expected one of logits, probabilities, q_values, action, normal, squashed_normal, got 'q'"),
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
    "another normalization": ("parameters: {normalization: vec_normalize.pkl}", ": parameters.normalization: expected none, which says that observations were not scaled in training, got 'vec_normalize.pkl'; VecNormalize's statistics go beside the policy as vec_normalize.pkl"),
    "url_path with a scheme": ("parameters: {url_path: 'http://x/app'}", ": parameters.url_path: expected a path such as app/v1, got 'http://x/app'"),
    "url_path that climbs": ("parameters: {url_path: a/../b}", ": parameters.url_path: expected a path such as app/v1, got 'a/../b'"),
}  # fmt: skip


_TAB = "is no YAML: a tab stands outside quotes; YAML allows spaces only there: replace it"
_COLON = "is no YAML: text holds a colon followed by a space; put the text in quotes"
_COMMA = "is no YAML: a comma is missing, a bracket is not closed, or text with a colon lacks its quotes; mend it"
_MARK = "is no YAML: put text that starts with * or ! or & in quotes"
_INDENTED = (
    "is no YAML: the indentation is that of no line above; give all lines of one level the same"
)
_CLOSING = "is no YAML: a bracket closes that was not opened; remove it"
_MISSING = "is no YAML: a value is missing before a comma or bracket; add it, or put text that starts with one in quotes"
_BEHIND = "is no YAML: text goes on behind its closing quote; put the whole text in quotes, and write '' for a ' inside"
_ITEM = "is no YAML: a list item '- ...' stands where none can; put each on a line of its own below its name, or write [...]"
_BLOCK = "is no YAML: put text that starts with > or | in quotes"
_ABOVE = "is no YAML: the line is indented too far, or the one above lacks its colon; mend either"
_STRANGE = "is no YAML: text that starts with @, % or ` has to stand in quotes"
_SPACE = "a space of another kind indents the line; YAML allows plain ones only: replace it"
SLIPS = {
    "tab after a colon": ("a:\n  b:\t1", 2, _TAB),
    "tab after a colon in braces": ("a: {type:\tint}", 1, _TAB),
    "tab after a comma": ("a: [1,\t2]", 1, _TAB),
    "tab after a dash": ("-\ta", 1, _TAB),
    "tab at the end": ("a: b\t", 1, _TAB),
    "tab before a comment": ("a: b\t# c", 1, _TAB),
    "tab inside text": ("a: b\tc", 1, _TAB),
    "tab indents a list": (
        "a:\n\t- b",
        2,
        "a tab indents the line; YAML allows spaces only: replace it",
    ),
    "space of another kind": ("a:\n\u00a0\u00a0b: 1", 2, _SPACE),
    "wide space": ("a:\n\u3000b: 1", 2, _SPACE),
    "colon in text": ("a: in m/s: fast", 1, _COLON),
    "quote in text with a colon": ("a: don't: x", 1, _COLON),
    "too far": ("a: 1\n   b: 2", 2, _ABOVE),
    "first colon missing": ("speed\nb: 1", 2, _ABOVE),
    "last colon missing": (
        "b: 1\nspeed",
        2,
        "is no YAML: a line lacks its colon; write 'name: value'",
    ),
    "colon missing between": (
        "b: 1\nspeed\nc: 2",
        2,
        "is no YAML: a line lacks its colon; write 'name: value'",
    ),
    "indented between two levels": ("a:\n  b: 1\n c: 2", 3, _INDENTED),
    "behind braces": ("a: {b: 1}\n  c: 2", 2, _INDENTED),
    "names after a list": ("- a\nb: 1", 2, _INDENTED),
    "unclosed single quote": (
        "a: 'b\nc: 1\n",
        1,
        "is no YAML: a quote is not closed; close it at the end of the text",
    ),
    "unclosed double quote": (
        'a: "b\nc: 1\n',
        1,
        "is no YAML: a quote is not closed; close it at the end of the text",
    ),
    "unclosed bracket": (
        "a: [b",
        1,
        "is no YAML: a bracket is not closed; close { by } and [ by ]",
    ),
    "unclosed brace before a line": ("a: {b: 1\nc: 2", 1, _COMMA),
    "missing comma": ("a: {b: int min: 2}", 1, _COMMA),
    "bracket too many": ("a: [x]]", 1, _CLOSING),
    "brace too many": ("a: {b: 1}}", 1, _CLOSING),
    "comma too many": ("a: [x,,y]", 1, _MISSING),
    "comma first": ("a: , x", 1, _MISSING),
    "text starts with a star": ("a: *x", 1, _MARK),
    "star alone": ("a: *", 1, _MARK),
    "text starts with an ampersand": ("a: & b", 1, _MARK),
    "text starts with an exclamation mark": ("a: !x", 1, _MARK),
    "tag with a handle": ("a: !x!y", 1, _MARK),
    "text starts with an at sign": ("a: @x", 1, _STRANGE),
    "text starts with a backtick": ("a: `x`", 1, _STRANGE),
    "text starts with a percent sign": ("a: %x", 1, _STRANGE),
    "text starts with an arrow": ("a: >5 m", 1, _BLOCK),
    "text starts with a bar": ("a: |x", 1, _BLOCK),
    "text starts with a question mark": (
        "a: ? b",
        1,
        "is no YAML: put text that starts with ? in quotes",
    ),
    "backslash": (
        'a: "\\d"',
        1,
        "is no YAML: a backslash in double quotes starts an escape; put the text in single quotes",
    ),
    "apostrophe in quotes": ("a: 'it's'", 1, _BEHIND),
    "text behind quotes": ('a: "x" y', 1, _BEHIND),
    "item behind a name": ("a: - b", 1, _ITEM),
    "item in brackets": ("a: [- b]", 1, _ITEM),
    "item among names": ("a: 1\n- b", 2, _ITEM),
    "braces in braces": (
        "a: {{ x }}",
        1,
        "is no YAML: a name is a mapping or a list; put text in braces or brackets in quotes",
    ),
    "names after braces": (
        "{a: 1}\nb: 2",
        2,
        "is no YAML: the line belongs to nothing above it; give all sections the same indentation",
    ),
    "merge of a value": (
        "a: {<<: 1}",
        1,
        "is no YAML: '<<' merges a mapping; name one by its anchor, as in '<<: *name'",
    ),
}


@pytest.mark.parametrize(("text", "line", "message"), SLIPS.values(), ids=SLIPS)
def test_slip_in_yaml_has_its_own_remedy(text: str, line: int, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(text)

    assert caught.value.message == f"schema.yaml line {line}: {message}"


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_line_with_place_expectation_and_finding(text: str, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(text)

    assert caught.value.message == f"schema.yaml{message}"
    assert "\n" not in caught.value.message


SECRETS = {
    "a number by its tag": "parameters: {api_key: !!int 8112233}",
    "a list": "parameters: {api_key: [s8112233]}",
    "a date by its tag": "parameters: {api_key: !!timestamp 8112-12-31}",
    "a tab": "parameters:\n  api_key:\ts8112233",
    "a percent sign": "parameters: {api_key: %s8112233}",
    "an ampersand": "parameters: {api_key: & s8112233}",
    "a colon inside": "parameters:\n  api_key: s8112233: 8112",
    "text behind a quote": "parameters:\n  api_key: 's8112233' 8112",
    "no colon": "parameters:\n  discrete: True\n  api_key s8112233\n  url_path: a",
    "a block": "parameters:\n  api_key: >s8112233",
    "a backslash": 'parameters: {api_key: "\\s8112233"}',
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
    "no list of keys": "parameters: {api_keys: s8112233}",
    "a mapping of keys": "parameters: {api_keys: {plant: s8112233}}",
    "a list of texts": "parameters: {api_keys: [s8112233]}",
    "no name": "parameters: {api_keys: [{key: s8112233}]}",
    "a listed list": "parameters: {api_keys: [{name: plant, key: [s8112233]}]}",
    "a listed number": "parameters: {api_keys: [{name: plant, key: !!int 8112233}]}",
    "a listed key alone": "parameters: {api_keys: [{name: plant, s8112233}]}",
    "a listed umlaut": "parameters: {api_keys: [{name: plant, key: s8112233ü}]}",
    "a key in place of a hash": "parameters: {api_keys: [{name: plant, hash: s8112233}]}",
    "a key in place of a name": "parameters: {api_keys: [{name: s8112233/, key: k}]}",
    "a key in place of a scope": "parameters: {api_keys: [{name: p, key: k, scopes: [s8112]}]}",
    "a key that is there twice": (
        "parameters: {api_keys: [{name: a, key: s8112233}, {name: b, key: s8112233}]}"
    ),
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


def test_file_that_a_link_leads_to_is_the_missing_one(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").symlink_to("/srv/given/schema.yaml")

    with pytest.raises(SchemaError, match=r"^/srv/given/schema\.yaml: not found; write one"):
        read_schema(tmp_path / "schema.yaml")


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
        "module": "7",
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
            "wait": {"choices": 4, "values": "q_values"},
            "force": {"dimensions": 2, "low": [-2, -3], "high": [2, 3], "normalized": False},
        },
        "parameters": {
            "discrete": True,
            "tuple": True,
            "url_path": "app/v1",
            "normalization": "none",
        },
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


PLACE = 'place: {type: "List[int]", min_items: 2, max_items: 2}'
SPEED = f"observations: {{speed: {{type: float, maximum: 3}}, {PLACE}}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SPEED, None),
        (SPEED.replace("type: float", "type: float, description: fast"), None),
        (SPEED.replace("type: float", "type: float, example: 2.5"), None),
        (
            SPEED.replace("maximum: 3", "maximum: 5"),
            "has observations.speed.maximum: 5 in its schema.yaml in place of the 3",
        ),
        (
            SPEED.replace(", maximum: 3", ""),
            "has observations.speed.maximum: none in its schema.yaml in place of the 3",
        ),
        (
            f"observations: {{{PLACE}}}",
            "has no observations.speed in its schema.yaml, unlike that",
        ),
        (
            SPEED.replace("speed", "pace: {type: int}, speed"),
            "has observations.pace in its schema.yaml, unlike that",
        ),
        (
            f"observations: {{{PLACE}, speed: {{type: float, maximum: 3}}}}",
            "has the observations place, speed in its schema.yaml in place of the speed, place",
        ),
        ("parameters: {}", "has no observations in its schema.yaml, unlike that"),
    ],
)
def test_difference_of_observations_names_the_key_and_both_values(
    text: str, expected: str | None, tmp_path: Path
) -> None:
    schemas = []
    for name, content in (("ours.yaml", SPEED), ("theirs.yaml", text)):
        (tmp_path / name).write_text(content)
        schemas.append(read_schema(tmp_path / name))

    assert schemas[0].difference(schemas[1]) == expected
