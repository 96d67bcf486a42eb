"""State that is told by the names of a graph's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from policy_server.formats.onnx.model_file import read_model
from policy_server.formats.onnx.state_pairs import named_pairs
from tests.support.onnx_models import node, tensor, write_model


def pairs_of(folder: Path, inputs: Sequence[str], outputs: Sequence[str]) -> list[tuple[str, str]]:
    path = write_model(
        folder,
        [node("Identity", [inputs[0]], [name]) for name in outputs],
        [tensor(name, [1, 4]) for name in inputs],
        [tensor(name, [1, 4]) for name in outputs],
    )
    return [(pair.before.name, pair.after) for pair in named_pairs(read_model({path.name: path}))]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["h_in", "c_in"], ["h_out", "c_out"]),
        (["state_ins"], ["state_outs"]),
        (["state_in_0", "state_in_1"], ["state_out_0", "state_out_1"]),
        (["recurrent_in"], ["recurrent_out"]),
        (["rnn_states"], ["output_rnn_states"]),
        (["out_state.1", "hidden_state.1"], ["out_state", "hidden_state"]),
        (["h0", "c0"], ["hn", "cn"]),
        (["hidden"], ["next_hidden"]),
        (["lstm_state"], ["new_lstm_state"]),
    ],
    ids=str,
)
def test_names_of_libraries_are_paired(
    before: Sequence[str], after: Sequence[str], tmp_path: Path
) -> None:
    found = pairs_of(tmp_path, ["obs", *before], ["actions", *after])

    assert found == list(zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["obs"], ["next_obs", "actions"]),
        (["obs", "prev_action"], ["action"]),
        (["obs", "last_reward"], ["reward", "logits"]),
        (["input"], ["output"]),
        (["obs_0", "obs_1"], ["logits_0", "logits_1"]),
        (["state"], ["state_value", "logits"]),
    ],
    ids=str,
)
def test_what_is_observed_is_no_state(
    inputs: Sequence[str], outputs: Sequence[str], tmp_path: Path
) -> None:
    assert pairs_of(tmp_path, inputs, outputs) == []
