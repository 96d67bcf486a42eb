"""Rows of continuous parts: what the graph clips and adds, and densities in both tails."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from policy_server.distributions.continuous_rows import (
    ContinuousRows,
    center_of,
    row_sums,
    unsquashed,
)
from policy_server.policy import ActionComponent, ComponentKind
from tests.support.fakes import components_of


def part_of(kind: ComponentKind, size: int = 1, **changes: object) -> ActionComponent:
    """Return a component that stands alone."""
    (part,) = components_of((kind, size))
    return replace(part, **changes)  # type: ignore[arg-type]  # the tests name its fields


def rows_of(part: ActionComponent, *values: float) -> ContinuousRows:
    """Return one row, read."""
    return ContinuousRows(part, np.array([values], np.float32))


@pytest.mark.parametrize(
    ("bounds", "log_std", "expected"),
    [
        ((None, 2.0), 9.0, 2.0),
        ((None, 2.0), -9.0, -9.0),
        ((-5.0, None), -9.0, -5.0),
        ((-5.0, None), 9.0, 9.0),
        ((-5.0, 2.0), 9.0, 2.0),
    ],
)
@pytest.mark.parametrize("kind", ["normal", "squashed_normal"])
def test_log_std_is_clipped_at_the_sides_that_are_bounded(
    kind: ComponentKind,
    bounds: tuple[float | None, float | None],
    log_std: float,
    expected: float,
) -> None:
    rows = rows_of(part_of(kind, log_std_bounds=bounds), 0.0, log_std)

    assert rows.std[0, 0] == pytest.approx(math.exp(expected))


@pytest.mark.parametrize("kind", ["normal", "squashed_normal"])
def test_floor_is_added_to_the_deviation(kind: ComponentKind) -> None:
    part = part_of(kind, std_floor=0.25, log_std_bounds=(-1.0, None))

    rows = rows_of(part, 0.0, -3.0)

    assert rows.std[0, 0] == pytest.approx(math.exp(-1.0) + 0.25)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((-1.0, 1.0), [-1.0, 1.0]), ((None, 1.0), [-3.0, 1.0]), ((-1.0, None), [-1.0, 3.0])],
)
@pytest.mark.parametrize("kind", ["normal", "squashed_normal", "deterministic"])
def test_mean_is_clipped_at_the_sides_that_are_bounded(
    kind: ComponentKind, bounds: tuple[float | None, float | None], expected: list[float]
) -> None:
    part = part_of(kind, 2, mean_bounds=bounds)
    inputs = np.array([[-3.0, 3.0, 0.0, 0.0]], np.float32)

    assert center_of(part, inputs)[0].tolist() == expected


@pytest.mark.parametrize("kind", ["normal", "squashed_normal"])
def test_density_is_the_derivative_of_the_draws_probability(kind: ComponentKind) -> None:
    """A draw moves by dx where its standard normal number moves by dz: p(x) = phi(z) dz/dx."""
    part = part_of(kind)
    inputs = np.tile(np.array([[0.3, -0.7]], np.float32), (5, 1))
    rows = ContinuousRows(part, inputs)
    z = np.linspace(-1.5, 1.5, 5)[:, None]

    low, middle, high = (rows.draw(z + step) for step in (-1e-5, 0.0, 1e-5))
    density = np.exp(rows.log_densities(middle))
    if kind == "squashed_normal":
        low, high = np.tanh(low), np.tanh(high)

    phi = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    assert density == pytest.approx(phi * 2e-5 / (high - low), rel=1e-4)


def test_center_is_read_behind_the_parts_before_it() -> None:
    parts = components_of(("categorical", 3), ("normal", 1))
    inputs = np.arange(5, dtype=np.float32)[None]

    assert center_of(parts[1], inputs).tolist() == [[3.0]]


@pytest.mark.parametrize("value", [-40.0, -8.0, -0.1, 0.0, 5.0, 8.0, 25.0, 2.0**100])
def test_squashed_density_is_exact_wherever_the_tanh_is_flat(value: float) -> None:
    """1 - tanh(u)^2 is 4 / (e^u + e^-u)^2, whose logarithm near a bound is log 4 - 2 |u|."""
    rows = rows_of(part_of("squashed_normal"), value, 0.0)

    found = rows.log_densities(np.array([[value]]))[0, 0]

    slope = math.log(4) - 2 * abs(value)
    if abs(value) < 20:
        slope = math.log(4 / (math.exp(value) + math.exp(-value)) ** 2)
    assert found == pytest.approx(-0.5 * math.log(2 * math.pi) - slope, rel=1e-12)


@pytest.mark.parametrize("value", [-1.0, -0.5, 0.0, 1 - 1e-9, 1.0])
def test_value_is_unsquashed_to_what_its_tanh_is(value: float) -> None:
    found = unsquashed(np.array([value]))

    assert np.isfinite(found).all()
    assert np.tanh(found)[0] == pytest.approx(value, rel=1e-15)


def test_rows_are_summed() -> None:
    assert row_sums(np.array([[1.0], [2.0]])).tolist() == [1.0, 2.0]
    assert row_sums(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist() == [3.0, 7.0]
