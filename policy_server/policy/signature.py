"""The signature of a policy: its observations, its actions, and their distribution."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from policy_server.policy.observed_parts import ObservationPart, whole_shape
from policy_server.schema import Number, number_range

__all__ = [
    "ActionComponent",
    "ActionOutput",
    "Basis",
    "ComponentKind",
    "PolicySignature",
    "SignatureTensor",
    "StateRole",
    "StateTensor",
]

Basis = Literal["structure", "metadata", "names", "schema", "graph"]
StateRole = Literal["state", "previous_action", "previous_reward"]
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
class StateTensor:
    """One tensor of a recurrent policy's state: a part of the memory of an episode.

    Attributes:
        name: its name in the model, such as `h`.
        shape: its dimensions in one row; every number is 0 when an episode begins.
        role: `state` for numbers that the network itself gives after a step. `previous_action`
            for the action that was answered, in the numbers of the policy's own space (one for each
            action value, as the model's input takes it), and `previous_reward` for its reward:
            the network's result keeps their places, and the keeper of the memory writes them, or
            the policy itself the action (`PolicySignature.noted_places`).
    """

    name: str
    shape: tuple[int, ...]
    role: StateRole = "state"

    @property
    def size(self) -> int:
        """Return how many numbers it has in one row."""
        return math.prod(self.shape)


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
        has_unsquashed_mode: its deterministic action is the mean itself, without the tanh, which
            may lie where a squashed normal has no probability.
        name: its name in schema.yaml.
        labels: the names of the integer choices, in order.
        low: lower bounds in the environment's units, one a dimension.
        high: upper bounds in the environment's units, one a dimension.
        is_normalized: the policy's numbers lie in [-1, 1] and are rescaled to [low, high];
            otherwise only clipped.
        has_integers: the values of a deterministic component are integers.
        has_probability: False for an action that the file gives without the distribution that it
            comes from, so that its probability is unknown.
    """

    kind: ComponentKind
    size: int
    first_input: int
    first_column: int
    temperature: float = 1.0
    log_std_bounds: tuple[float | None, float | None] | None = None
    mean_bounds: tuple[float | None, float | None] | None = None
    std_floor: float = 0.0
    has_unsquashed_mode: bool = False
    name: str | None = None
    labels: tuple[str, ...] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    is_normalized: bool = True
    has_integers: bool = False
    has_probability: bool = True

    @property
    def is_integer(self) -> bool:
        """Return whether its actions are integers."""
        return self.kind == "categorical" or self.has_integers

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
        observation_columns: the type and the width of each of several inputs that make an
            observation, in order, where their types differ; else empty.
        observation_parts: the parts of the environment's observation in the order of their columns,
            where the policy's file tells them; else empty.
        inputs: the signature's inputs.
        outputs: the signature's outputs.
        action_outputs: the actions, in numeric order.
        components: the action distribution's components, ordered by column; None where the family
            is unknown.
        is_value_based: a greedy policy over Q values: it takes the best action with probability 1.
        basis: the source of the distribution: `structure` (read from the graph's structure, and the
            graph's draws and modes agree with it), `names` (the names of the file's outputs state
            it), `metadata` (the file describes it, and its test vectors agree), `schema`
            (schema.yaml states it, since the file does not), or `graph` (none is known: the graph's
            own outputs are answered).
        has_deterministic_action: the model can give its deterministic action.
        is_tuple_of_one: its only action is a tuple's only component, which the file hardly shows.
        module: its name in a file that may hold several policies; None where the file names none.
        memory: the tensors of the state that the policy steps, in the order of
            `PolicyInputs.state`; empty for a policy without memory.
        mask_name: the name of the action mask that the policy takes beside the observation: 1 or 0
            for each choice of its categorical components, in order. None where it takes none; a
            mask that is part of the observation is no mask in this sense.
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
    module: str | None = None
    memory: tuple[StateTensor, ...] = ()
    mask_name: str | None = None
    observation_parts: tuple[ObservationPart, ...] = ()
    observation_columns: tuple[tuple[str, int], ...] = ()
    findings: tuple[str, ...] = ()
    engine: Literal["numpy", "onnxruntime", "tensorflow"] = "tensorflow"
    engine_reason: str = ""

    @property
    def mask_sizes(self) -> tuple[int, ...]:
        """Return how many choices of the mask each categorical component has; empty for no mask."""
        if self.mask_name is None:
            return ()
        return tuple(part.size for part in self.components or () if part.kind == "categorical")

    @property
    def observation_shape(self) -> tuple[int, ...] | None:
        """Return the dimensions of an observation that is one array; None for any other.

        They are those of the environment where the file tells them, else those of the only input
        of more than one dimension that is filled by an observation's numbers, in C order.
        """
        if self.observation_parts:
            return whole_shape(self.observation_parts)
        found = [_static_shape(item) for item in self.inputs]
        shapes = [item for item in found if len(item) > 1]
        is_only = len(shapes) == 1 and math.prod(shapes[0]) == self.observation_width
        return shapes[0] if is_only else None

    @property
    def row_width(self) -> int | None:
        """Return how many numbers a row has: an observation's, and the mask's behind them."""
        if self.observation_width is None:
            return None
        return self.observation_width + sum(self.mask_sizes)

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

    def difference(self, other: PolicySignature) -> str | None:
        """Return how observations or actions differ from another policy's, in words.

        Args:
            other: the other policy's signature.

        Returns:
            The first difference, such as `takes 7 numbers in place of the 6`; None where a client
            of the one can be a client of the other.
        """
        if self.observation_width != other.observation_width:
            return (
                f"takes {self.observation_width} numbers in place of the {other.observation_width}"
            )
        if self.mask_sizes != other.mask_sizes:
            return _mask_difference(self.mask_sizes, other.mask_sizes)
        if self.mask_name != other.mask_name:
            return f"takes the action mask {self.mask_name!r} in place of the {other.mask_name!r}"
        mine_taken, their_taken = (_taken_numbers(item) for item in (self, other))
        if mine_taken != their_taken:
            return f"takes {_taken_words(mine_taken)} in place of the {_taken_words(their_taken)}"
        # Formats name their outputs as they do; no client sees the names.
        mine, theirs = (
            [replace(action, name="") for action in item.action_outputs] for item in (self, other)
        )
        if mine != theirs:
            return f"gives {_action_words(mine)} in place of the {_action_words(theirs)}"
        if self.components is None or other.components is None:
            return None
        parts, others = (
            [(part.size, part.columns, part.name, part.labels) for part in item.components or ()]
            for item in (self, other)
        )
        if parts == others or self.family != other.family:
            return (
                None if parts == others else f"gives {self.family} in place of the {other.family}"
            )
        return f"gives {_named(self)} in place of the {_named(other)}"

    @functools.cached_property
    def memory_width(self) -> int:
        """Return how many numbers the state of one episode has; 0 for a policy without memory."""
        return sum(tensor.size for tensor in self.memory)

    def places_of(self, role: StateRole) -> list[int]:
        """Return the indices of a role's numbers in the state of an episode.

        Args:
            role: the role of the state's tensors.
        """
        found: list[int] = []
        first = 0
        for tensor in self.memory:
            if tensor.role == role:
                found += range(first, first + tensor.size)
            first += tensor.size
        return found

    @functools.cached_property
    def noted_places(self) -> list[int]:
        """Return the places of the previous action, where the policy itself writes it.

        It does so where bounds cut its actions: the answered one does not tell the policy's own.
        """
        parts = self.components or ()
        is_cut = any(part.low is not None or part.high is not None for part in parts)
        return self.places_of("previous_action") if is_cut else []

    @functools.cached_property
    def whole_inputs(self) -> list[int]:
        """Return the columns of `action_dist_inputs` that are integer actions themselves."""
        parts = [part for part in self.components or () if part.has_integers]
        return [part.first_input + column for part in parts for column in range(part.size)]

    @property
    def row_dtype(self) -> type[np.float32] | type[np.float64]:
        """Return the type that observations travel in: wide enough for the policy's own."""
        return (
            np.float32
            if self.observation_dtype in ("float32", "float16", "bfloat16")
            else np.float64
        )


def _mask_difference(mine: tuple[int, ...], theirs: tuple[int, ...]) -> str:
    if not mine:
        return "takes no action mask, unlike that"
    one, other = (" + ".join(map(str, sizes)) for sizes in (mine, theirs))
    rest = f" in place of the {other}" if other else ", unlike that"
    return f"takes an action mask of {one} choices{rest}"


def _taken_numbers(signature: PolicySignature) -> list[tuple[int, Number, Number, bool]]:
    """Return the numbers that clients may send: from which one on, bounds, and if whole alone.

    Neighbours of the same numbers are one, so that no type counts by its name.
    """
    known = number_range(signature.observation_dtype)
    found: list[tuple[int, Number, Number, bool]] = []
    first = 0
    for dtype, width in signature.observation_columns or ((known.dtype, 0),):
        known = number_range(dtype)
        taken = (known.low, known.high, known.is_integer)
        if not found or found[-1][1:] != taken:
            found.append((first, *taken))
        first += width
    return found


def _taken_words(taken: Sequence[tuple[int, Number, Number, bool]]) -> str:
    words = [
        f"{'whole ' if is_whole else ''}numbers from {low:.8g} to {high:.8g}"
        f"{f' from place {first} on' if first else ''}"
        for first, low, high, is_whole in taken
    ]
    return " and ".join(words)


def _action_words(outputs: Sequence[ActionOutput]) -> str:
    """Return actions in words, such as `1 integer and 2 numbers in a list`."""
    words = [
        f"{item.columns} {'integer' if item.is_integer else 'number'}"
        f"{'' if item.columns == 1 else 's'}{' in a list' if item.is_vector else ''}"
        for item in outputs
    ]
    return " and ".join(words) or "no actions"


def _named(signature: PolicySignature) -> str:
    """Return the components with the names and labels that schema.yaml gives them."""
    return " + ".join(
        " ".join(filter(None, [item.name, f"({', '.join(item.labels)})" if item.labels else ""]))
        or "action without a name"
        for item in signature.components or ()
    )


def _static_shape(item: SignatureTensor) -> tuple[int, ...]:
    """Return a tensor's dimensions behind the batch's; () where one is open or none is known."""
    sizes = (item.shape or ())[1:]
    return tuple(filter(None, sizes)) if all(sizes) else ()
