"""The core types: a policy's signature, its inputs and outputs, and where it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import UnsupportedAnswerError

__all__ = [
    "ANSWER_KINDS",
    "DEFAULT_POLICY",
    "LARGEST",
    "NO_SEED",
    "ActionComponent",
    "ActionOutput",
    "AnswerKind",
    "Basis",
    "ComponentKind",
    "Float32Array",
    "Float64Array",
    "Int64Array",
    "Policy",
    "PolicyBackend",
    "PolicyInputs",
    "PolicyOutputs",
    "PolicySignature",
    "SignatureTensor",
    "refuse_memory_and_masks",
]

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

# The name of the policy that the routes without a name ask.
DEFAULT_POLICY = "default"

# Answers are 32-bit floats, and JSON has no infinity.
LARGEST = float(np.finfo(np.float32).max)
_LOG_LARGEST = math.log(LARGEST)

AnswerKind = Literal["predict", "predict_deterministic", "distribution"]
ANSWER_KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)
NO_SEED = -1
Basis = Literal["structure", "schema", "graph"]
ComponentKind = Literal["categorical", "normal", "squashed_normal", "deterministic"]


@dataclass(frozen=True)
class SignatureTensor:
    """An input or output of the model's signature.

    Attributes:
        name: its key in the signature, such as `observations` or `actions_0`.
        dtype: NumPy's name of its type.
        shape: its dimensions, None where they are open; None altogether where the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class ActionOutput:
    """One action as the environment takes it: an output `actions_i` of the policy.

    Attributes:
        name: its key in the signature.
        is_integer: whether its values are integers.
        columns: how many columns of `PolicyOutputs.actions` it takes.
        is_vector: whether it has a dimension of its own, (N, k), and not one value a row, (N,).
    """

    name: str
    is_integer: bool
    columns: int
    is_vector: bool


@dataclass(frozen=True)
class ActionComponent:
    """One independent part of the action distribution.

    Attributes:
        kind: the family, which tells how its columns of `action_dist_inputs` are read.
        size: the number of integer choices (categorical), or of dimensions (all others).
        first_input: the index of its first value in a row of `action_dist_inputs`.
        first_column: the index of its first column in `PolicyOutputs.actions`.
        temperature: the number that the graph divides the logits by before it draws.
        log_std_bounds: the bounds that the graph clips log_std to, None for an open side; None
            altogether for no clipping.
        mean_bounds: the bounds that the graph clips the mean to, or a deterministic component's
            action; None as in `log_std_bounds`.
        std_floor: the number that the graph adds to the deviation: std = exp(log_std) + std_floor.
        name: its name in schema.yaml.
        labels: the names of the integer choices, in order.
        low: lower bounds in the environment's units, one a dimension.
        high: upper bounds in the environment's units, one a dimension.
        is_normalized: the policy's numbers lie in [-1, 1] and are rescaled to [low, high];
            otherwise only clipped.
    """

    kind: ComponentKind
    size: int
    first_input: int
    first_column: int
    temperature: float = 1.0
    log_std_bounds: tuple[float | None, float | None] | None = None
    mean_bounds: tuple[float | None, float | None] | None = None
    std_floor: float = 0.0
    name: str | None = None
    labels: tuple[str, ...] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    is_normalized: bool = True

    @property
    def inputs(self) -> int:
        """Return how many values of `action_dist_inputs` it takes."""
        return 2 * self.size if self.kind in ("normal", "squashed_normal") else self.size

    @property
    def is_clipped(self) -> bool:
        """Return whether schema.yaml's bounds cut its distribution, so that they have a mass.

        A squashed normal that is rescaled never exceeds them.
        """
        if self.low is None or self.high is None:
            return False
        if self.kind == "squashed_normal":
            return not self.is_normalized and (max(self.low) > -1.0 or min(self.high) < 1.0)
        return self.kind == "normal"

    @property
    def columns(self) -> int:
        """Return how many columns of `PolicyOutputs.actions` it takes."""
        return 1 if self.kind == "categorical" else self.size


@dataclass(frozen=True)
class PolicySignature:
    """A policy's inputs, outputs and action distribution, with the checks that confirmed them.

    Attributes:
        observation_width: how many numbers one observation has; None where the model leaves it
            open.
        observation_dtype: NumPy's name of the type of the `observations` input.
        inputs: the signature's inputs.
        outputs: the signature's outputs.
        action_outputs: the actions, in numeric order.
        components: the action distribution's components, ordered by column; None where the family
            is unknown.
        is_value_based: a greedy policy over Q values: it takes the best action with probability 1.
        basis: the source of the distribution: `structure` (read from the graph's structure, and the
            graph's draws and modes agree with it), `schema` (schema.yaml states it, since the file
            does not), or `graph` (none is known: the graph's own outputs are answered).
        has_deterministic_action: the model can give its deterministic action.
        is_tuple_of_one: its only action is a tuple's only component, which the file hardly shows.
        recurrent_inputs: the names of the inputs that carry recurrent state, which starts at zero.
        engine: the library that computes the policy.
        engine_reason: why that library, in words.
        findings: how family and sizes were identified and checked, for the log and for
            `generate.py inspect`.
    """

    observation_width: int | None
    observation_dtype: str
    inputs: tuple[SignatureTensor, ...]
    outputs: tuple[SignatureTensor, ...]
    action_outputs: tuple[ActionOutput, ...]
    components: tuple[ActionComponent, ...] | None
    is_value_based: bool = False
    basis: Basis = "graph"
    has_deterministic_action: bool = True
    is_tuple_of_one: bool = False
    recurrent_inputs: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    engine: Literal["numpy", "tensorflow"] = "tensorflow"
    engine_reason: str = ""

    @property
    def is_proved(self) -> bool:
        """Return whether `components` were read from the graph and agree with its answers."""
        return self.basis == "structure"

    @property
    def family(self) -> str:
        """Return the family in words, such as `categorical(2)` or `normal(1) + categorical(3)`."""
        if self.components is None:
            return "unknown"
        parts = " + ".join(f"{part.kind}({part.size})" for part in self.components)
        return f"greedy over {parts}" if self.is_value_based else parts

    @property
    def row_dtype(self) -> type[np.float32] | type[np.float64]:
        """Return the type that observations travel in: wide enough for the policy's own."""
        return (
            np.float32
            if self.observation_dtype in ("float32", "float16", "bfloat16")
            else np.float64
        )


@dataclass(frozen=True, eq=False)
class PolicyInputs:
    """The inputs of one call of a policy: B observations and the options of each, in columns.

    It crosses to the replicas: arrays and nothing else.

    Attributes:
        observations: float[B, observation_width] in the signature's `row_dtype`.
        is_deterministic: bool[B]; True asks for the mode, False for a draw.
        seeds: int64[B]; the seed of a row's draw, or -1 for an independent one.
        wants_distribution: whether `PolicyOutputs.distribution` is asked for.
        state: the memory of each row's episode, float[B, ...] for each of the policy's state
            tensors in order; empty starts every row from the zero state.
        masks: bool[B, choices], the integer actions that are allowed; None allows all.
    """

    observations: Float32Array | Float64Array
    is_deterministic: NDArray[np.bool_]
    seeds: Int64Array
    wants_distribution: bool = True
    state: tuple[NDArray[Any], ...] = ()
    masks: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls,
        observations: Float32Array | Float64Array,
        *,
        is_deterministic: bool = False,
        seeds: Sequence[int] | Int64Array | None = None,
        wants_distribution: bool = True,
    ) -> PolicyInputs:
        """Return inputs that ask the same of every row.

        Args:
            observations: float[B, observation_width].
            is_deterministic: True asks for modes, False for draws.
            seeds: a seed for each row; None for independent draws.
            wants_distribution: whether the distribution is asked for.
        """
        rows = len(observations)
        return cls(
            observations,
            np.full(rows, is_deterministic),
            np.full(rows, NO_SEED) if seeds is None else np.asarray(seeds, np.int64),
            wants_distribution=wants_distribution,
        )

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
            tuple(values[start:stop] for values in self.state),
            None if self.masks is None else self.masks[start:stop],
        )


@dataclass(frozen=True, eq=False)
class PolicyOutputs:
    """The answers to B observations, in columns.

    Attributes:
        actions: float64[B, A], one column per action value in the order of `action_outputs`;
            integers are exact.
        log_probability: float64[B], of the whole action as it is answered: of a density, in the
            units of the answer, where actions are continuous; NaN where it is unknown.
        distribution: float32[B, K], the inputs of the action distribution; None where the family is
            unknown, or where the distribution was not asked for.
        state: the memory of each row's episode after this step, as `PolicyInputs.state`; empty for
            a policy without memory.
    """

    actions: Float64Array
    log_probability: Float64Array
    distribution: Float32Array | None
    state: tuple[NDArray[Any], ...] = ()

    def __len__(self) -> int:
        """Return the number of rows, B."""
        return len(self.actions)

    @property
    def probability(self) -> Float64Array:
        """Return float64[B]: probabilities or densities, cut to float32's largest number."""
        chances = np.exp(np.minimum(self.log_probability, _LOG_LARGEST))
        return np.minimum(chances, LARGEST)

    @classmethod
    def joined(cls, parts: Sequence[PolicyOutputs]) -> PolicyOutputs:
        """Return the answers of several calls as those of one, in order.

        Args:
            parts: at least one; either all of them have a distribution or none.
        """
        if len(parts) == 1:
            return parts[0]
        distributions = [part.distribution for part in parts if part.distribution is not None]
        states = zip(*(part.state for part in parts), strict=True)
        return cls(
            np.concatenate([part.actions for part in parts]),
            np.concatenate([part.log_probability for part in parts]),
            np.concatenate(distributions) if distributions else None,
            tuple(np.concatenate(values) for values in states),
        )


class Policy(Protocol):
    """Something that computes action distributions from observations, at once and in this thread.

    Every format's loader returns one. Calls come from one thread at a time.
    """

    @property
    def signature(self) -> PolicySignature:
        """Return the policy's signature."""

    def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations.

        Args:
            inputs: the observations, and the options of each.

        Returns:
            The answers, row by row in the order of the observations.

        Raises:
            PolicyServerError: if the policy can't answer a row, or can't give the kind asked for.
        """

    def seconds_for(self, rows: int) -> float:
        """Return about how many seconds a call takes; a caller may wait for a short one.

        Args:
            rows: how many observations the call has.
        """


class PolicyBackend(Protocol):
    """Where a policy computes, asynchronously: Ray Serve's replicas, or this process."""

    @property
    def signature(self) -> PolicySignature:
        """Return the signature of the policy that is served."""

    @property
    def capacity(self) -> int:
        """Return how many calls are computed at the same time: one a replica."""

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations with one call of the policy.

        Args:
            inputs: the observations, and the options of each.

        Returns:
            The answers, row by row in the order of the observations.

        Raises:
            PolicyServerError: with the status to answer: the policy failed, is overloaded or not
                ready.
        """

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now."""


def refuse_memory_and_masks(inputs: PolicyInputs) -> None:
    """Refuse inputs that a policy without memory, whose actions are always allowed, can't use.

    Args:
        inputs: the inputs of a call.

    Raises:
        UnsupportedAnswerError: if a state or a mask is given.
    """
    if inputs.state:
        raise UnsupportedAnswerError("this policy takes no state; ask without one")
    if inputs.masks is not None:
        raise UnsupportedAnswerError("this policy takes no action mask; ask without one")
