"""A loaded policy: observations in, actions, probabilities and distributions out."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from policy_server.actions import ActionDistribution
from policy_server.errors import (
    DistributionError,
    ModelError,
    PolicyFailedError,
    UnsupportedAnswerError,
)
from policy_server.numpy_network import CompiledPolicy, NetworkPolicy
from policy_server.policy import (
    Int64Array,
    PolicyOutputs,
    PolicySignature,
    check_schema_fits,
    describe_components,
)
from policy_server.saved_model.bare import logits_output, read_from_schema
from policy_server.saved_model.compiling import compile_network, is_equal
from policy_server.saved_model.evidence import gather_evidence, probe_rows
from policy_server.saved_model.graph import (
    ACTIONS,
    DISTRIBUTION_INPUTS,
    LOG_PROBABILITY,
    PROBABILITY,
    LoadedGraph,
    load_graph,
    width_of,
)
from policy_server.saved_model.identify import identify_actions
from policy_server.saved_model.network import find_width
from policy_server.saved_model.runner import GraphRunner
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["LoadedPolicy", "TensorFlowPolicy", "load_policy"]

logger = logging.getLogger(__name__)

_WARM_UP_BATCHES = (1, 2, 8, 32)
# Rounding of a sum of probabilities.
_LARGEST_PROBABILITY = 1.0 + 1e-5


def load_policy(
    folder: Path, schema: ServerSchema | None = None, *, engine: Engine = "auto"
) -> LoadedPolicy:
    """Load the SavedModel in a folder, identify its family, prove it, and warm it up.

    Args:
        folder: holds saved_model.pb and variables/.
        schema: what schema.yaml says; it names actions, gives bounds, and says what a keras-only
            export leaves out.
        engine: `numpy` serves the network by NumPy, `tensorflow` by TensorFlow, `auto` by NumPy
            where that is proved equal.

    Returns:
        The policy, ready to answer.

    Raises:
        ModelError: if the file can't give a policy, or not by the engine that was asked for.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    loaded = load_graph(folder)
    signature = PolicySignature(
        observation_width=_width(loaded, schema),
        observation_dtype=loaded.observation_input.dtype,
        inputs=loaded.inputs,
        outputs=loaded.outputs,
        action_outputs=(),
        components=None,
        recurrent_inputs=loaded.recurrent_inputs,
    )
    if schema is not None:
        # Before the policy runs: a wrong width has the clearer words here.
        check_schema_fits(replace(schema, discrete=None, tuple=None), signature)
    if any(item.name.startswith(ACTIONS) for item in loaded.outputs):
        _check_inputs(loaded)
        runner = GraphRunner(loaded, row_dtype=signature.row_dtype)
        signature, distribution = _identify(loaded, runner, signature), DISTRIBUTION_INPUTS
    else:
        output = logits_output(loaded)
        runner = GraphRunner(loaded, row_dtype=signature.row_dtype)
        signature, distribution = read_from_schema(signature, schema, output), output.name
    policy = TensorFlowPolicy(runner, _described(signature, schema), distribution=distribution)
    policy.warm_up()
    if engine == "tensorflow":
        return policy
    compiled = _compiled(loaded, policy, distribution)
    if compiled is None and engine == "numpy":
        raise ModelError(
            "saved_model.pb: NumPy can't compute this policy, or not equally; set "
            "POLICY_SERVER_ENGINE to auto or tensorflow"
        )
    return policy if compiled is None else NetworkPolicy(compiled)


def _compiled(
    loaded: LoadedGraph, policy: TensorFlowPolicy, distribution: str
) -> CompiledPolicy | None:
    """Return the policy as NumPy operations, where they give what the graph gives."""
    width = policy.signature.observation_width
    if width is None or policy.signature.components is None:
        return None
    network = compile_network(loaded, distribution)
    if network is None:
        return None
    rows = policy.answered(probe_rows(width, policy.signature.row_dtype))
    try:
        with np.errstate(all="ignore"):
            ours = network.compile()(rows)
    except (ValueError, TypeError, IndexError, FloatingPointError) as error:
        logger.info("network_not_compiled", extra={"reason": str(error)})
        return None
    if not is_equal(ours, policy.distribution_inputs(rows)):
        logger.info("network_not_equal")
        return None
    text = f"served by NumPy: {len(network.steps)} operations, equal on {len(rows)} probes"
    findings = (*policy.signature.findings, text)
    return CompiledPolicy(replace(policy.signature, findings=findings, engine="numpy"), network)


def _width(loaded: LoadedGraph, schema: ServerSchema | None) -> int:
    """Return an observation's width: by the signature, else the weights, else schema.yaml."""
    width = width_of(loaded.observation_input)
    if width is None:
        width = find_width(loaded)
    if width is None and schema is not None:
        width = schema.width
    if width is None:
        raise ModelError(
            "saved_model.pb: leaves the width of an observation open, and its weights don't tell "
            "it; list the observations "
            "in schema.yaml, every list with min_items and max_items alike"
        )
    return width


def _check_inputs(loaded: LoadedGraph) -> None:
    """Refuse what zeros can't stand for."""
    names = loaded.recurrent_inputs
    if names and not any(item.name == "seq_lens" for item in loaded.inputs):
        raise ModelError(
            f"saved_model.pb: needs the input '{names[0]}' beside the observation; export a policy "
            "whose observation is one "
            "flat vector"
        )
    for item in loaded.feeds.values():
        if item.name in names and (item.shape is None or None in item.shape[1:]):
            raise ModelError(
                f"saved_model.pb: the input '{item.name}' is a memory of open length, as attention "
                "has, and the file does "
                "not hold the length that the policy was trained with; export a policy without "
                "memory, or with an LSTM"
            )


def _identify(
    loaded: LoadedGraph, runner: GraphRunner, signature: PolicySignature
) -> PolicySignature:
    assert signature.observation_width is not None, "load_policy has found it"
    rows = probe_rows(signature.observation_width, signature.row_dtype)
    evidence = gather_evidence(loaded, runner, rows)
    known = replace(
        signature,
        action_outputs=evidence.actions,
        has_deterministic_action=evidence.deterministic is not None,
    )
    identified = identify_actions(loaded, evidence, known)
    if identified.components is None:
        return identified
    return replace(identified, has_deterministic_action=True)


def _described(signature: PolicySignature, schema: ServerSchema | None) -> PolicySignature:
    if signature.recurrent_inputs:
        text = "recurrent: every answer starts from the zero state, without memory of earlier ones"
        signature = replace(signature, findings=(*signature.findings, text))
    if schema is None:
        return signature
    check_schema_fits(schema, signature)
    if schema.actions is None or signature.components is None:
        return signature
    components = describe_components(signature.components, schema.actions, schema.source)
    return replace(signature, components=components)


class TensorFlowPolicy:
    """The policy in this process. Not thread-safe; one call at a time."""

    def __init__(
        self, runner: GraphRunner, signature: PolicySignature, *, distribution: str
    ) -> None:
        """Keep the parts.

        Args:
            runner: the frozen graph.
            signature: what is known of it.
            distribution: the output that holds the distribution's inputs.
        """
        self.signature = signature
        self.compiled: CompiledPolicy | None = None
        self._runner = runner
        self._distribution_output = distribution
        self._actions = (
            None
            if signature.components is None
            else ActionDistribution(signature.components, is_greedy=signature.is_value_based)
        )

    def warm_up(self) -> None:
        """Answer batches of several sizes, so that the first request finds all in its place.

        Raises:
            ModelError: if the policy answers no observation at all.
        """
        assert self.signature.observation_width is not None, "load_policy has found it"
        probes = probe_rows(self.signature.observation_width, self.signature.row_dtype)
        answered = [self._is_answered(probes[:size]) for size in _WARM_UP_BATCHES]
        if not any(answered) and not any(self._is_answered(row[None]) for row in probes):
            raise ModelError(
                "saved_model.pb: the policy gives NaN, or fails, whatever the observation; its "
                "weights are damaged: export "
                "an earlier checkpoint"
            )

    def _is_answered(self, rows: NDArray[np.floating[Any]]) -> bool:
        size = len(rows)
        try:
            self._infer(rows, np.zeros(size, bool), np.full(size, -1, np.int64))
        except (DistributionError, tf.errors.OpError):
            return False
        return True

    def answered(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return those observations that the policy answers.

        Args:
            rows: float[B, observation_width].
        """
        if self._is_answered(rows):
            return rows
        return np.stack([row for row in rows if self._is_answered(row[None])])

    def distribution_inputs(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return what the action distribution is read from.

        Args:
            rows: float[B, observation_width], all answered.

        Returns:
            float[B, K].
        """
        return self._runner.run([self._distribution_output], rows)[0]

    def infer(
        self,
        observations: NDArray[np.floating[Any]],
        *,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
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
            return self._infer(observations, is_deterministic, seeds)
        except tf.errors.OpError as error:
            logger.exception("policy_failed")
            raise PolicyFailedError(
                "the policy failed on this observation; the server's log has the reason"
            ) from error

    def _infer(
        self,
        observations: NDArray[np.floating[Any]],
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
    ) -> PolicyOutputs:
        if self._actions is None:
            self._check_graph_can(is_deterministic, seeds)
            return self._infer_by_graph(observations, is_deterministic)
        inputs = self._runner.run([self._distribution_output], observations)[0]
        return self._actions.answer(
            inputs.astype(np.float32, copy=False), is_deterministic=is_deterministic, seeds=seeds
        )

    def _check_graph_can(self, is_deterministic: NDArray[np.bool_], seeds: Int64Array) -> None:
        if (seeds >= 0).any():
            raise UnsupportedAnswerError(
                "a seed needs a policy whose distribution is known; this one's actions are drawn "
                "inside its own graph"
            )
        if is_deterministic.any() and not self.signature.has_deterministic_action:
            reason = self.signature.findings[-1].partition(":")[0]
            raise UnsupportedAnswerError(f"this policy has no deterministic action: {reason}")

    def _infer_by_graph(
        self, observations: NDArray[np.floating[Any]], is_deterministic: NDArray[np.bool_]
    ) -> PolicyOutputs:
        # A draw of a policy over Q values is its best action: epsilon belongs to training.
        drawn = self._graph_outputs(observations, is_exploring=not self.signature.is_value_based)
        if not is_deterministic.any():
            return drawn
        sure = self._graph_outputs(observations, is_exploring=False)
        return PolicyOutputs(
            actions=np.where(is_deterministic[:, None], sure.actions, drawn.actions),
            # The graph calls every deterministic action certain.
            probability=np.where(is_deterministic, np.nan, drawn.probability),
            distribution=None,
        )

    def _graph_outputs(
        self, observations: NDArray[np.floating[Any]], *, is_exploring: bool
    ) -> PolicyOutputs:
        names = [action.name for action in self.signature.action_outputs]
        known = {item.name for item in self.signature.outputs}
        chance = next((name for name in (PROBABILITY, LOG_PROBABILITY) if name in known), None)
        asked = [*names, *([chance] if chance else [])]
        values = self._runner.run(asked, observations, is_exploring=is_exploring)
        rows = len(observations)
        columns = [value.reshape(rows, -1).astype(np.float64) for value in values[: len(names)]]
        actions = np.concatenate(columns, axis=1)
        if not np.isfinite(actions).all():
            raise DistributionError(
                "the policy's actions hold NaN; check the observation and the model"
            )
        probability = np.full(rows, np.nan)
        if chance is not None and is_exploring:
            probability = values[-1].reshape(rows).astype(np.float64)
            probability = np.exp(probability) if chance == LOG_PROBABILITY else probability
            if all(action.is_integer for action in self.signature.action_outputs):
                # Some models' log-probability is none; better nothing than a wrong number.
                is_possible = (probability >= 0.0) & (probability <= _LARGEST_PROBABILITY)
                probability = np.where(is_possible, probability, np.nan)
        return PolicyOutputs(actions, probability, None)


LoadedPolicy = TensorFlowPolicy | NetworkPolicy
