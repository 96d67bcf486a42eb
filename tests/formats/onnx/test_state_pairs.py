"""State that is told by the names of a graph's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.onnx.model_file import read_model
from policy_server.formats.onnx.roles import find_roles
from policy_server.formats.onnx.state_pairs import named_pairs
from tests.support.onnx_models import node, tensor, weights, write_model


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
        (["h_0", "c_0"], ["h_n", "c_n"]),
        (["hidden"], ["next_hidden"]),
        (["lstm_state"], ["new_lstm_state"]),
        (["carry_in"], ["carry_out"]),
        (["state"], ["state_out"]),
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
        (["state", "goal"], ["logits", "next_state"]),
        (["prev_state", "goal"], ["logits", "state"]),
        (["policy_input"], ["policy_output"]),
        (["net_in", "goal"], ["net_out"]),
    ],
    ids=str,
)
def test_what_is_observed_is_no_state(
    inputs: Sequence[str], outputs: Sequence[str], tmp_path: Path
) -> None:
    assert pairs_of(tmp_path, inputs, outputs) == []


def recurrent(folder: Path, *results: str) -> Path:
    """Write an LSTM of PyTorch's kind, whose states have names that no library gives."""
    nodes = [
        node("Unsqueeze", ["obs", "first"], ["sequence"]),
        node("Unsqueeze", ["carried", "first"], ["carried_layers"]),
        node(
            "LSTM",
            ["sequence", "W", "R", "", "", "carried_layers", "kept"],
            ["all", "carried_after", "kept_after"],
            hidden_size=3,
        ),
        node("Squeeze", ["carried_after", "first"], ["one"]),
        node("Squeeze", ["kept_after", "first"], ["two"]),
        node("MatMul", ["one", "head"], ["logits"]),
        node("Unsqueeze", ["two", "first"], ["three"]),
    ]
    shapes = {"logits": [1, 2], "one": [1, 3], "three": [1, 1, 3]}
    return write_model(
        folder,
        nodes,
        [tensor("obs", [1, 4]), tensor("carried", [1, 3]), tensor("kept", [1, 1, 3])],
        [tensor(name, shapes[name]) for name in ("logits", *results)],
        {
            "W": weights(1, 12, 4),
            "R": weights(1, 12, 3),
            "head": weights(3, 2),
            "first": np.array([0]),
        },
    )


def test_states_of_a_layer_are_paired_whatever_their_names(tmp_path: Path) -> None:
    path = recurrent(tmp_path, "three", "one")

    roles = find_roles(read_model({path.name: path}), None)

    assert [(pair.before.name, pair.after) for pair in roles.states] == [
        ("carried", "one"),
        ("kept", "three"),
    ]
    assert roles.observation_width == 4


def test_state_of_a_layer_that_no_output_holds_is_refused(tmp_path: Path) -> None:
    path = recurrent(tmp_path, "one")

    with pytest.raises(ModelError) as caught:
        find_roles(read_model({path.name: path}), None)

    assert caught.value.message == (
        "policy.onnx: the input 'kept' is the state of its LSTM, and no output holds it after the "
        "step; export the network with both, such as h_in and h_out"
    )


def test_states_that_an_exporter_merged_are_refused(tmp_path: Path) -> None:
    nodes = [node("Identity", ["h_in"], ["h_out"]), node("Identity", ["h_in"], ["c_out"])]
    nodes.append(node("MatMul", ["h_in", "head"], ["logits"]))
    states = [tensor(name, [1, 3]) for name in ("h_in", "c_in", "h_out", "c_out")]
    path = write_model(
        tmp_path,
        nodes,
        [tensor("obs", [1, 3]), *states[:2]],
        [tensor("logits", [1, 2]), *states[2:]],
        {"head": weights(3, 2)},
    )

    with pytest.raises(ModelError) as caught:
        find_roles(read_model({path.name: path}), None)

    assert caught.value.message == (
        "policy.onnx: the state 'c_in' is read by nothing, and 'c_out' comes from 'h_in'; "
        "PyTorch's exporter merges inputs that are the same example tensor: export with a tensor "
        "for each"
    )


def test_observation_with_its_steps_before_its_rows_is_refused(tmp_path: Path) -> None:
    path = write_model(
        tmp_path,
        [node("Add", ["obs", "h_in"], ["logits"]), node("Add", ["logits", "h_in"], ["h_out"])],
        [tensor("obs", [1, "rows", 3]), tensor("h_in", [1, "rows", 3])],
        [tensor("logits", [1, "rows", 3]), tensor("h_out", [1, "rows", 3])],
    )

    with pytest.raises(ModelError, match="has its steps before its rows; export it with the rows"):
        find_roles(read_model({path.name: path}), None)


def test_state_that_is_reset_before_its_layer_is_paired_by_a_plain_name(tmp_path: Path) -> None:
    path = write_model(
        tmp_path,
        [
            node("Mul", ["state", "alive"], ["kept"]),
            node("GRU", ["obs", "W", "R", "", "", "kept"], ["", "next_state"], hidden_size=3),
            node("MatMul", ["next_state", "head"], ["logits"]),
        ],
        [tensor("obs", [1, 1, 4]), tensor("alive", [1, 1, 1]), tensor("state", [1, 1, 3])],
        [tensor("logits", [1, 1, 2]), tensor("next_state", [1, 1, 3])],
        {"W": weights(1, 9, 4), "R": weights(1, 9, 3), "head": weights(3, 2)},
    )

    (pair,) = named_pairs(read_model({path.name: path}))

    assert (pair.before.name, pair.after) == ("state", "next_state")


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        pytest.param(
            ["h_in"], ["logits", "h_out"], "no input is an observation, got 'h_in'", id="input"
        ),
        pytest.param(["obs", "h_in"], ["h_out"], "no output holds an action", id="output"),
    ],
)
def test_state_that_takes_the_last_place_is_named(
    inputs: Sequence[str], outputs: Sequence[str], message: str, tmp_path: Path
) -> None:
    path = write_model(
        tmp_path,
        [node("Identity", [inputs[-1]], [name]) for name in outputs],
        [tensor(name, [1, 4]) for name in inputs],
        [tensor(name, [1, 4]) for name in outputs],
    )

    with pytest.raises(ModelError) as caught:
        find_roles(read_model({path.name: path}), None)

    assert caught.value.message == (
        f"policy.onnx: {message}: 'h_in' and 'h_out' are taken for the state before and after a "
        "step; name what is none otherwise"
    )
