"""A loaded policy: observations in, actions, probabilities and distributions out."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from policy_server.actions import ActionDistribution, noise
from policy_server.errors import DistributionError, ModelError, PolicyFailedError, UnsupportedAnswerError
from policy_server.policy import (
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyOutputs,
    PolicySignature,
    check_schema_fits,
    describe_components,
)
from policy_server.saved_model.bare import logits_output, read_from_schema
from policy_server.saved_model.graph import GraphRunner, LoadedGraph, load_graph, width_of
from policy_server.saved_model.identify import gather_evidence, identify_actions, probe_rows
from policy_server.saved_model.structure import DISTRIBUTION_INPUTS
from policy_server.schema import ServerSchema

__all__ = ["TensorFlowPolicy", "load_policy"]

logger = logging.getLogger(__name__)

_RECURRENT_HINTS = ("seq_lens",)
_WARM_UP_BATCHES = (1, 2, 8, 32)


def load_policy(folder: Path, schema: ServerSchema | None = None) -> TensorFlowPolicy:
    """Load the SavedModel in a folder, identify its family, prove it, and warm it up.

    Args:
        folder: holds saved_model.pb and variables/.
        schema: what schema.yaml says; it names actions, gives bounds, and says what a keras-only export leaves out.

    Returns:
        The policy, ready to answer.

    Raises:
        ModelError: if the file can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    loaded = load_graph(folder)
    width = width_of(loaded.observations)
    signature = PolicySignature(
        observation_width=width,
        observation_dtype=loaded.observations.dtype,
        inputs=loaded.inputs,
        outputs=loaded.outputs,
        action_outputs=(),
        components=None,
        recurrent_inputs=_recurrent_inputs(loaded),
    )
    if schema is not None and width is not None:
        # Before the policy runs: a wrong width has the clearer words here.
        check_schema_fits(replace(schema, discrete=None, tuple=None), signature)
    runner = GraphRunner(loaded, row_dtype=signature.row_dtype)
    probe_width = width if width is not None else (schema.width if schema is not None else None)
    if any(item.name.startswith("actions_") for item in loaded.outputs):
        signature = _prove(loaded, runner, signature, probe_width)
        distribution = DISTRIBUTION_INPUTS
    else:
        output = logits_output(loaded)
        signature, distribution = read_from_schema(signature, schema, output), output.name
    if schema is not None:
        check_schema_fits(schema, signature)
        if schema.actions is not None and signature.components is not None:
            described = describe_components(signature.components, schema.actions, schema.source)
            signature = replace(signature, components=described)
    policy = TensorFlowPolicy(runner, signature, distribution=distribution)
    if probe_width is not None:
        policy.warm_up(probe_width)
    return policy


def _recurrent_inputs(loaded: LoadedGraph) -> tuple[str, ...]:
    if not any(item.name in _RECURRENT_HINTS for item in loaded.inputs):
        return ()
    known = ("observations", "is_training", "timestep", "prev_action", "prev_reward", "seq_lens")
    return tuple(item.name for item in loaded.inputs if item.name not in known)


def _prove(loaded: LoadedGraph, runner: GraphRunner, signature: PolicySignature, width: int | None) -> PolicySignature:
    if width is None:
        raise ModelError(
            "saved_model.pb: leaves the width of an observation open; list the observations in schema.yaml, with max_items "
            "for every list, so that the policy can be checked"
        )
    evidence = gather_evidence(loaded, runner, probe_rows(width, signature.row_dtype))
    known = replace(
        signature, action_outputs=evidence.actions, has_deterministic_action=evidence.deterministic is not None
    )
    identified = identify_actions(loaded, evidence, known)
    return replace(
        identified,
        has_deterministic_action=identified.components is not None or known.has_deterministic_action,
    )


class TensorFlowPolicy:
    """The policy in this process. Not thread-safe; one call at a time."""

    def __init__(self, runner: GraphRunner, signature: PolicySignature, *, distribution: str) -> None:
        """Keep the parts.

        Args:
            runner: the frozen graph.
            signature: what is known of it.
            distribution: the output that holds the distribution's inputs.
        """
        self.signature = signature
        self._runner = runner
        self._distribution_output = distribution
        self._actions = (
            None
            if signature.components is None
            else ActionDistribution(signature.components, is_greedy=signature.is_value_based)
        )

    def warm_up(self, width: int) -> None:
        """Answer batches of several sizes, so that the first request finds everything traced and allocated.

        Args:
            width: how many numbers an observation has.
        """
        for size in _WARM_UP_BATCHES:
            rows = np.zeros((size, width), self.signature.row_dtype)
            try:
                self.infer(rows, is_deterministic=np.zeros(size, bool), seeds=np.full(size, -1, np.int64))
            except DistributionError:
                # An observation of zeros may mask every action; the graph has run all the same.
                logger.debug("warm-up observation masks every action")

    def infer(
        self, observations: NDArray[np.floating[Any]], *, is_deterministic: NDArray[np.bool_], seeds: Int64Array
    ) -> PolicyOutputs:
        """Answer B observations; see `PolicyBackend.infer`.

        Args:
            observations: float[B, observation_width].
            is_deterministic: bool[B]; True asks for the mode, False for a draw.
            seeds: int64[B]; the seed of a row's draw, or -1 for an independent one.

        Returns:
            The answers.

        Raises:
            PolicyFailedError: if the graph fails.
            DistributionError: if its outputs are no distribution.
            UnsupportedAnswerError: if the graph alone can't give what is asked.
        """
        try:
            if self._actions is None:
                return self._infer_by_graph(observations, is_deterministic=is_deterministic, seeds=seeds)
            inputs = self._runner.run([self._distribution_output], observations)[0]
        except tf.errors.OpError as error:
            logger.exception("policy failed")
            raise PolicyFailedError("the policy failed on this observation; the server's log has the reason") from error
        return _answer(self._actions, inputs.astype(np.float32, copy=False), is_deterministic, seeds)

    def _infer_by_graph(
        self, observations: NDArray[np.floating[Any]], *, is_deterministic: NDArray[np.bool_], seeds: Int64Array
    ) -> PolicyOutputs:
        if (seeds >= 0).any():
            raise UnsupportedAnswerError(
                "a seed needs a policy whose distribution is known; this one's actions are drawn inside its own graph"
            )
        if is_deterministic.any() and not self.signature.has_deterministic_action:
            raise UnsupportedAnswerError(
                "this policy has no deterministic action: its distribution could not be proved and its graph has no switch "
                "for exploration"
            )
        if not is_deterministic.any():
            return self._graph_outputs(observations, is_exploring=True)
        if is_deterministic.all():
            return self._graph_outputs(observations, is_exploring=False)
        drawn = self._graph_outputs(observations, is_exploring=True)
        sure = self._graph_outputs(observations, is_exploring=False)
        return PolicyOutputs(
            actions=np.where(is_deterministic[:, None], sure.actions, drawn.actions),
            probability=np.where(is_deterministic, sure.probability, drawn.probability),
            distribution=None,
        )

    def _graph_outputs(self, observations: NDArray[np.floating[Any]], *, is_exploring: bool) -> PolicyOutputs:
        names = [action.name for action in self.signature.action_outputs]
        chance = next((item.name for item in self.signature.outputs if item.name in ("action_prob", "action_logp")), None)
        values = self._runner.run([*names, *([chance] if chance else [])], observations, is_exploring=is_exploring)
        columns = [value.reshape(len(observations), -1).astype(np.float64) for value in values[: len(names)]]
        probability = np.full(len(observations), np.nan)
        if chance is not None:
            probability = values[-1].reshape(len(observations)).astype(np.float64)
            probability = np.exp(probability) if chance == "action_logp" else probability
        return PolicyOutputs(np.concatenate(columns, axis=1), probability, None)


def _answer(
    distribution: ActionDistribution, inputs: Float32Array, is_deterministic: NDArray[np.bool_], seeds: Int64Array
) -> PolicyOutputs:
    if is_deterministic.all():
        actions: Float64Array = distribution.mode(inputs)
    else:
        actions = distribution.sample(inputs, noise(distribution.components, seeds))
        if is_deterministic.any():
            actions[is_deterministic] = distribution.mode(inputs[is_deterministic])
    probability = distribution.probability(distribution.log_probability(inputs, actions))
    return PolicyOutputs(distribution.in_environment_units(actions), probability, inputs)
