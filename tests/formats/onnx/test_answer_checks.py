"""Holding a graph against its own answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.onnx.answer_checks import check_repeats

ROWS = np.ones((3, 2), np.float32)


def test_answer_that_differs_the_second_time_is_refused() -> None:
    answers = iter([np.zeros((3, 1)), np.array([[0.0], [0.0], [1e-9]])])

    def changing(_rows: NDArray[Any]) -> NDArray[Any]:
        return next(answers)

    with pytest.raises(ModelError, match="answers an observation otherwise each time"):
        check_repeats("policy.onnx", changing, ROWS)


def test_answers_that_are_no_number_are_the_same_twice() -> None:
    check_repeats("policy.onnx", lambda rows: rows * np.nan, ROWS)
