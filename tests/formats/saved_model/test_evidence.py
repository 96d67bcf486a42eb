"""Probe observations, and what a policy answers to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policy_server.engine.proof import probe_rows
from policy_server.errors import ModelError
from policy_server.formats.saved_model.evidence import Evidence, GraphProbe
from policy_server.formats.saved_model.graph import load_graph
from policy_server.formats.saved_model.runner import GraphRunner
from tests.support.hand_built import Part, V1Policy, save_functions, tf


def gathered(folder: Path) -> Evidence:
    """Return what a policy answers to the probes."""
    loaded = load_graph(folder)
    runner = GraphRunner(loaded, row_dtype=np.float32)
    probe = GraphProbe(loaded, runner)
    return probe.gather(probe.answered(probe_rows(4, np.float32)))


def test_probes_are_the_same_at_every_call_and_of_many_kinds() -> None:
    rows = probe_rows(3, np.float64)

    assert (rows == probe_rows(3, np.float64)).all()
    assert rows.dtype == np.float64
    assert (rows.sum(axis=1) == 1).sum() >= 32
    assert (rows[-2:] == [[1, 1, 1], [0, 0, 0]]).all()


def test_evidence_holds_several_draws_and_one_pass_of_modes(tmp_path: Path) -> None:
    parts = (Part(), Part("multi_discrete", (2, 3)), Part("normal", (2,)))

    evidence = gathered(V1Policy(parts=parts).save(tmp_path / "m"))

    probes = len(probe_rows(4, np.float32))
    assert evidence.drawn.shape == (4 * probes, 5)
    assert evidence.inputs is not None
    assert evidence.inputs.shape == (4 * probes, 12)
    assert evidence.deterministic is not None
    assert evidence.deterministic.shape == (probes, 5)
    assert not evidence.is_noisy
    kinds = [(a.is_integer, a.columns, a.is_vector) for a in evidence.actions]
    assert kinds == [(True, 1, False), (True, 2, True), (False, 2, True)]


def test_probability_is_read_as_a_log_probability(tmp_path: Path) -> None:
    built = V1Policy(outputs=("action_prob", "action_dist_inputs"))

    evidence = gathered(built.save(tmp_path / "m"))

    assert evidence.log_probability is not None
    assert (evidence.log_probability < 0).all()


def test_probes_that_mask_every_action_are_left_out(tmp_path: Path) -> None:
    def mask(rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.where(rows[:, :1] > 0, logits, tf.float32.min)

    evidence = gathered(V1Policy(network=mask).save(tmp_path / "m"))

    probes = probe_rows(4, np.float32)
    assert len(evidence.drawn) == 4 * (probes[:, 0] > 0).sum()


def test_probes_on_which_the_graph_fails_are_left_out(tmp_path: Path) -> None:
    def picky(rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([tf.debugging.assert_less(rows, 1.5)]):
            return tf.identity(logits)

    evidence = gathered(V1Policy(network=picky).save(tmp_path / "m"))

    probes = probe_rows(4, np.float32)
    assert len(evidence.drawn) == 4 * (probes < 1.5).all(axis=1).sum()


@pytest.mark.parametrize("shape", [(), (3,)], ids=["scalar", "other-batch"])
def test_output_without_a_row_for_each_observation_is_refused(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    def policy(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"actions_0": tf.zeros(shape) * tf.reduce_sum(observations)}

    save_functions(tmp_path / "m", policy, {"observations": ([None, 4], "float32")})

    with pytest.raises(ModelError, match=r"the output actions_0 gives .* expected one row each"):
        gathered(tmp_path / "m")


def test_policy_without_distribution_inputs_has_draws_only(tmp_path: Path) -> None:
    evidence = gathered(V1Policy(outputs=(), has_exploring=False).save(tmp_path / "m"))

    assert evidence.inputs is None
    assert evidence.log_probability is None
    assert evidence.deterministic is None
    assert not evidence.is_noisy


def test_probes_of_an_images_width_take_no_more_than_their_rows() -> None:
    """One-hots of an image's width would take gigabytes if they were cut from a unit matrix."""
    wide = probe_rows(30_000, np.float32)

    assert wide.shape == (194, 30_000)
    assert (wide[160:192].sum(axis=1) == 1).all()
