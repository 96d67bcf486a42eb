"""A share whose price swings around a slowly drifting value: be short, out, or long?"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["Stock", "make_environment"]

Observation = NDArray[np.float32]

_WINDOW = 8


class Stock(gymnasium.Env[Observation, np.int64]):
    """One episode is 250 trading days.

    The logarithm of the price reverts to a value that is itself a slow random walk; the price is
    made up, so that there is something to learn. Observation: float32[10], the returns of the last
    eight days in percent (the newest last), the price's distance from its 20-day mean in percent,
    and the position held (-1, 0 or 1); all but the last are cut to [-25, 25]. Actions: the position
    of the next day, 0 short, 1 out, 2 long. Reward: the day's profit in percent of the stake, less
    a fee of 0.1 for each step that the position moves.
    """

    days = 250
    reversion = 0.15
    fee = 0.1

    def __init__(self) -> None:
        most = np.array([25.0] * (_WINDOW + 1) + [1.0], np.float32)
        self.observation_space = spaces.Box(-most, most, dtype=np.float32)
        self.action_space = spaces.Discrete(3)
        self._prices = np.zeros(20)
        self._value = 0.0
        self._position = 0
        self._days = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start without shares, after forty days that nobody traded on."""
        super().reset(seed=seed, options=options)
        self._prices[:], self._value, self._position, self._days = 0.0, 0.0, 0, 0
        for _ in range(40):
            self._trade()
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a position, pay for the change, and let a day pass."""
        position = int(action) - 1
        fees = self.fee * abs(position - self._position)
        self._position = position
        reward = position * self._trade() - fees
        self._days += 1
        return self._observation(), reward, False, self._days >= self.days, {}

    def named_observation(self, observation: Observation) -> list[float]:
        """Return the flat list that `/predict_raw` takes as `obs`: nothing is named here."""
        flat: list[float] = observation.tolist()
        return flat

    def action_from(self, actions: list[Any]) -> int:
        """Return what `step` takes for the `actions` of a server's answer."""
        return int(actions[0])

    def random_action(self, generator: np.random.Generator) -> int:
        """Return an action of the random policy that a trained one has to beat."""
        return int(generator.integers(3))

    def _trade(self) -> float:
        """Let a day pass; return the change of the price in percent."""
        self._value += 0.3 * self.np_random.standard_normal()
        price = self._prices[-1]
        price += self.reversion * (self._value - price) + self.np_random.standard_normal()
        self._prices = np.append(self._prices[1:], price)
        return float(self._prices[-1] - self._prices[-2])

    def _observation(self) -> Observation:
        returns = np.diff(self._prices)[-_WINDOW:]
        distance = self._prices[-1] - self._prices.mean()
        seen = np.clip([*returns, distance], -25.0, 25.0)
        return np.array([*seen, self._position], dtype=np.float32)


def make_environment() -> Stock:
    """Return a new environment."""
    return Stock()
