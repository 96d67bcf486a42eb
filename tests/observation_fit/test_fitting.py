"""The observations of schema.yaml with the words of the policy's file, and held against it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from policy_server.errors import ObservationError, SchemaError
from policy_server.observation_fit import fit_observations
from policy_server.observations import ObservationSpace
from policy_server.policy import ObservationPart, PolicySignature
from policy_server.schema import ObservationField, parse_schema
from policy_server.schema_fit import check_schema_fits
from tests.support.fakes import components_of, signature_of

ALPHA = ObservationPart("alpha", "box", (2,))
BETA = ObservationPart("beta", "one_hot", (), (4,))
GAMMA = ObservationPart("gamma", "one_hot", (2,), (2, 3))
FLAGS = ObservationPart("flags", "binary", (2,))
IMAGE = ObservationPart("", "box", (2, 3, 1))
TWO = ObservationPart("two", "one_hot", (), (2,))
ONE = ObservationPart("one", "one_hot", (), (1,))


def signature_with(*parts: ObservationPart) -> PolicySignature:
    """Return the signature of a policy whose file tells these parts."""
    width = sum(part.columns for part in parts)
    signature = signature_of(components_of(("categorical", 2)), width=width)
    return replace(signature, observation_parts=parts)


def fitted(observations: str, *parts: ObservationPart) -> tuple[ObservationField, ...]:
    """Return the observations of a schema.yaml as a policy with these parts takes them."""
    schema = parse_schema(f"observations: {observations}")
    signature = signature_with(*parts)
    check_schema_fits(schema, signature)
    return fit_observations(schema, signature) or ()


def refusal(observations: str, *parts: ObservationPart) -> str:
    """Return why a schema.yaml does not fit a policy with these parts."""
    with pytest.raises(SchemaError) as caught:
        fitted(observations, *parts)
    return caught.value.message


def test_plain_integers_are_expanded_where_the_file_has_them_one_hot() -> None:
    fields = fitted(
        "{alpha: {type: 'List[float]'}, beta: {type: int}, "
        "gamma: {type: 'List[int]', min_items: 2, max_items: 2}}",
        *(ALPHA, BETA, GAMMA),
    )
    space = ObservationSpace(fields)

    row = space.parse_named(b'{"alpha": [0.5, 1], "beta": 3, "gamma": [1, 0]}')

    assert row == [0.5, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0]
    with pytest.raises(ObservationError):
        space.parse_named(b'{"alpha": [0.5, 1], "beta": 4, "gamma": [1, 0]}')


@pytest.mark.parametrize(
    ("observations", "parts", "sizes"),
    [
        pytest.param(
            "{beta: {type: 'List[int]', min_items: 4, max_items: 4}}", [BETA], [None], id="the row"
        ),
        pytest.param(
            "{beta: {type: 'List[int]'}, alpha: {type: 'List[float]'}}",
            [BETA, ALPHA],
            [None, None],
            id="open lists, one for each part",
        ),
        pytest.param(
            "{a: {type: int}, b: {type: 'List[int]', min_items: 3, max_items: 3}}",
            [GAMMA],
            [(2,), None],
            id="one integer of two expanded, the other not",
        ),
        pytest.param("{a: {type: int}, b: {type: int}}", [GAMMA], [(2,), (3,)], id="each"),
        pytest.param("{a: {type: int}, b: {type: int}}", [TWO], [None, None], id="row of two"),
        pytest.param("{a: {type: int}, b: {type: int}}", [TWO, TWO], [(2,), (2,)], id="two of two"),
        pytest.param("{a: {type: int}}", [ONE], [(1,)], id="the only integer"),
        pytest.param("{a: {type: int, one_hot: 4}}", [BETA], [(4,)], id="said in schema.yaml"),
        pytest.param(
            "{a: {type: int, one_hot: 2}}", [ALPHA], [(2,)], id="expanded ahead of the file"
        ),
        pytest.param(
            "{all: {type: 'List[float]', min_items: 6, max_items: 6}}",
            [BETA, ALPHA],
            [None],
            id="one list",
        ),
    ],
)
def test_each_field_is_read_as_the_row_has_it(
    observations: str, parts: list[ObservationPart], sizes: list[tuple[int, ...] | None]
) -> None:
    fields = fitted(observations, *parts)

    assert [field.one_hot for field in fields] == sizes
    assert sum(field.min_columns for field in fields) == sum(part.columns for part in parts)


def test_bounds_of_schema_yaml_stay_beside_the_files_word() -> None:
    (field,) = fitted("{beta: {type: int, minimum: 1, maximum: 2}}", BETA)
    space = ObservationSpace((field,))

    assert space.parse_named(b'{"beta": 1}') == [0, 1, 0, 0]
    for value in (0, 3):
        with pytest.raises(ObservationError):
            space.parse_named(json.dumps({"beta": value}).encode())


@pytest.mark.parametrize("kind", ["List[int]", "List[bool]"])
def test_zeros_and_ones_may_be_truth_values(kind: str) -> None:
    fields = fitted(
        f"{{flags: {{type: '{kind}', min_items: 2, max_items: 2}}, "
        "alpha: {type: 'List[float]'}}",
        *(FLAGS, ALPHA),
    )
    space = ObservationSpace(fields)

    for flags in ([0, 1], [False, True]):
        body = json.dumps({"flags": flags, "alpha": [0.5, 2]}).encode()
        assert space.parse_named(body) == [0, 1, 0.5, 2]
    with pytest.raises(ObservationError) as caught:
        space.parse_named(b'{"flags": [0, 2], "alpha": [0.5, 2]}')
    (item,) = caught.value.problems
    assert (item["loc"], item["msg"]) == (
        ["body", "flags", 1],
        "Input should be 0 or 1, or false or true",
    )


@pytest.mark.parametrize(
    "entry",
    ["shape: [2, 3, 1]", "shape: [6]", "min_items: 6, max_items: 6", "max_items: 6"],
    ids=["nested", "one level", "flat", "open"],
)
def test_image_is_nested_or_flat(entry: str) -> None:
    (field,) = fitted(f"{{image: {{type: 'List[int]', {entry}}}}}", IMAGE)

    assert field.items == 6


def test_fields_in_another_order_than_the_files_keys_are_told_it() -> None:
    message = refusal("{beta: {type: int}, alpha: {type: 'List[float]'}}", ALPHA, BETA)

    assert message == (
        "schema.yaml: observations: are in another order than in the policy's file; order them as "
        "alpha, beta"
    )


@pytest.mark.parametrize(
    ("observations", "parts", "message"),
    [
        pytest.param(
            "{a: {type: int, one_hot: 5}, b: {type: float}}",
            [BETA, ALPHA],
            "observations.a.one_hot: is 5, the policy's file has 4 there ('beta'); mend it or "
            "leave it out",
            id="another number of integers",
        ),
        pytest.param(
            "{a: {type: 'List[int]', one_hot: [3, 2]}}",
            [GAMMA],
            "observations.a.one_hot: is [3, 2], the policy's file has [2, 3] there ('gamma'); mend "
            "it or leave it out",
            id="integers in another order",
        ),
        pytest.param(
            "{a: {type: int, one_hot: 4, minimum: 1}}",
            [BETA],
            "observations.a.minimum: is 1, the policy's file has an integer from 0 to 3 there; "
            "remove it",
            id="another first integer",
        ),
        pytest.param(
            "{a: {type: 'List[int]', shape: [1, 2, 3]}}",
            [IMAGE],
            "observations.a.shape: is [1, 2, 3], the policy's file has [2, 3, 1] there; mend it",
            id="channels first",
        ),
        pytest.param(
            "{a: {type: 'List[float]', shape: [2], normalize: {mean: 0, std: 1}}}",
            [replace(ALPHA, is_normalized=True)],
            "observations.a.normalize: the policy's file normalizes observations already; remove "
            "it",
            id="normalized twice",
        ),
        pytest.param(
            "{a: {type: 'List[float]', shape: [3]}, b: {type: 'List[float]', shape: [3]}}",
            [BETA, ALPHA],
            "observations: don't follow the parts of the policy's observation; give, in this "
            "order, beta (an integer from 0 to 3), alpha (2 numbers)",
            id="cut across a vector",
        ),
        pytest.param(
            "{a: {type: int}, b: {type: int}, c: {type: int}}",
            [TWO, TWO],
            "observations: can be read in 2 ways, with integers as they are or expanded; give "
            "one_hot for each integer that is to be expanded",
            id="two readings",
        ),
        pytest.param(
            "{a: {type: int}}",
            [BETA, ALPHA],
            "gives 1 values, the policy expects 6; list each value of an observation once, in the "
            "order of training",
            id="parts that are missing",
        ),
    ],
)
def test_schema_that_contradicts_the_file_is_refused_with_both_figures(
    observations: str, parts: list[ObservationPart], message: str
) -> None:
    assert refusal(observations, *parts) == f"schema.yaml: {message}"


def test_many_plain_integers_are_read_at_once() -> None:
    names = [f"n{index}" for index in range(400)]
    parts = [ObservationPart(name, "one_hot", (), (3,)) for name in names]
    observations = "{" + ", ".join(f"{name}: {{type: int}}" for name in names) + "}"

    fields = fitted(observations, *parts)

    assert {field.one_hot for field in fields} == {(3,)}


def test_example_that_the_files_integers_do_not_have_is_refused() -> None:
    assert refusal("{beta: {type: int, example: 4}}", BETA) == (
        "schema.yaml: observations.beta.example: expected numbers that the policy takes, whole "
        "numbers from 0 to 3 (one-hot), got 4"
    )
