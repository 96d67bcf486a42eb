"""Inputs of an ONNX graph filled from rows."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.formats.onnx.plan import Feed


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_rows_beyond_the_inputs_type_give_no_warning(dtype: str) -> None:
    feed = Feed("obs", dtype, (2,), 0, 0)

    assert feed.of(np.array([[1e9, -np.inf]])).dtype == dtype
