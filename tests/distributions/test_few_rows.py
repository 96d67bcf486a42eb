"""Few rows are answered as they are among many, to the last bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import DistributionError
from policy_server.policy import (
    ActionComponent,
    ComponentKind,
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyOutputs,
)
from tests.support.fakes import components_of

FLOAT32_MIN = float(np.finfo(np.float32).min)
NUMBERS = (
    st.floats(-8.0, 8.0, width=32)
    | st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, FLOAT32_MIN])
)
ODD_NUMBERS = NUMBERS | st.sampled_from([math.nan, math.inf, -math.inf])
BOUNDS = st.none() | st.tuples(
    st.none() | st.sampled_from([-5.0, -0.5, 0.0]), st.none() | st.sampled_from([0.0, 0.5, 2.0])
)
MANY = 40
FIELDS = ("probabilities", "mean", "std", "mass_at_low", "mass_at_high", "value")


@st.composite
def _component(
    draw: st.DrawFn, kind: ComponentKind, first_input: int, first_column: int
) -> ActionComponent:
    if kind == "categorical":
        size, temperature = draw(st.integers(1, 12)), draw(st.sampled_from([1.0, 0.3, 2.0]))
        return ActionComponent(kind, size, first_input, first_column, temperature=temperature)
    size = draw(st.integers(1, 11))
    options: dict[str, Any] = {"mean_bounds": draw(BOUNDS)}
    if kind != "deterministic":
        options["log_std_bounds"] = draw(BOUNDS)
        options["std_floor"] = draw(st.sampled_from([0.0, 0.1]))
    if kind == "squashed_normal":
        options["has_unsquashed_mode"] = draw(st.booleans())
    if draw(st.booleans()):
        low = draw(st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0]), min_size=size, max_size=size))
        options["low"] = tuple(low)
        options["high"] = tuple(value + draw(st.sampled_from([0.25, 2.0, 7.0])) for value in low)
        options["is_normalized"] = draw(st.booleans())
    options["has_probability"] = draw(st.sampled_from([True, True, True, False]))
    return ActionComponent(kind, size, first_input, first_column, **options)


@st.composite
def _distributions(draw: st.DrawFn) -> ActionDistribution:
    components: list[ActionComponent] = []
    is_greedy = draw(st.sampled_from([False, False, False, True]))
    kinds: list[ComponentKind] = ["categorical", "normal", "squashed_normal", "deterministic"]
    columns = inputs = 0
    for _ in range(draw(st.integers(1, 5))):
        kind = "categorical" if is_greedy else draw(st.sampled_from(kinds))
        part = draw(_component(kind, inputs, columns))
        components.append(part)
        inputs, columns = inputs + part.inputs, columns + part.columns
    return ActionDistribution(components, is_greedy=is_greedy)


@dataclass(frozen=True)
class _Call:
    """The inputs of a distribution's answer."""

    distribution: ActionDistribution
    inputs: Float32Array
    is_deterministic: NDArray[np.bool_]
    seeds: Int64Array

    def in_few_rows(self) -> tuple[Float64Array, Float64Array] | None:
        return self.distribution.few_rows.answer(
            self.inputs,
            is_deterministic=self.is_deterministic,
            seeds=self.seeds,
            generator=np.random.default_rng(0),
        )

    def in_arrays(self, rows: int) -> PolicyOutputs:
        """Return the answers among so many rows."""
        return self.distribution.answer_in_arrays(
            np.resize(self.inputs, (rows, self.inputs.shape[1])),
            is_deterministic=np.resize(self.is_deterministic, rows),
            seeds=np.resize(self.seeds, rows),
        )


@st.composite
def _calls(draw: st.DrawFn, numbers: st.SearchStrategy[float]) -> _Call:
    distribution = draw(_distributions())
    rows, width = draw(st.integers(1, 5)), sum(part.inputs for part in distribution.components)
    seeds = draw(st.lists(st.integers(0, 2**63 - 1), min_size=rows, max_size=rows))
    kinds = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    inputs = draw(arrays(np.float32, (rows, width), elements=numbers))
    return _Call(distribution, inputs, np.array(kinds), np.array(seeds))


def _bits(values: Float64Array) -> bytes:
    """Return the bits of numbers; every NaN is the same."""
    assert values.dtype == np.float64
    return np.where(np.isnan(values), np.nan, values).tobytes()


def _check(call: _Call, few: tuple[Float64Array, Float64Array]) -> None:
    rows = len(call.inputs)
    actions, log_probability = few
    for outputs in (call.in_arrays(rows), call.in_arrays(MANY)):
        assert _bits(actions) == _bits(outputs.actions[:rows])
        assert _bits(log_probability) == _bits(outputs.log_probability[:rows])


@settings(max_examples=150)
@given(_calls(NUMBERS))
@np.errstate(all="ignore")
def test_few_rows_are_answered_as_among_many_to_the_last_bit(call: _Call) -> None:
    few = call.in_few_rows()
    assume(few is not None)
    assert few is not None, "it was assumed"

    _check(call, few)


@settings(max_examples=100)
@given(_calls(ODD_NUMBERS))
@np.errstate(all="ignore")
def test_rows_that_are_no_distribution_are_left_to_arrays(call: _Call) -> None:
    few = call.in_few_rows()

    if few is not None:
        _check(call, few)
    elif not call.distribution.is_greedy and not (
        # Such a mode may be no tanh of any number.
        call.is_deterministic.any()
        and any(part.has_unsquashed_mode for part in call.distribution.components)
    ):
        with pytest.raises(DistributionError):
            call.in_arrays(len(call.inputs))


@settings(max_examples=100)
@given(_calls(ODD_NUMBERS))
@np.errstate(all="ignore")
def test_few_rows_are_described_as_many_are_to_the_last_bit(call: _Call) -> None:
    few = [call.distribution.few_rows.describe(row) for row in call.inputs.tolist()]

    for place, fields in enumerate(few):
        row = call.inputs[place : place + 1]
        if fields is None:
            if not call.distribution.is_greedy:
                with pytest.raises(DistributionError):
                    call.distribution.describe(row)
            continue
        described = call.distribution.describe(np.repeat(row, MANY, axis=0))
        assert [list(item) for item in fields] == [
            [name for name in FIELDS if getattr(part, name) is not None] for part in described
        ]
        for item, part in zip(fields, described, strict=True):
            for name, numbers in item.items():
                assert np.array(numbers).tobytes() == getattr(part, name)[0].tobytes(), name


def test_draws_without_a_seed_follow_the_distribution() -> None:
    parts = (
        *components_of(("categorical", 3)),
        ActionComponent("normal", 1, 3, 1),
        ActionComponent("categorical", 2, 5, 2),
    )
    distribution = ActionDistribution(parts)
    row = np.log([0.2, 0.5, 0.3, math.exp(1.0), 2.0, 0.9, 0.1]).astype(np.float32)
    rows = distribution.few_rows.most_rows
    assert rows > 1
    calls = 2400 // rows
    inputs, kinds, seeds = np.tile(row, (rows, 1)), np.zeros(rows, np.bool_), np.full(rows, -1)

    actions = np.concatenate(
        [
            distribution.answer(inputs, is_deterministic=kinds, seeds=seeds).actions
            for _ in range(calls)
        ]
    )

    draws = len(actions)
    for column, chances in ((0, np.array([0.2, 0.5, 0.3])), (2, np.array([0.9, 0.1]))):
        counts = np.bincount(actions[:, column].astype(int), minlength=len(chances))
        chi_square = ((counts - draws * chances) ** 2 / (draws * chances)).sum()
        # Beyond it with a probability below 1e-7 for two degrees of freedom, and below for one.
        assert chi_square < 32.3
    normal = np.sort((actions[:, 1] - 1.0) / 2.0)
    stated = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in normal])
    distance = np.abs(stated - np.arange(draws) / draws).max()
    # Kolmogorov and Smirnov's: a probability below 1e-7.
    assert distance * math.sqrt(draws) < 2.95
    assert len(np.unique(actions[:, 1])) == draws


@pytest.mark.parametrize("size", [4, 18], ids=str)
def test_a_draw_and_its_probability_are_those_of_a_seed_in_any_call(size: int) -> None:
    distribution = ActionDistribution(components_of(("categorical", size)))
    row = np.linspace(-1.0, 1.0, size, dtype=np.float32)[None]
    seeds = np.arange(100)

    together = distribution.answer(
        np.tile(row, (100, 1)), is_deterministic=np.zeros(100, np.bool_), seeds=seeds
    )
    alone = [
        distribution.answer(row, is_deterministic=np.zeros(1, np.bool_), seeds=seeds[i : i + 1])
        for i in range(100)
    ]

    assert [one.actions.item() for one in alone] == together.actions[:, 0].tolist()
    assert [one.log_probability.item() for one in alone] == together.log_probability.tolist()
    assert len({one.actions.item() for one in alone}) > 1
