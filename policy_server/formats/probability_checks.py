"""Holding numbers that a file calls probabilities against what probabilities are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.policy import ActionComponent
from policy_server.schema import ServerSchema

__all__ = ["check_probabilities", "refuse_hidden_probabilities"]

_TOLERANCE = 1e-4
_REMEDY = "export the logits, or one softmax for each action"


def check_probabilities(
    subject: str, components: Sequence[ActionComponent], rows: NDArray[Any]
) -> None:
    """Refuse numbers that are no probabilities of the choices of each integer action.

    Example:
        Three sigmoids named `probs` sum to about 1.5, and are no distribution over three choices.

    Args:
        subject: the file's name, for messages.
        components: the components, all categorical.
        rows: float[B, K], the file's own numbers for some observations, one component's behind
            another's.

    Raises:
        ModelError: if those of a component are below 0, or don't sum to 1.
    """
    for part in components:
        chances = rows[:, part.first_input : part.first_input + part.size]
        if (chances < 0).any():
            raise ModelError(
                f"{subject}: its probabilities hold {chances.min():.4g} for an observation, "
                f"expected none below 0; {_REMEDY}"
            )
        total = chances.sum(axis=1)
        is_wrong = ~np.isclose(total, 1, atol=_TOLERANCE)
        if is_wrong.any():
            raise ModelError(
                f"{subject}: its probabilities sum to {total[is_wrong][0]:.4g} for an observation, "
                f"expected 1; {_REMEDY}"
            )


def refuse_hidden_probabilities(
    subject: str,
    components: Sequence[ActionComponent],
    rows: NDArray[Any],
    schema: ServerSchema | None,
) -> None:
    """Refuse numbers that are read as logits and are probabilities for every observation.

    A softmax of probabilities is flatter than they are: of 0.9 and 0.1 it makes 0.69 and 0.31.

    Args:
        subject: the file's name, for messages.
        components: the components, all categorical.
        rows: float[B, K], the file's own numbers for some observations, one component's behind
            another's.
        schema: the contents of schema.yaml; None where there is none.

    Raises:
        ModelError: if those of a component are probabilities, and schema.yaml states no logits.
    """
    fields = () if schema is None else schema.actions or ()
    if any(field.values == "logits" for field in fields):
        return
    for part in components:
        chances = rows[:, part.first_input : part.first_input + part.size]
        is_one = part.size > 1 and bool((chances >= 0).all())
        if is_one and np.isclose(chances.sum(axis=1), 1, atol=_TOLERANCE).all():
            raise ModelError(
                f"{subject}: {part.size} numbers that would be read as logits are never below 0 "
                "and sum to 1 for every observation, as probabilities do; state 'values: "
                "probabilities' or 'values: logits' under 'actions' in schema.yaml, or export the "
                "logits"
            )
