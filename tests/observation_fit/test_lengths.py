"""Lists of open length, narrowed by the policy's width."""

from __future__ import annotations

import pytest

from policy_server.observation_fit.lengths import fit_lists
from policy_server.schema import parse_schema


@pytest.mark.parametrize(
    ("entry", "width", "lengths"),
    [
        pytest.param("{type: 'List[int]', one_hot: 3}", 7, (2, 2), id="as many as fit"),
        pytest.param(
            "{type: 'List[int]', one_hot: 3, max_items: 9}", 13, (4, 4), id="with a bound"
        ),
        pytest.param("{type: 'List[int]', one_hot: 3}", 6, (0, 333_333), id="no number fits"),
        pytest.param("{type: 'List[float]', min_items: 1}", 6, (5, 5), id="plain numbers"),
    ],
)
def test_list_beside_a_number_is_as_long_as_the_width_leaves(
    entry: str, width: int, lengths: tuple[int, int | None]
) -> None:
    schema = parse_schema(f"observations: {{a: {entry}, b: {{type: float}}}}")

    fields = fit_lists(schema.observations, width)

    assert fields is not None
    assert (fields[0].min_items, fields[0].max_items) == lengths
