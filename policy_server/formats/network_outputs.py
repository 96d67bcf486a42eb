"""A network's outputs, and what their names and last operations tell of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

__all__ = [
    "BY_ENDING",
    "FEWEST_CHOICES",
    "Ending",
    "Form",
    "NetworkOutput",
    "ReadOutput",
    "actors",
    "form_by_name",
    "form_of",
    "may_act",
    "may_be_shares",
    "name_tells",
]

Ending = Literal["activation", "arg_max", "log_softmax", "one_hot", "softmax", "tanh"]
"""The last operation of an output, where it tells something of the output's meaning.

An `activation`, such as a ReLU, ends a layer of features, and no layer of logits.
"""

Form = Literal[
    "action", "log_std", "logits", "mean", "normal", "one_hot", "probabilities", "q_values", "std"
]
"""The meaning of an output's numbers: `normal` is the mean followed by the log of the deviation."""

BY_ENDING: Mapping[Ending, Form] = {
    "arg_max": "action",
    "log_softmax": "logits",
    "one_hot": "one_hot",
    "softmax": "probabilities",
    "tanh": "action",
}
_PREFIX = r"(?:output_|policy_|pi_|actor_|actions?_)?"
_BY_NAME: Mapping[Form, re.Pattern[str]] = {
    "logits": re.compile(rf"{_PREFIX}(?:logits?|log_probs|log_probabilities)(?:[._]?\d+)?"),
    "q_values": re.compile(r"q|q_?values|q_?vals|action_values"),
    "probabilities": re.compile(rf"{_PREFIX}(?:probs|probabilities)(?:[._]?\d+)?"),
    "mean": re.compile(rf"{_PREFIX}(?:means?|mu|loc)"),
    "log_std": re.compile(rf"{_PREFIX}log_?stds?"),
    "std": re.compile(rf"{_PREFIX}(?:std|stddev)"),
    "action": re.compile(r"(?:output_|deterministic_|continuous_|discrete_)*actions?(?:[._]?\d+)?"),
}
_SHARES = re.compile(
    r"(?:\w+_)?(?:weights?|allocations?|fractions?|portfolio|proportions?|shares?)"
)
# What a value function or a training step gives beside the actions.
_VALUES = r"(?:output_|state_)?(?:values?|v|vf|vf_preds|critic|baseline)(?:_?(?:out|preds?|head))?"
_CHANCES = re.compile(r"(?:action_)?(?:log_?prob|logp|prob|entropy|neglogp)")
_OTHERS = re.compile(rf"{_VALUES}|{_CHANCES.pattern}")

FEWEST_CHOICES = 2
"""One number is no choice among several."""


@dataclass(frozen=True)
class NetworkOutput:
    """An output of a network.

    Attributes:
        name: its name in the file.
        width: how many numbers it has in one row.
        is_integer: whether its type is an integer.
        is_vector: whether a row has a dimension of its own: (N, k), and not (N,).
        ending: the operation that it ends with; None for any that does not tell its meaning.
        row_length: how many numbers lie along its last dimension: (N, 2, 3) has two rows of 3;
            None where that is not known.
        joined: how many numbers each of the softmaxes has that it joins; empty where it joins none.
        is_inner: whether other outputs are computed from it.
        has_noise: whether it is computed from an input of noise, which the client gives.
        rows: its numbers for some observations, float[B, width], the same ones for all outputs of
            a network; None where it was not computed.
    """

    name: str
    width: int
    is_integer: bool = False
    is_vector: bool = True
    ending: Ending | None = None
    row_length: int | None = None
    joined: tuple[int, ...] = ()
    is_inner: bool = False
    has_noise: bool = False
    rows: NDArray[Any] | None = field(default=None, compare=False, repr=False)

    @property
    def has_several_rows(self) -> bool:
        """Return whether it has several rows of choices, each of an action of its own."""
        return self.row_length not in (None, self.width)


@dataclass(frozen=True)
class ReadOutput:
    """An output that the actions come from.

    Attributes:
        output: the output.
        form: its meaning.
    """

    output: NetworkOutput
    form: Form

    @property
    def width(self) -> int:
        """Return how many numbers of `action_dist_inputs` it gives: a one-hot vector its index."""
        return 1 if self.form == "one_hot" else self.output.width


def name_tells(name: str) -> bool:
    """Return whether a name tells what an output holds, such as actions or a value.

    Args:
        name: the output's, or that of the layer which gives it.
    """
    known = [*_BY_NAME.values(), _OTHERS]
    return any(pattern.fullmatch(_plain(name)) for pattern in known)


def may_be_shares(name: str) -> bool:
    """Return whether an output may be shares of a whole by its name, such as a portfolio's weights.

    Args:
        name: the output's.
    """
    return form_by_name(name) == "action" or _SHARES.fullmatch(_plain(name)) is not None


def may_act(name: str) -> bool:
    """Return whether an output may hold an action by its name, unlike a value's.

    Args:
        name: the output's.
    """
    return _OTHERS.fullmatch(_plain(name)) is None


def form_by_name(name: str) -> Form | None:
    """Return the meaning that an output's name tells; None for a name that tells none.

    Args:
        name: the output's.
    """
    return next((form for form, it in _BY_NAME.items() if it.fullmatch(_plain(name))), None)


def form_of(item: NetworkOutput, *, is_continuous: bool = False) -> Form | None:
    """Return the meaning that an output tells itself, by its end or its name; None for none.

    Args:
        item: the output.
        is_continuous: schema.yaml states continuous actions: a softmax gives shares of a whole.
    """
    if item.is_integer:
        return "action"
    named = form_by_name(item.name)
    # A tanh may also bound a mean, or logits.
    if item.ending in (None, "activation") or (item.ending == "tanh" and named is not None):
        return named
    assert item.ending is not None, "looked at above"
    # Continuous shares of a whole, such as the weights of a portfolio, end with a softmax too.
    return "action" if item.ending == "softmax" and is_continuous else BY_ENDING[item.ending]


def actors(outputs: Sequence[NetworkOutput]) -> list[NetworkOutput]:
    """Return the outputs that may hold actions, as far as their names and ends tell."""
    found = [
        item
        for item in outputs
        if may_act(item.name)
        # The probability of a draw is one number; a softmax has one for each choice.
        or (
            _CHANCES.fullmatch(_plain(item.name))
            and item.ending in ("arg_max", "log_softmax", "one_hot", "softmax")
        )
    ]
    # One number may be a value; several have a meaning that schema.yaml can state.
    return found or [item for item in outputs if item.width >= FEWEST_CHOICES]


def _plain(name: str) -> str:
    """Return an output's name as the patterns have it: lower-case, without the port."""
    return re.sub(r":\d+$", "", name).rpartition("/")[2].lower()
