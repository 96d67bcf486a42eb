"""A family that the structure shows, held against evidence that agrees or contradicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.engine.proof import probe_rows
from policy_server.errors import ModelError
from policy_server.formats.saved_model.evidence import Evidence, GraphProbe
from policy_server.formats.saved_model.graph import LoadedGraph, load_graph
from policy_server.formats.saved_model.identify import identify_actions
from policy_server.formats.saved_model.runner import GraphRunner, GraphSampler
from policy_server.formats.saved_model.structure import (
    PolicyStructure,
    find_distribution_inputs,
    read_structure,
)
from policy_server.policy import PolicySignature
from tests.support.hand_built import Part, V1Policy, save_functions, tf

Gathered = tuple[LoadedGraph, Evidence, PolicyStructure, GraphSampler, PolicySignature]


def gathered(folder: Path) -> Gathered:
    """Return all that a policy is judged by."""
    loaded = load_graph(folder)
    runner = GraphRunner(loaded, row_dtype=np.float32)
    probe = GraphProbe(loaded, runner)
    evidence = probe.gather(probe.answered(probe_rows(4, np.float32)))
    assert evidence.inputs is not None
    structure = read_structure(
        loaded,
        runner,
        find_distribution_inputs(loaded, runner)[0],
        evidence.rows[:3],
        evidence.inputs.shape[1],
        is_certain=evidence.is_certain,
    )
    sampler = GraphSampler(runner, structure.root, evidence.rows[0])
    signature = PolicySignature(4, "float32", loaded.inputs, loaded.outputs, evidence.actions, None)
    return loaded, evidence, structure, sampler, signature


def why_not(policy: Gathered, evidence: Evidence) -> str:
    """Return why a family is not claimed."""
    loaded, _, structure, sampler, signature = policy
    identified = identify_actions(loaded, evidence, structure, sampler, signature)
    assert identified.components is None
    assert identified.basis == "graph"
    return identified.findings[-1]


@pytest.mark.parametrize("part", [Part(), Part("normal", (2,)), Part("squashed", (2,))])
def test_finding_says_what_was_held_against_what_and_how_often(part: Part, tmp_path: Path) -> None:
    identified = identify_actions(*gathered(V1Policy(parts=(part,)).save(tmp_path / "m")))

    assert identified.basis == "structure"
    assert identified.is_proved
    [finding] = identified.findings
    assert finding.startswith(f"proved as {identified.family}: by its structure; ")
    assert "modes equal on 194 of 194 probes (within " in finding
    assert " draws (within " in finding
    assert finding.endswith(" draws fit")


@pytest.mark.parametrize("part", [Part(), Part("normal", (2,)), Part("squashed", (2,))])
def test_wrong_log_probabilities_disprove_a_family(part: Part, tmp_path: Path) -> None:
    policy = gathered(V1Policy(parts=(part,)).save(tmp_path / "m"))
    evidence = policy[1]
    assert evidence.log_probability is not None

    wrong = replace(evidence, log_probability=evidence.log_probability - 0.1)

    assert "its log-probability differs on" in why_not(policy, wrong)


def test_draw_that_the_graph_calls_impossible_counts_against_the_family(tmp_path: Path) -> None:
    policy = gathered(V1Policy().save(tmp_path / "m"))
    evidence = policy[1]
    assert evidence.log_probability is not None
    impossible = evidence.log_probability.copy()
    impossible[::10] = -np.inf

    found = why_not(policy, replace(evidence, log_probability=impossible))

    assert "its log-probability differs on 78 of 776 draws" in found


def test_wrong_modes_disprove_a_family(tmp_path: Path) -> None:
    policy = gathered(V1Policy().save(tmp_path / "m"))
    evidence = policy[1]
    assert evidence.deterministic is not None

    wrong = replace(evidence, deterministic=2 - evidence.deterministic)

    assert "its deterministic action differs on" in why_not(policy, wrong)


def test_draw_of_no_choice_disproves_a_family(tmp_path: Path) -> None:
    policy = gathered(V1Policy().save(tmp_path / "m"))

    wrong = replace(policy[1], drawn=policy[1].drawn + 3, deterministic=None)

    assert "its log-probability differs on 776 of 776 draws" in why_not(policy, wrong)


def test_certainty_of_what_is_drawn_disproves_a_family(tmp_path: Path) -> None:
    policy = gathered(V1Policy(parts=(Part("normal", (2,)),)).save(tmp_path / "m"))

    silent = replace(policy[1], log_probability=np.zeros(len(policy[1].drawn)))

    assert "its log-probability is always 0" in why_not(policy, silent)


def test_frequencies_of_another_distribution_disprove_a_family(tmp_path: Path) -> None:
    loaded, evidence, structure, _, signature = gathered(V1Policy().save(tmp_path / "m"))
    runner = GraphRunner(loaded, row_dtype=np.float32)

    class Bold(GraphSampler):
        """Draws from the logits times two."""

        def run(
            self, names: Sequence[str], inputs: NDArray[Any], *, is_exploring: bool
        ) -> list[NDArray[Any]]:
            return super().run(names, inputs * 2, is_exploring=is_exploring)

    sampler = Bold(runner, structure.root, evidence.rows[0])

    identified = identify_actions(loaded, evidence, structure, sampler, signature)

    assert "its draws are distributed otherwise" in identified.findings[-1]
    assert ", on " in identified.findings[-1]


def test_two_actions_of_one_best_value_are_equal(tmp_path: Path) -> None:
    loaded, evidence, structure, sampler, signature = gathered(V1Policy().save(tmp_path / "m"))
    assert evidence.deterministic_inputs is not None
    tied = np.zeros_like(evidence.deterministic_inputs)

    last = replace(evidence, deterministic_inputs=tied, deterministic=np.full((len(tied), 1), 2.0))

    assert identify_actions(loaded, last, structure, sampler, signature).is_proved


def test_distribution_that_is_none_is_told(tmp_path: Path) -> None:
    policy = gathered(V1Policy().save(tmp_path / "m"))
    assert policy[1].inputs is not None
    broken = policy[1].inputs.copy()
    broken[:, 0] = np.nan

    assert "the policy's outputs hold NaN" in why_not(policy, replace(policy[1], inputs=broken))


def test_too_few_usable_probes_prove_nothing(tmp_path: Path) -> None:
    policy = gathered(V1Policy().save(tmp_path / "m"))
    evidence = policy[1]
    assert evidence.deterministic is not None
    assert evidence.deterministic_inputs is not None

    few = replace(
        evidence,
        deterministic=evidence.deterministic[:31],
        deterministic_inputs=evidence.deterministic_inputs[:31],
    )

    assert "only 31 probes can be used, of 32 that are needed" in why_not(policy, few)


def test_draws_that_float32_can_not_tell_prove_nothing(tmp_path: Path) -> None:
    built = V1Policy(
        parts=(Part("normal", (2,)),),
        network=lambda _rows, values: tf.concat([values[:, :2] * 1e4, values[:, 2:] - 20], axis=1),
    )

    policy = gathered(built.save(tmp_path / "m"))

    assert "draws can be used, of 32 that are needed" in why_not(policy, policy[1])


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (lambda rows: rows * np.nan, "no probe gave finite outputs"),
        (lambda rows: rows[:, :3], "a logit depends on the observation"),
    ],
    ids=["nan", "other-inputs"],
)
def test_inputs_that_cannot_be_read_are_told(
    inputs: Callable[[Any], Any], expected: str, tmp_path: Path
) -> None:
    def policy(observations: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return {
            "actions_0": tf.argmax(
                observations * 2 if "logit" in expected else inputs(observations), 1
            ),
            "action_dist_inputs": inputs(observations) + 0.5,
        }

    folder = save_functions(tmp_path / "m", policy, {"observations": ([None, 4], "float32")})
    found = gathered(folder)

    assert expected in why_not(found, found[1]) or "the network" in why_not(found, found[1])


def test_greedy_policy_needs_no_log_probability(tmp_path: Path) -> None:
    def policy(observations: tf.Tensor) -> Mapping[str, tf.Tensor]:
        values = observations * 2.0
        return {"actions_0": tf.argmax(values, axis=1), "action_dist_inputs": values}

    folder = save_functions(tmp_path / "m", policy, {"observations": ([None, 4], "float32")})

    identified = identify_actions(*gathered(folder))

    assert identified.family == "greedy over categorical(4)"
    assert identified.basis == "structure"


def test_noisy_network_keeps_what_is_known_but_no_distribution(tmp_path: Path) -> None:
    built = V1Policy(network=lambda _rows, logits: logits + tf.random.normal([3]))

    identified = identify_actions(*gathered(built.save(tmp_path / "m")))

    assert identified.components is None
    assert not identified.has_deterministic_action
    assert identified.findings[0] == "categorical(3) over a noisy network (RandomStandardNormal)"


def test_actions_behind_a_callback_that_nothing_else_gives_are_refused_in_words(
    tmp_path: Path,
) -> None:
    loaded, evidence, structure, sampler, signature = gathered(V1Policy().save(tmp_path / "m"))
    unknown = replace(structure, family=None, problem="the actions depend on a Python callback")

    with pytest.raises(ModelError, match=r"need a Python callback of training.* with Ray 0.8.6"):
        identify_actions(replace(loaded, has_callback=True), evidence, unknown, sampler, signature)
