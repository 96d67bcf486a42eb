"""One call of a policy: observations with the options of each, and their answers, in columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import UnsupportedAnswerError
from policy_server.policy.signature import PolicySignature

__all__ = [
    "ANSWER_KINDS",
    "LARGEST",
    "LARGEST_SEED",
    "NO_SEED",
    "AnswerKind",
    "Float32Array",
    "Float64Array",
    "Int64Array",
    "PolicyInputs",
    "PolicyOutputs",
    "refuse_masks",
    "refuse_state",
]

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

# Answers are 32-bit floats, and JSON has no infinity.
LARGEST = float(np.finfo(np.float32).max)
_LOG_LARGEST = math.log(LARGEST)

AnswerKind = Literal["predict", "predict_deterministic", "distribution"]
ANSWER_KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)
NO_SEED = -1
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, eq=False)
class PolicyInputs:
    """The inputs of one call of a policy: B observations and the options of each, in columns.

    It crosses to the replicas: arrays and nothing else.

    Attributes:
        observations: float[B, observation_width] in the signature's `row_dtype`.
        is_deterministic: bool[B]; True asks for the mode, False for a draw.
        seeds: int64[B]; the seed of a row's draw, or -1 for an independent one.
        wants_distribution: whether `PolicyOutputs.distribution` is asked for.
        state: float32[B, memory_width], the memory of each row's episode, with the numbers of the
            policy's state tensors one after another; None starts every row from the zero state.
        masks: bool[B, choices], the integer actions that are allowed: the choices of each
            categorical component after those of the one before, as many as the signature's
            `mask_sizes` say. None allows all.
    """

    observations: Float32Array | Float64Array
    is_deterministic: NDArray[np.bool_]
    seeds: Int64Array
    wants_distribution: bool = True
    state: Float32Array | None = None
    masks: NDArray[np.bool_] | None = None

    def __reduce__(self) -> tuple[type[PolicyInputs], tuple[object, ...]]:
        """Pickle by the values alone: without the names of the fields it takes half the time."""
        values = (self.observations, self.is_deterministic, self.seeds)
        return type(self), (*values, self.wants_distribution, self.state, self.masks)

    @classmethod
    def of(
        cls,
        observations: Float32Array | Float64Array,
        *,
        is_deterministic: bool = False,
        seeds: Sequence[int] | Int64Array | None = None,
        wants_distribution: bool = True,
        state: Float32Array | None = None,
    ) -> PolicyInputs:
        """Return inputs that ask the same of every row.

        Args:
            observations: float[B, observation_width].
            is_deterministic: True asks for modes, False for draws.
            seeds: a seed for each row; None for independent draws.
            wants_distribution: whether the distribution is asked for.
            state: float32[B, memory_width]; None for the zero state.
        """
        rows = len(observations)
        return cls(
            observations,
            np.full(rows, is_deterministic),
            np.full(rows, NO_SEED) if seeds is None else np.asarray(seeds, np.int64),
            wants_distribution=wants_distribution,
            state=state,
        )

    @classmethod
    def of_rows(
        cls,
        rows: Float32Array | Float64Array,
        signature: PolicySignature,
        *,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
        wants_distribution: bool,
        state: Float32Array | None = None,
    ) -> PolicyInputs:
        """Return the inputs of rows that end with an action mask where the policy takes one.

        Args:
            rows: float[B, row_width] of the signature.
            signature: the policy's.
            is_deterministic: see the class.
            seeds: see the class.
            wants_distribution: see the class.
            state: see the class.
        """
        if signature.mask_name is None:
            return cls(rows, is_deterministic, seeds, wants_distribution, state)
        width = signature.observation_width
        masks = rows[:, width:] != 0
        return cls(rows[:, :width], is_deterministic, seeds, wants_distribution, state, masks)

    @property
    def rows(self) -> Float32Array | Float64Array:
        """Return the observations, each followed by its mask where there are masks."""
        if self.masks is None:
            return self.observations
        masks = self.masks.astype(self.observations.dtype)
        rows: Float32Array | Float64Array = np.concatenate([self.observations, masks], axis=1)
        return rows

    def __len__(self) -> int:
        """Return the number of rows, B."""
        return len(self.seeds)

    def part(self, start: int, stop: int) -> PolicyInputs:
        """Return the inputs of some rows.

        Args:
            start: the index of the first row.
            stop: the index after the last row.
        """
        return PolicyInputs(
            self.observations[start:stop],
            self.is_deterministic[start:stop],
            self.seeds[start:stop],
            self.wants_distribution,
            None if self.state is None else self.state[start:stop],
            None if self.masks is None else self.masks[start:stop],
        )


@dataclass(frozen=True, eq=False)
class PolicyOutputs:
    """The answers to B observations, in columns.

    Attributes:
        actions: float64[B, A], one column per action value in the order of `action_outputs`;
            integers are exact.
        log_probability: float64[B], of the whole action as it is answered: of a density, in the
            units of the answer, where actions are continuous; NaN where it is unknown, or where
            the answer is never drawn.
        distribution: float32[B, K], the inputs of the action distribution; None where the family is
            unknown, or where the distribution was not asked for.
        state: the memory of each row's episode after this step, as `PolicyInputs.state`; None where
            none was given.
    """

    actions: Float64Array
    log_probability: Float64Array
    distribution: Float32Array | None
    state: Float32Array | None = None

    def __reduce__(self) -> tuple[type[PolicyOutputs], tuple[object, ...]]:
        """Pickle by the values alone; see `PolicyInputs`."""
        return type(self), (self.actions, self.log_probability, self.distribution, self.state)

    def __len__(self) -> int:
        """Return the number of rows, B."""
        return len(self.actions)

    @property
    def probability(self) -> Float64Array:
        """Return float64[B]: probabilities or densities, cut to float32's largest number."""
        chances = np.exp(np.minimum(self.log_probability, _LOG_LARGEST))
        return np.minimum(chances, LARGEST)

    def probability_of(self, index: int) -> float:
        """Return one row's number of `probability`, at the cost of a single number.

        Args:
            index: the row's index.
        """
        logarithm: float = self.log_probability.item(index)
        return min(float(np.exp(min(logarithm, _LOG_LARGEST))), LARGEST)

    @classmethod
    def joined(cls, parts: Sequence[PolicyOutputs]) -> PolicyOutputs:
        """Return the answers of several calls as those of one, in order.

        Args:
            parts: at least one; either all of them have a distribution, and a state, or none.
        """
        if len(parts) == 1:
            return parts[0]
        distributions = [part.distribution for part in parts if part.distribution is not None]
        states = [part.state for part in parts if part.state is not None]
        return cls(
            np.concatenate([part.actions for part in parts]),
            np.concatenate([part.log_probability for part in parts]),
            np.concatenate(distributions) if distributions else None,
            np.concatenate(states) if states else None,
        )


def refuse_state(inputs: PolicyInputs) -> None:
    """Refuse inputs that a policy without memory can't use.

    Args:
        inputs: the inputs of a call.

    Raises:
        UnsupportedAnswerError: if a state is given.
    """
    if inputs.state is not None:
        raise UnsupportedAnswerError("this policy takes no state; ask without one")


def refuse_masks(inputs: PolicyInputs, signature: PolicySignature) -> None:
    """Refuse a mask that the policy does not take.

    Args:
        inputs: the inputs of a call.
        signature: the policy's.

    Raises:
        UnsupportedAnswerError: if the policy takes no mask, or one of another width.
    """
    if inputs.masks is None:
        return
    choices, given = sum(signature.mask_sizes), inputs.masks.shape[1]
    if not choices:
        raise UnsupportedAnswerError("this policy takes no action mask; ask without one")
    if given != choices:
        raise UnsupportedAnswerError(
            f"this policy's action mask has {choices} choices, not {given}; give each once"
        )
