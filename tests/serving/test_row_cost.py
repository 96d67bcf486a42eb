"""What a row costs: learned from calls, apart from the cost of a call."""

from __future__ import annotations

import pytest

from policy_server.serving.row_cost import RowCost


def cost_of(*calls: tuple[int, float]) -> float:
    """Return what is known after calls of so many rows and seconds."""
    cost = RowCost()
    for rows, seconds in calls:
        cost.observe(rows, seconds)
    return cost.seconds


def test_nothing_is_known_before_a_call() -> None:
    assert cost_of() == 0.0


def test_short_call_of_one_row_says_nothing_of_a_row() -> None:
    assert cost_of((1, 0.4e-3), (2, 0.5e-3)) == 0.0


def test_long_call_of_one_row_is_that_row() -> None:
    assert cost_of((1, 0.02), (1, 0.03)) == 0.02


def test_row_costs_what_more_rows_take_longer() -> None:
    assert cost_of((1, 0.4e-3), (100, 0.5e-3)) == pytest.approx(1e-6)


def test_cost_follows_the_newest_calls_slowly() -> None:
    cost = cost_of((1, 0.0), (10, 0.1), (10, 0.2))

    assert 0.01 < cost < 0.015
