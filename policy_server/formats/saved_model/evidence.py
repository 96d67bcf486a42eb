"""A policy's answers to probe observations, with which `identify` compares its family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.graph import (
    ACTIONS,
    DISTRIBUTION_INPUTS,
    LOG_PROBABILITY,
    PROBABILITY,
    LoadedGraph,
    reason_of,
)
from policy_server.formats.saved_model.runner import GraphRunner
from policy_server.policy import ActionOutput, Float64Array

__all__ = ["Evidence", "GraphProbe"]

_DRAWS = 4
_LARGEST_FINITE = 1e30
# float32 sums may differ in their last digits from run to run.
_REPEATABLE = 1e-4


@dataclass(frozen=True)
class Evidence:
    """The graph's answers to the probes.

    Attributes:
        actions: the action outputs in numeric order, as they were when run; empty where they can't
            be run.
        rows: float[B, observation_width], the probes that the policy answers.
        inputs: float[N, K], `action_dist_inputs` at each draw; None where the graph gives none.
        drawn: the actions it drew, float64[N, A].
        log_probability: float64[N] of them; None where it gives neither `action_logp` nor
            `action_prob`.
        deterministic: its actions with exploration off, float64[M, A]; None where it has no such
            switch.
        deterministic_inputs: `action_dist_inputs` of the same pass.
        is_noisy: the network gives other `action_dist_inputs` to the same observations at every
            pass.
    """

    actions: tuple[ActionOutput, ...]
    rows: NDArray[Any]
    inputs: NDArray[Any] | None
    drawn: Float64Array
    log_probability: Float64Array | None
    deterministic: Float64Array | None
    deterministic_inputs: NDArray[Any] | None
    is_noisy: bool

    @property
    def is_certain(self) -> bool:
        """Return whether the graph gives no log-probability of its draws, or always 0."""
        return self.log_probability is None or not self.log_probability.any()


@dataclass(frozen=True)
class _Pass:
    inputs: NDArray[Any] | None
    actions: Float64Array
    log_probability: Float64Array | None


class GraphProbe:
    """Runs a graph over probe observations, to judge its policy by the answers.

    Actions that need a Python callback of training are not run, only the tensors behind them.
    """

    def __init__(self, loaded: LoadedGraph, runner: GraphRunner) -> None:
        """Own the list of outputs to ask for; the runner owns the session.

        Args:
            loaded: the frozen graph.
            runner: runs it, with the distribution's inputs among its outputs where they are known.
        """
        names = [*runner.outputs]
        can_act = not loaded.has_callback
        self._has_switch = loaded.exploring is not None
        self._actions = [name for name in names if name.startswith(ACTIONS)] if can_act else []
        self._chance = next(
            (name for name in (LOG_PROBABILITY, PROBABILITY) if name in names and can_act), None
        )
        extra = [name for name in (DISTRIBUTION_INPUTS, self._chance) if name in names]
        self._names = [*self._actions, *filter(None, extra)]
        self._runner = runner

    def gather(self, rows: NDArray[Any]) -> Evidence:
        """Run the graph over probes: several draws, and once with exploration off.

        Args:
            rows: float[B, observation_width], the probes that the policy answers.

        Raises:
            ModelError: if an output does not have a row for each observation.
        """
        runs = [self._run(rows, is_exploring=True) for _ in range(_DRAWS)]
        passes = [self._read(run) for run in runs]
        sure = None
        if self._has_switch and self._actions:
            runs.append(self._run(rows, is_exploring=False))
            sure = self._read(runs[-1])
        inputs = [item.inputs for item in passes if item.inputs is not None]
        chances = [item.log_probability for item in passes if item.log_probability is not None]
        return Evidence(
            actions=tuple(_action_output(name, runs[0][name]) for name in self._actions),
            rows=rows,
            inputs=np.concatenate(inputs) if inputs else None,
            drawn=np.concatenate([item.actions for item in passes]),
            log_probability=np.concatenate(chances) if chances else None,
            deterministic=None if sure is None else sure.actions,
            deterministic_inputs=None if sure is None else sure.inputs,
            is_noisy=_is_noisy(
                [run[DISTRIBUTION_INPUTS] for run in runs if DISTRIBUTION_INPUTS in run]
            ),
        )

    def is_certain(self, rows: NDArray[Any]) -> bool:
        """Return whether the graph gives no log-probability of its draws, or always 0.

        Args:
            rows: float[B, observation_width], the probes that the policy answers.
        """
        if self._chance is None:
            return True
        logp = self._read(self._run(rows, is_exploring=True)).log_probability
        return logp is None or not logp.any()

    def answered(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Leave out the probes on which the graph fails, as a sampler does without a choice.

        Args:
            rows: float[B, observation_width], the probes.

        Raises:
            ModelError: if the policy fails on every observation of its own width.
        """
        try:
            self._run(rows, is_exploring=True)
        except ModelError:
            # A row of the wrong kind fails the whole batch; one that always fails says what is
            # wrong.
            kept = [row for row in rows if self._is_answered(row[None])]
            if not kept:
                raise
            return np.stack(kept)
        return rows

    def _is_answered(self, row: NDArray[Any]) -> bool:
        try:
            self._run(row, is_exploring=True)
        except ModelError:
            return False
        return True

    def _run(self, rows: NDArray[Any], *, is_exploring: bool) -> dict[str, NDArray[Any]]:
        try:
            arrays = self._runner.run(self._names, rows, is_exploring=is_exploring)
        except (tf.errors.OpError, ValueError) as error:
            raise ModelError(
                f"saved_model.pb: the policy fails on an observation of {rows.shape[1]} values: "
                f"{reason_of(error)}"
            ) from error
        for name, array in zip(self._names, arrays, strict=True):
            if array.ndim == 0 or len(array) != len(rows):
                raise ModelError(
                    f"saved_model.pb: the output {name} gives {array.shape} for {len(rows)} "
                    "observations; expected one "
                    "row each"
                )
        return dict(zip(self._names, arrays, strict=True))

    def _read(self, run: dict[str, NDArray[Any]]) -> _Pass:
        """Return a run without the rows that no policy has to answer, such as a mask of halves.

        A row whose distribution is one stays, whatever its log-probability: minus infinity speaks
        against a family that gives the action a chance.
        """
        columns = [
            run[name].reshape(len(run[name]), -1).astype(np.float64) for name in self._actions
        ]
        rows = len(next(iter(run.values())))
        actions = np.concatenate([np.empty((rows, 0)), *columns], axis=1)
        keep = np.isfinite(actions).all(axis=1)
        inputs, logp = run.get(DISTRIBUTION_INPUTS), None
        if inputs is not None:
            # As they are served: float32.
            inputs = inputs.astype(np.float32)
        if inputs is not None and inputs.ndim == 2:
            # float32 min is what RLlib adds to masked logits; twice that is -inf.
            largest = inputs.max(axis=1)
            keep &= (largest > -_LARGEST_FINITE) & (largest < np.inf) & ~np.isnan(largest)
        if self._chance is not None:
            values = run[self._chance].reshape(len(actions)).astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                logp = values if self._chance == LOG_PROBABILITY else np.log(values)
            if inputs is None:
                keep &= np.isfinite(logp)
        return _Pass(
            None if inputs is None else inputs[keep],
            actions[keep],
            None if logp is None else logp[keep],
        )


def _is_noisy(runs: Sequence[NDArray[Any]]) -> bool:
    return any(
        not np.allclose(run, runs[0], rtol=_REPEATABLE, atol=_REPEATABLE, equal_nan=True)
        for run in runs[1:]
    )


def _action_output(name: str, values: NDArray[Any]) -> ActionOutput:
    columns = int(np.prod(values.shape[1:], dtype=np.int64))
    return ActionOutput(name, values.dtype.kind in "iub", columns, values.ndim > 1)
