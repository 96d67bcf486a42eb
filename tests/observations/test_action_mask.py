"""The action mask beside an observation: rows, and what is no mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy_server.errors import ObservationError
from policy_server.observations import ActionMask
from policy_server.schema import ObservationField
from tests.support.fakes import components_of, signature_of

SIGNATURE = replace(
    signature_of(components_of(("categorical", 3), ("normal", 2), ("categorical", 2))),
    mask_name="legal",
)


def mask_of(*fields: ObservationField) -> ActionMask:
    """Return the mask of the signature above."""
    found = ActionMask.beside(fields, SIGNATURE)
    assert found is not None
    return found


def test_mask_has_the_choices_of_the_integer_actions_behind_the_observation() -> None:
    mask = mask_of(ObservationField("speed", "float"))

    assert (mask.name, mask.sizes, mask.first, mask.width) == ("legal", (3, 2), 2, 5)
    assert not mask.is_required
    assert mask.example == [1] * 5


def test_policy_without_a_mask_has_none() -> None:
    assert ActionMask.beside((), replace(SIGNATURE, mask_name=None)) is None


@pytest.mark.parametrize(
    ("kind", "example", "shown"),
    [("bool", None, [True] * 5), ("int", [0, 1, 1, 1, 0], [0, 1, 1, 1, 0])],
    ids=["made", "given"],
)
def test_listed_mask_is_required_and_shown_as_the_schema_says(
    kind: str, example: list[int] | None, shown: list[object]
) -> None:
    listed = ObservationField("legal", kind, is_list=True, example=example)  # type: ignore[arg-type]  # a parameter

    mask = mask_of(listed)

    assert mask.is_required
    assert mask.example == shown


@pytest.mark.parametrize(
    ("numbers", "given", "row"),
    [
        ([7.0, 8.0], None, [7.0, 8.0, 1, 1, 1, 1, 1]),
        ([7.0, 8.0], [1, 0, 0, 0, 1], [7.0, 8.0, 1, 0, 0, 0, 1]),
        ([7.0, 8.0, 0, 1, 0, 1, 1], None, [7.0, 8.0, 0, 1, 0, 1, 1]),
    ],
    ids=["absent", "beside", "behind"],
)
def test_row_ends_with_the_mask(
    numbers: list[float], given: list[float] | None, row: list[float]
) -> None:
    assert mask_of().row(numbers, given) == row


@pytest.mark.parametrize(
    ("masks", "place", "words"),
    [
        ([[1, 1, 1, 1, 1], [1, 2, 1, 1, 1]], ["body", 1, "legal", 1], "should be 0 or 1"),
        (
            [[1, 0, 0, 0, 1], [1, 1, 1, 0, 0]],
            ["body", 1, "legal"],
            "items 3 to 4, those of action 1",
        ),
    ],
    ids=["two", "forbids-all"],
)
def test_first_mistake_of_many_masks_is_named(
    masks: list[list[float]], place: list[object], words: str
) -> None:
    with pytest.raises(ObservationError) as caught:
        mask_of().check(np.array(masks), lambda row, column: ["body", row, "legal", column])

    (problem,) = caught.value.problems
    assert problem["loc"] == place
    assert words in problem["msg"]
