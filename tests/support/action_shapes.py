"""Policies of every shape of action, each with the action that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from policy_server.policy import ActionComponent, ActionOutput
from tests.support.fakes import FakeBackend, components_of, signature_of

__all__ = ["MULTI_DISCRETE", "SHAPES", "TUPLE", "TUPLE_BIAS", "VECTOR", "backend_of"]

VECTOR = ActionOutput("actions_0", is_integer=False, columns=2, is_vector=True)
MULTI_DISCRETE = ActionOutput("actions_0", is_integer=True, columns=3, is_vector=True)


def backend_of(
    components: tuple[ActionComponent, ...],
    bias: Sequence[float],
    *outputs: ActionOutput,
) -> FakeBackend:
    """Return a backend of any family."""
    return FakeBackend(signature_of(components, outputs=outputs or None), bias)


TUPLE = components_of(("categorical", 2), ("normal", 2), ("categorical", 3))
TUPLE_BIAS = (1.0, 0.0, 0.2, -0.3, 0.0, 0.0, 0.0, 0.0, 5.0)
SHAPES = {
    "MultiDiscrete": (
        backend_of(
            components_of(("categorical", 2), ("categorical", 2), ("categorical", 4)),
            (1, 0, 3, 0, 0, 0, 0, 9),
            MULTI_DISCRETE,
        ),
        [0, 0, 3],
    ),
    "one Box": (backend_of(components_of(("normal", 2)), (0.3, -1.2, 0, 0), VECTOR), [0.3, -1.2]),
    "tuple of integers": (
        backend_of(components_of(("categorical", 2), ("categorical", 3)), (0, 1, 0, 0, 7)),
        [1, 2],
    ),
    "tuple with a Box": (backend_of(TUPLE, TUPLE_BIAS), [0, [0.2, -0.3], 2]),
    "deterministic": (
        backend_of(components_of(("deterministic", 2)), (0.5, 0.25), VECTOR),
        [0.5, 0.25],
    ),
    "Box with bounds": (
        backend_of(
            (replace(components_of(("normal", 2))[0], low=(0.0, -4.0), high=(10.0, 4.0)),),
            (0.5, -2, 0, 0),
            VECTOR,
        ),
        [7.5, -4.0],
    ),
    "squashed": (
        backend_of(components_of(("squashed_normal", 2)), (0, 9, 0, 0), VECTOR),
        [0, 1],
    ),
}
