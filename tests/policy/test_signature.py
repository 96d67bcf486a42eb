"""The signature's own facts about an observation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy_server.policy import ActionOutput, ObservationPart, SignatureTensor
from tests.support.fakes import components_of, signature_of

(TWO,) = components_of(("categorical", 2))


def tensor(*shape: int | None) -> SignatureTensor:
    """Return an input with these dimensions behind the batch's."""
    return SignatureTensor("input", "float32", (None, *shape))


@pytest.mark.parametrize(
    ("parts", "inputs", "shape"),
    [
        pytest.param([], [tensor(2, 3, 1)], (2, 3, 1), id="of the only input"),
        pytest.param([], [tensor(2, 3, 1), tensor(1)], (2, 3, 1), id="beside a number"),
        pytest.param([], [tensor(6)], None, id="flat"),
        pytest.param([], [tensor(2, 3), tensor(3, 2)], None, id="of two inputs"),
        pytest.param([], [tensor(2, 2)], None, id="of another width"),
        pytest.param([], [tensor(None, 3)], None, id="open"),
        pytest.param([], [SignatureTensor("input", "float32", None)], None, id="unknown"),
        pytest.param([ObservationPart("", "box", (3, 2))], [tensor(6)], (3, 2), id="of the file"),
        pytest.param(
            [ObservationPart("a", "box", (3,)), ObservationPart("b", "box", (3,))],
            [tensor(2, 3)],
            None,
            id="several parts",
        ),
        pytest.param([ObservationPart("", "one_hot", (), (6,))], [tensor(6)], None, id="one-hot"),
    ],
)
def test_shape_of_an_observation_is_told_where_it_is_one_array(
    parts: list[ObservationPart],
    inputs: list[SignatureTensor],
    shape: tuple[int, ...] | None,
) -> None:
    known = replace(
        signature_of(components_of(("categorical", 2)), width=6),
        observation_parts=tuple(parts),
        inputs=tuple(inputs),
    )

    assert known.observation_shape == shape


def test_names_of_the_outputs_in_the_file_make_no_other_policy() -> None:
    output = ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False)
    known = signature_of(None, outputs=(output,))
    renamed = signature_of(None, outputs=(replace(output, name="actions"),))
    other = signature_of(None, outputs=(replace(output, is_integer=False),))

    assert known.difference(renamed) is None
    assert known.difference(other) == "gives 1 integer in place of the 1 number"


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ({"observation_width": 7}, {"observation_width": 6}, "takes 7 numbers in place of the 6"),
        (
            {"mask_name": "mask"},
            {},
            "takes an action mask of 2 choices, unlike that",
        ),
        (
            {"action_outputs": (ActionOutput("a", is_integer=True, columns=1, is_vector=False),)},
            {"action_outputs": (ActionOutput("b", is_integer=False, columns=2, is_vector=True),)},
            "gives 1 integer in place of the 2 numbers in a list",
        ),
        (
            {"components": components_of(("categorical", 2))},
            {"components": components_of(("categorical", 3))},
            "gives categorical(2) in place of the categorical(3)",
        ),
        (
            {"components": (replace(TWO, name="go", labels=("left", "right")),)},
            {"components": (TWO,)},
            "gives go (left, right) in place of the action without a name",
        ),
        (
            {"mask_name": "avail_actions"},
            {"mask_name": "action_mask"},
            "takes the action mask 'avail_actions' in place of the 'action_mask'",
        ),
        (
            {"observation_dtype": "uint8"},
            {},
            "takes whole numbers from 0 to 255 in place of the numbers from -3.4028236e+38 to "
            "3.4028236e+38",
        ),
        (
            {"observation_columns": (("int8", 1), ("uint8", 1))},
            {"observation_dtype": "int8"},
            "takes whole numbers from -128 to 127 and whole numbers from 0 to 255 from place 1 on "
            "in place of the whole numbers from -128 to 127",
        ),
    ],
    ids=["width", "mask", "actions", "family", "names", "name of the mask", "type", "columns"],
)
def test_difference_names_both_sides(
    mine: dict[str, object], theirs: dict[str, object], expected: str
) -> None:
    same = signature_of((TWO,))

    difference = replace(same, **mine).difference(replace(same, **theirs))  # type: ignore[arg-type]  # of each case

    assert difference == expected


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"observation_dtype": "float64"}, {}),
        ({"observation_columns": (("float64", 1), ("float32", 1))}, {}),
        (
            {"observation_columns": (("uint8", 1), ("uint8", 1))},
            {"observation_columns": (("uint8", 2),)},
        ),
    ],
    ids=["floats", "columns of floats", "neighbours of one type"],
)
def test_types_that_take_the_same_numbers_are_no_difference(
    mine: dict[str, object], theirs: dict[str, object]
) -> None:
    same = signature_of((TWO,))

    assert replace(same, **mine).difference(replace(same, **theirs)) is None  # type: ignore[arg-type]  # of each case
