"""Few rows against many: `python -m benchmarks.few_rows`.

A call's answers are computed and rendered in two ways: row by row in Python's numbers, and in
arrays. The table shows the processor time of both for the same rows, in one run, so that one can
see from how many rows on arrays cost less. The first table is the whole call of one row by a policy
of two layers of 64: network, draw, probability and JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from benchmarks.arguments import parser_of
from benchmarks.own_process import BLOCK_S, median_us
from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.engine.network import CompiledPolicy, NetworkPolicy, NumpyNetwork, Step
from policy_server.policy import (
    NO_SEED,
    ActionComponent,
    ActionOutput,
    AnswerKind,
    ComponentKind,
    PolicyInputs,
    PolicySignature,
)
from policy_server.web.rendering import RenderedAnswers

__all__ = ["ACTIONS", "policy_of", "whole_us"]

_ROWS = (1, 2, 4, 8, 32, 128)
_WIDTH, _LAYERS = 6, (64, 64)


def _choices(*sizes: int) -> list[ActionComponent]:
    starts = np.cumsum([0, *sizes])
    return [
        ActionComponent("categorical", size, int(starts[place]), place)
        for place, size in enumerate(sizes)
    ]


def _bounded(kind: ComponentKind, size: int, *, is_normalized: bool = True) -> ActionComponent:
    low, high = (-1.0,) * size, (1.0,) * size
    return ActionComponent(kind, size, 0, 0, low=low, high=high, is_normalized=is_normalized)


ACTIONS: Mapping[str, Sequence[ActionComponent]] = {
    "Discrete(4)": _choices(4),
    "Discrete(18)": _choices(18),
    "Discrete(200)": _choices(200),
    "MultiDiscrete(3, 3, 2)": _choices(3, 3, 2),
    "MultiBinary(6)": _choices(*[2] * 6),
    "Box(2), Gaussian": [ActionComponent("normal", 2, 0, 0)],
    "Box(6), Gaussian, cut": [_bounded("normal", 6, is_normalized=False)],
    "Box(17), Gaussian": [ActionComponent("normal", 17, 0, 0)],
    "Box(3), SAC": [_bounded("squashed_normal", 3)],
    "Tuple(Discrete(3), Box(2))": [*_choices(3), ActionComponent("normal", 2, 3, 1)],
}
"""Kinds of actions, and what the policies' heads are then."""


def main() -> None:
    """Print the tables."""
    parser_of("benchmarks.few_rows", __doc__).parse_args()
    _print("| whole call of one row, us | network | draw | JSON | in all |")
    _print("| --- | ---: | ---: | ---: | ---: |")
    for name, components in ACTIONS.items():
        times = whole_us(components)
        _print(f"| {name} |{''.join(f' {us:.1f} |' for us in times)}")
    measures = (
        ("draw and probability", _draw_us),
        ("JSON", _render_us),
        ("distribution and its JSON", _describe_us),
    )
    for title, measure in measures:
        _print(f"\n| {title}, us: row by row / arrays |{''.join(f' {n} |' for n in _ROWS)}")
        _print(f"| --- |{' ---: |' * len(_ROWS)}")
        for name, components in ACTIONS.items():
            cells = [measure(components, rows) for rows in _ROWS]
            _print(f"| {name} |{''.join(f' {one:.1f} / {many:.1f} |' for one, many in cells)}")


def whole_us(components: Sequence[ActionComponent], *, block_s: float = BLOCK_S) -> list[float]:
    """Return the processor time of one row's call, in microseconds.

    Args:
        components: the policy's actions.
        block_s: how long each block of calls takes, in seconds.

    Returns:
        That of the network, of the draw with its probability, of the JSON, and of the whole call,
        each measured by itself.
    """
    policy, distribution = policy_of(components), ActionDistribution(components)
    inputs = _inputs(1)
    network = policy.compiled.network.compile()
    values, outputs = network(inputs.observations), policy.infer(inputs)
    layout = policy.signature.action_outputs
    calls: list[Callable[[], object]] = [
        lambda: network(inputs.observations),
        lambda: distribution.answer(
            values,
            is_deterministic=inputs.is_deterministic,
            seeds=inputs.seeds,
            wants_distribution=False,
        ),
        lambda: RenderedAnswers(outputs, layout, distribution).prediction(0),
        lambda: RenderedAnswers(policy.infer(inputs), layout, distribution).prediction(0),
    ]
    return [median_us(call, block_s=block_s) for call in calls]


def _draw_us(components: Sequence[ActionComponent], rows: int) -> tuple[float, float]:
    inputs = _inputs(rows)
    values = policy_of(components).compiled.network.compile()(inputs.observations)
    distribution, generator = ActionDistribution(components), np.random.default_rng()
    kinds, seeds = inputs.is_deterministic, inputs.seeds
    few = distribution.few_rows
    return (
        median_us(
            lambda: few.answer(values, is_deterministic=kinds, seeds=seeds, generator=generator)
        ),
        median_us(
            lambda: distribution.answer_in_arrays(values, is_deterministic=kinds, seeds=seeds)
        ),
    )


def _render_us(components: Sequence[ActionComponent], rows: int) -> tuple[float, float]:
    return _answers_us(components, rows, "predict")


def _describe_us(components: Sequence[ActionComponent], rows: int) -> tuple[float, float]:
    return _answers_us(components, rows, "distribution")


def _answers_us(
    components: Sequence[ActionComponent], rows: int, kind: AnswerKind
) -> tuple[float, float]:
    policy, distribution = policy_of(components), ActionDistribution(components)
    inputs = replace(_inputs(rows), wants_distribution=True)
    outputs, layout = policy.infer(inputs), policy.signature.action_outputs

    def render(rows_one_by_one: int) -> None:
        answers = RenderedAnswers(outputs, layout, distribution, rows_one_by_one=rows_one_by_one)
        for index in range(rows):
            answers.answer(kind, index)

    return median_us(lambda: render(rows)), median_us(lambda: render(0))


def _inputs(rows: int) -> PolicyInputs:
    observations = np.random.default_rng(0).uniform(0, 5, (rows, _WIDTH)).astype(np.float32)
    kinds, seeds = np.zeros(rows, np.bool_), np.full(rows, NO_SEED)
    return PolicyInputs(observations, kinds, seeds, wants_distribution=False)


def policy_of(components: Sequence[ActionComponent]) -> NetworkPolicy:
    """Return a policy of six numbers and two layers of 64, the same for the same actions.

    Args:
        components: its actions.
    """
    generator = np.random.default_rng(0)
    sizes = (_WIDTH, *_LAYERS, sum(part.inputs for part in components))
    constants, steps, register = {}, [], 0
    for rows, columns in pairwise(sizes):
        weights, biases, product, layer = range(register + 1, register + 5)
        constants[weights] = generator.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)
        constants[biases] = generator.normal(0, 0.1, columns).astype(np.float32)
        steps += [
            Step("MatMul", (register, weights), product),
            Step("BiasAdd", (product, biases), layer),
            Step("Tanh", (layer,), layer + 1),
        ]
        register = layer + 1
    del steps[-1]
    outputs = tuple(
        ActionOutput(
            f"actions_{place}",
            is_integer=part.is_integer,
            columns=part.columns,
            is_vector=not part.is_integer,
        )
        for place, part in enumerate(components)
    )
    signature = PolicySignature(_WIDTH, "float32", (), (), outputs, tuple(components))
    network = NumpyNetwork(constants, tuple(steps), register - 1, register + 1)
    return NetworkPolicy(CompiledPolicy(signature, network))


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
