"""Hypotheses held against evidence, without a policy's outputs where the evidence says all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.policy import PolicySignature
from policy_server.saved_model.evidence import Evidence, gather_evidence, probe_rows
from policy_server.saved_model.graph import LoadedGraph, load_graph
from policy_server.saved_model.identify import identify_actions
from policy_server.saved_model.runner import GraphRunner
from tests.saved_model.hand_built import Part, V1Policy, save_functions, tf


def gathered(folder: Path) -> tuple[LoadedGraph, Evidence, PolicySignature]:
    """Return a policy's evidence, and the signature that nothing is known of."""
    loaded = load_graph(folder)
    runner = GraphRunner(loaded, row_dtype=np.float32)
    evidence = gather_evidence(loaded, runner, probe_rows(4, np.float32))
    signature = PolicySignature(4, "float32", loaded.inputs, loaded.outputs, evidence.actions, None)
    return loaded, evidence, signature


def findings(policy: Callable[[Any], Mapping[str, Any]], folder: Path) -> tuple[str, ...]:
    """Return what is found of a policy that is written as a function."""
    save_functions(folder, policy, {"observations": ([None, 4], "float32")})
    identified = identify_actions(*gathered(folder))
    assert identified.components is None
    return identified.findings


@pytest.mark.parametrize("part", [Part(), Part("normal", (2,)), Part("squashed", (2,))])
def test_wrong_log_probabilities_disprove_a_family(part: Part, tmp_path: Path) -> None:
    loaded, evidence, signature = gathered(V1Policy(parts=(part,)).save(tmp_path / "m"))
    assert evidence.log_probability is not None

    wrong = replace(evidence, log_probability=evidence.log_probability - 0.1)

    assert identify_actions(loaded, evidence, signature).is_proved
    identified = identify_actions(loaded, wrong, signature)
    assert identified.components is None
    assert any("log-probability differs on" in line for line in identified.findings)


def test_wrong_modes_disprove_a_family(tmp_path: Path) -> None:
    loaded, evidence, signature = gathered(V1Policy().save(tmp_path / "m"))
    assert evidence.deterministic is not None

    wrong = replace(evidence, deterministic=2 - evidence.deterministic)

    identified = identify_actions(loaded, wrong, signature)
    assert "its deterministic action differs on" in identified.findings[0]


def test_draw_of_no_choice_disproves_a_family(tmp_path: Path) -> None:
    loaded, evidence, signature = gathered(V1Policy().save(tmp_path / "m"))

    wrong = replace(evidence, drawn=evidence.drawn + 3, deterministic=None)

    identified = identify_actions(loaded, wrong, signature)
    assert "its log-probability differs on 100% of the draws" in identified.findings[0]


def test_two_actions_of_one_best_value_are_equal(tmp_path: Path) -> None:
    loaded, evidence, signature = gathered(V1Policy().save(tmp_path / "m"))
    assert evidence.deterministic_inputs is not None
    tied = np.zeros_like(evidence.deterministic_inputs)

    last = replace(evidence, deterministic_inputs=tied, deterministic=np.full((len(tied), 1), 2.0))

    assert identify_actions(loaded, last, signature).is_proved


def test_distribution_that_is_none_is_told(tmp_path: Path) -> None:
    loaded, evidence, signature = gathered(V1Policy().save(tmp_path / "m"))
    assert evidence.inputs is not None
    broken = evidence.inputs.copy()
    broken[:, 0] = np.nan

    identified = identify_actions(loaded, replace(evidence, inputs=broken), signature)

    assert "the policy's outputs hold NaN" in identified.findings[0]


def test_policy_that_explores_by_noise_of_its_own_is_proved_by_its_modes(tmp_path: Path) -> None:
    built = V1Policy(parts=(Part("normal", (2,)),))
    loaded, evidence, signature = gathered(built.save(tmp_path / "m"))

    silent = replace(evidence, log_probability=np.zeros(len(evidence.drawn)))

    identified = identify_actions(loaded, silent, signature)
    assert identified.is_proved
    assert "the graph explores without its distribution" in identified.findings[0]


def test_too_few_draws_that_float32_can_tell_prove_nothing(tmp_path: Path) -> None:
    built = V1Policy(
        parts=(Part("normal", (2,)),),
        network=lambda _rows, values: tf.concat([values[:, :2] * 1e4, values[:, 2:] - 20], axis=1),
    )

    identified = identify_actions(*gathered(built.save(tmp_path / "m")))

    assert identified.components is None
    assert "its log-probability differs on 100% of the draws" in identified.findings[0]


def test_model_without_log_probability_or_switch_is_not_proved(tmp_path: Path) -> None:
    found = findings(
        lambda observations: {
            "actions_0": tf.argmax(observations, axis=1),
            "action_dist_inputs": observations,
        },
        tmp_path / "m",
    )

    assert found[0] == "not categorical(4): the model gives no log-probability to compare with"


def test_greedy_policy_without_anything_to_compare_is_not_proved(tmp_path: Path) -> None:
    found = findings(
        lambda observations: {
            "actions_0": tf.argmax(observations, axis=1),
            "action_dist_inputs": observations,
            "q_values": observations,
        },
        tmp_path / "m",
    )

    assert found[0] == "not greedy over categorical(4): the model gives nothing to compare with"


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (lambda rows: rows[:, 0], "action_dist_inputs is no matrix"),
        (lambda rows: rows * np.nan, "no probe gave finite outputs"),
        (lambda rows: rows[:, :3], "the graph does not tell the sizes of the action components"),
    ],
    ids=["vector", "nan", "width-that-fits-nothing"],
)
def test_inputs_that_cannot_be_read_are_told(
    inputs: Callable[[Any], Any], expected: str, tmp_path: Path
) -> None:
    found = findings(
        lambda observations: {
            "actions_0": tf.zeros([tf.shape(observations)[0], 2], tf.int64),
            "action_dist_inputs": inputs(observations),
        },
        tmp_path / "m",
    )

    assert expected in found[0]


def test_actions_that_share_hidden_parts_are_not_guessed(tmp_path: Path) -> None:
    found = findings(
        lambda observations: {
            "actions_0": tf.zeros([tf.shape(observations)[0]]),
            "actions_1": tf.zeros([tf.shape(observations)[0]]),
            "action_dist_inputs": observations,
        },
        tmp_path / "m",
    )

    assert found[0] == "the graph does not tell the sizes of the action components"


def test_equal_parts_are_tried_where_the_graph_hides_the_sizes(tmp_path: Path) -> None:
    def policy(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        parts = tf.reshape(observations, [-1, 2])
        drawn = tf.random.categorical(parts, 1)[:, 0]
        chance = -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=drawn, logits=parts)
        return {
            "actions_0": tf.reshape(drawn, [-1, 2]),
            "action_logp": tf.reduce_sum(tf.reshape(chance, [-1, 2]), axis=1),
            "action_dist_inputs": observations,
        }

    folder = save_functions(tmp_path / "m", policy, {"observations": ([None, 4], "float32")})

    identified = identify_actions(*gathered(folder))

    assert identified.family == "categorical(2) + categorical(2)"
    assert identified.is_proved


def test_noisy_network_keeps_what_is_known_but_no_distribution(tmp_path: Path) -> None:
    built = V1Policy(network=lambda _rows, logits: logits + tf.random.normal([3]))

    identified = identify_actions(*gathered(built.save(tmp_path / "m")))

    assert identified.components is None
    assert not identified.has_deterministic_action
    assert identified.findings[0] == "categorical(3) over a noisy network"
