"""Recurrent graphs that take sequences of any length, and are asked for one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from policy_server.errors import ModelError
from policy_server.formats.known_formats import load_policy
from policy_server.policy import PolicyInputs
from tests.support.onnx_models import node, tensor, weights, write_model

SIZE = 4
PLAIN: Sequence[Any] = [node("Identity", ["obs"], ["x"])]
CONVOLVED: Sequence[Any] = [
    node("Transpose", ["obs"], ["columns"], perm=[0, 2, 1]),
    node("Conv", ["columns", "kernel"], ["mixed"], pads=[2, 0]),
    node("Transpose", ["mixed"], ["x"], perm=[0, 2, 1]),
]
CENTRED: Sequence[Any] = [
    node("ReduceMean", ["obs"], ["mean"], axes=[1], keepdims=1),
    node("Sub", ["obs", "mean"], ["x"]),
]
LAST: Sequence[Any] = [node("Squeeze", ["h_out", "first"], ["last"])]
EACH: Sequence[Any] = [
    node("Squeeze", ["all", "second"], ["rows"]),
    node("Transpose", ["rows"], ["last"], perm=[1, 0, 2]),
]
AVERAGED: Sequence[Any] = [node("ReduceMean", ["all"], ["last"], axes=[0, 1], keepdims=0)]


def recurrent(
    folder: Path, before: Sequence[Any], after: Sequence[Any], *, has_lengths: bool = False
) -> Path:
    """Write an LSTM for sequences, with operations before and after it."""
    lengths = "seq_lens" if has_lengths else ""
    states = [tensor(name, [1, "batch", SIZE]) for name in ("h_in", "c_in", "h_out", "c_out")]
    return write_model(
        folder,
        [
            *before,
            node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
            node(
                "LSTM",
                ["steps", "W", "R", "", lengths, "h_in", "c_in"],
                ["all", "h_out", "c_out"],
                hidden_size=SIZE,
            ),
            *after,
            node("MatMul", ["last", "head"], ["logits"]),
        ],
        [
            tensor("obs", ["batch", "steps", 3]),
            *([tensor("seq_lens", ["batch"], "int32")] if has_lengths else []),
            *states[:2],
        ],
        [tensor("logits", None), *states[2:]],
        {
            "W": weights(1, 4 * SIZE, 3),
            "R": weights(1, 4 * SIZE, SIZE, seed=1),
            "head": weights(SIZE, 2, seed=2),
            "kernel": weights(3, 3, 3, seed=3),
            "first": np.array([0]),
            "second": np.array([1]),
        },
    )


@pytest.mark.parametrize("after", [LAST, EACH], ids=["the last step", "each step"])
@pytest.mark.parametrize("has_lengths", [False, True], ids=["no lengths", "lengths"])
def test_steps_one_by_one_end_as_the_sequence_at_once(
    after: Sequence[Any], *, has_lengths: bool, tmp_path: Path
) -> None:
    path = recurrent(tmp_path, PLAIN, after, has_lengths=has_lengths)
    sequence = np.random.default_rng(3).standard_normal((1, 4, 3)).astype(np.float32)
    state: Any = np.zeros((1, 2 * SIZE), np.float32)

    policy = load_policy(tmp_path)
    for row in sequence[0]:
        outputs = policy.infer(PolicyInputs.of(row[None], is_deterministic=True, state=state))
        state = outputs.state

    zeros = np.zeros((1, 1, SIZE), np.float32)
    feeds = {"obs": sequence, "h_in": zeros, "c_in": zeros}
    if has_lengths:
        feeds["seq_lens"] = np.array([4], np.int32)
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], feeds)
    assert outputs.distribution is not None
    np.testing.assert_allclose(outputs.distribution[0], logits.reshape(-1, 2)[-1], atol=1e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(CONVOLVED, LAST, id="convolution before"),
        pytest.param(CENTRED, LAST, id="mean before"),
        pytest.param(PLAIN, AVERAGED, id="mean after"),
    ],
)
def test_operation_over_the_steps_of_a_sequence_is_refused(
    before: Sequence[Any], after: Sequence[Any], tmp_path: Path
) -> None:
    recurrent(tmp_path, before, after)

    with pytest.raises(ModelError, match="answers 3 steps at once otherwise than one after"):
        load_policy(tmp_path)
