"""Which observations each number of a result depends on."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.engine.row_dependence import ROWS, dependence, is_row_wise, of_observations


@pytest.mark.parametrize("place", [None, 1, 2, 3, 4])
def test_normalisation_by_what_the_batch_gives_joins_its_rows(place: int | None) -> None:
    """None gives constants; else one of scale, offset, mean and variance is the batch's own."""
    sets = [of_observations(3).reshape(ROWS, 1, 1, 3), *(np.zeros(3, np.uint8) for _ in range(4))]
    values = [np.ones((ROWS, 1, 1, 3), np.float32), *(np.ones(3, np.float32) for _ in range(4))]
    if place is not None:
        sets[place] = np.bitwise_or.reduce(of_observations(3), axis=0)

    found = dependence(
        "FusedBatchNormV3",
        sets,
        values,
        np.ones((ROWS, 1, 1, 3), np.float32),
        {"is_training": False, "data_format": "NHWC", "epsilon": 1e-3},
    )

    assert is_row_wise(found) == (place is None)
