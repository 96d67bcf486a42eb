"""A policy that TensorFlow computes: observations in, actions and probabilities out."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.engine.network import answered
from policy_server.engine.proof import probe_rows
from policy_server.errors import (
    DistributionError,
    ModelError,
    PolicyFailedError,
    UnsupportedAnswerError,
)
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.graph import (
    LOG_PROBABILITY,
    PROBABILITY,
    STATE,
    reason_of,
)
from policy_server.formats.saved_model.runner import GraphRunner
from policy_server.policy import (
    Int64Array,
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
    refuse_masks,
    refuse_state,
)

__all__ = ["TensorFlowPolicy"]

_WARM_UP_BATCHES = (1, 2, 8, 32)
# A session's call of a small graph takes a tenth of this, which is still more than a thread does.
_SECONDS_A_CALL = 1e-3
# Rounding of a sum of probabilities.
_LARGEST_LOG_PROBABILITY = 1e-5


class TensorFlowPolicy:
    """A `Policy` that TensorFlow computes."""

    def __init__(
        self, runner: GraphRunner, signature: PolicySignature, *, distribution: str
    ) -> None:
        """Own the runner's session, for as long as the policy is served.

        Args:
            runner: the frozen graph.
            signature: its inputs, outputs and distribution.
            distribution: the output that holds the distribution's inputs.
        """
        self.signature = signature
        self._runner = runner
        self._distribution_output = distribution
        self._seconds = _SECONDS_A_CALL
        names = {item.name for item in signature.outputs}
        self._chance_output = next((n for n in (LOG_PROBABILITY, PROBABILITY) if n in names), None)
        self._actions = (
            None
            if signature.components is None
            else ActionDistribution(signature.components, is_greedy=signature.is_value_based)
        )

    def warm_up(self) -> None:
        """Answer batches of several sizes, so that the first request is as fast as later ones.

        Raises:
            ModelError: if the policy answers no observation at all.
        """
        assert self.signature.observation_width is not None, "load_policy has found it"
        probes = probe_rows(self.signature.observation_width, self.signature.row_dtype)
        answered = []
        for size in _WARM_UP_BATCHES:
            started = time.perf_counter()
            answered.append(self._is_answered(probes[:size]))
            # The last one counts: earlier ones have TensorFlow's own preparations in them.
            self._seconds = max(_SECONDS_A_CALL, time.perf_counter() - started)
        if not any(answered) and not any(self._is_answered(row[None]) for row in probes):
            raise self._why_never_answered(probes[:1], len(probes))
        if self._actions is None and not self._gives_probabilities(probes):
            self._chance_output = None

    def explain_engine(self, reason: str) -> None:
        """Say in the signature why TensorFlow computes the policy.

        Args:
            reason: in words.
        """
        self.signature = replace(self.signature, engine_reason=reason)

    def _gives_probabilities(self, probes: NDArray[np.floating[Any]]) -> bool:
        """Return whether the graph gives any draw a log-probability other than 0.

        RLlib gives the log-probability 0 to every draw of an exploration by noise or by chance.
        """
        drawn = self._graph_outputs(PolicyInputs.of(self.answered(probes)), is_exploring=True)
        return bool(drawn.log_probability.any())

    def _is_answered(self, rows: NDArray[np.floating[Any]]) -> bool:
        try:
            self._infer(PolicyInputs.of(rows))
        except (DistributionError, tf.errors.OpError):
            return False
        return True

    def _why_never_answered(self, rows: NDArray[np.floating[Any]], tried: int) -> ModelError:
        always = f"on each of {tried} observations that were tried"
        try:
            self._infer(PolicyInputs.of(rows))
        except tf.errors.OpError as error:
            return ModelError(
                f"saved_model.pb: the policy fails {always} ({reason_of(error)}); export it again"
            )
        except DistributionError as error:
            return ModelError(
                f"saved_model.pb: the policy gives no answer {always} ({error.message}); its "
                "weights may be damaged: export an earlier checkpoint"
            )
        return ModelError(f"saved_model.pb: the policy answers nothing {always}; export it again")

    def answered(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return those observations that the policy answers.

        Args:
            rows: float[B, observation_width].
        """
        if self._is_answered(rows):
            return rows
        return np.stack([row for row in rows if self._is_answered(row[None])])

    def results(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the inputs of the action distribution, and the state after the step.

        Args:
            rows: float[B, observation_width + memory_width], all answered; each observation is
                followed by its state.

        Returns:
            float[B, K + memory_width].
        """
        width = self.signature.memory_width
        if not width:
            return self._runner.run([self._distribution_output], rows)[0]
        names = [self._distribution_output, STATE]
        found = self._runner.run(names, rows[:, :-width], state=rows[:, -width:])
        return np.concatenate(found, axis=1)

    def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations; see `Policy.infer`.

        Args:
            inputs: the observations, and the options of each.

        Returns:
            The answers.

        Raises:
            PolicyFailedError: if the graph fails.
            DistributionError: if its outputs are no distribution.
            UnsupportedAnswerError: if the graph alone can't give the answer that is asked for.
        """
        refuse_masks(inputs, self.signature)
        if not self.signature.memory:
            refuse_state(inputs)
        try:
            return self._infer(inputs)
        except tf.errors.OpError as error:
            raise PolicyFailedError(
                "the policy failed on this observation; the server's log has the reason"
            ) from error

    def seconds_for(self, rows: int) -> float:
        """Return about how long a call takes, that of 32 observations at the least.

        Args:
            rows: how many observations the call has.
        """
        return self._seconds * max(1.0, rows / _WARM_UP_BATCHES[-1])

    def _infer(self, asked: PolicyInputs) -> PolicyOutputs:
        if self._actions is None:
            self._check_graph_can(asked.is_deterministic, asked.seeds)
            return self._infer_by_graph(asked)
        return answered(self.results, self._actions, self.signature, asked)

    def _check_graph_can(self, is_deterministic: NDArray[np.bool_], seeds: Int64Array) -> None:
        if (seeds >= 0).any():
            raise UnsupportedAnswerError(
                "a seed needs a policy whose distribution is known; this one's actions are drawn "
                "inside its own graph"
            )
        if is_deterministic.any() and not self.signature.has_deterministic_action:
            reason = self.signature.findings[-1].partition(":")[0]
            raise UnsupportedAnswerError(f"this policy has no deterministic action: {reason}")

    def _infer_by_graph(self, asked: PolicyInputs) -> PolicyOutputs:
        # A draw of a policy over Q values is its best action: epsilon belongs to training.
        drawn = self._graph_outputs(asked, is_exploring=not self.signature.is_value_based)
        is_deterministic = asked.is_deterministic
        if not is_deterministic.any():
            return drawn
        sure = self._graph_outputs(asked, is_exploring=False)
        return PolicyOutputs(
            actions=np.where(is_deterministic[:, None], sure.actions, drawn.actions),
            # The graph calls every deterministic action certain.
            log_probability=np.where(is_deterministic, np.nan, drawn.log_probability),
            distribution=None,
            state=drawn.state,
        )

    def _graph_outputs(self, given: PolicyInputs, *, is_exploring: bool) -> PolicyOutputs:
        names = [action.name for action in self.signature.action_outputs]
        chance = self._chance_output
        asked = [
            *names,
            *([chance] if chance else []),
            *([STATE] if given.state is not None else []),
        ]
        values = self._runner.run(
            asked, given.observations, is_exploring=is_exploring, state=given.state
        )
        state = None if given.state is None else values.pop()
        rows = len(given)
        columns = [value.reshape(rows, -1).astype(np.float64) for value in values[: len(names)]]
        actions = np.concatenate(columns, axis=1)
        if not np.isfinite(actions).all():
            raise DistributionError(
                "the policy's actions hold NaN; check the observation and the model"
            )
        log_probability = np.full(rows, np.nan)
        if chance is not None and is_exploring:
            log_probability = values[-1].reshape(rows).astype(np.float64)
            if chance == PROBABILITY:
                with np.errstate(invalid="ignore", divide="ignore"):
                    log_probability = np.log(log_probability)
            # Some models' log-probability is none; better nothing than a wrong number.
            is_possible = log_probability > -np.inf
            if all(action.is_integer for action in self.signature.action_outputs):
                is_possible &= log_probability <= _LARGEST_LOG_PROBABILITY
            log_probability = np.where(is_possible, log_probability, np.nan)
        return PolicyOutputs(actions, log_probability, None, state)
