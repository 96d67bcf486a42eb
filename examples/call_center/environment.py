"""Three teams of a call center: whose calls should each of them take this minute?"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["CallCenter", "make_environment"]

Observation = NDArray[np.float32]
Action = NDArray[np.int64]

_QUEUES = 3
_TEAMS = 3
# How many calls a minute each team (row) settles in each queue (column), on average.
_SKILLS = np.array([[3.0, 1.0, 0.6], [0.8, 3.0, 1.0], [1.2, 1.2, 1.6]])
# What an hour of waiting costs in each queue.
_COSTS = np.array([1.0, 2.0, 4.0])


class CallCenter(gymnasium.Env[Observation, Action]):
    """One episode is one working day of eight hours, in steps of five minutes.

    Observation: float32[10], the hour of the day, the calls waiting in each queue (at most 40), the
    minutes that the first of each queue has waited (at most 60), and for each team whether it is
    there. Actions: for each of the three teams 0 rest, 1 sales, 2 support or 3 emergencies; a team
    on its break does nothing. Reward: minus what waiting costs (1, 2 and 4 an hour for each call),
    -0.5 for each call that finds its queue full, and -0.1 for each team that works.
    """

    steps_a_day = 96
    longest_queue = 40
    longest_wait = 60.0
    minutes_a_step = 5.0

    def __init__(self) -> None:
        most = (
            [24.0] + [self.longest_queue] * _QUEUES + [self.longest_wait] * _QUEUES + [1] * _TEAMS
        )
        self.observation_space = spaces.Box(
            np.zeros(len(most), np.float32), np.array(most, np.float32), dtype=np.float32
        )
        self.action_space = spaces.MultiDiscrete([_QUEUES + 1] * _TEAMS)
        self._steps = 0
        self._calls = np.zeros(_QUEUES, np.int64)
        self._waits = np.zeros(_QUEUES)
        self._is_present = np.ones(_TEAMS, np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Open at nine with a few calls waiting and every team there."""
        super().reset(seed=seed, options=options)
        self._steps = 0
        self._calls = self.np_random.integers(0, 6, _QUEUES)
        self._waits = np.where(self._calls > 0, self.minutes_a_step, 0.0)
        self._is_present = np.ones(_TEAMS, np.bool_)
        return self._observation(), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Let the teams work for five minutes, then let new calls come in."""
        cost = 0.0
        for team, queue in enumerate(np.asarray(action) - 1):
            if queue >= 0 and self._is_present[team]:
                cost += 0.1
                settled = min(int(self.np_random.poisson(_SKILLS[team, queue])), self._calls[queue])
                # The calls of a queue are spread evenly over its longest wait.
                self._waits[queue] *= 1.0 - settled / max(self._calls[queue], 1)
                self._calls[queue] -= settled
        arriving = self.np_random.poisson(self._arrivals())
        lost = np.maximum(self._calls + arriving - self.longest_queue, 0)
        self._calls = self._calls + arriving - lost
        waits = np.minimum(self._waits + self.minutes_a_step, self.longest_wait)
        self._waits = np.where(self._calls > 0, waits, 0.0)
        cost += float(_COSTS @ self._calls) * self.minutes_a_step / 60.0 + 0.5 * float(lost.sum())
        self._is_present = self.np_random.random(_TEAMS) < np.where(self._is_present, 0.97, 0.4)
        self._steps += 1
        return self._observation(), -cost, False, self._steps >= self.steps_a_day, {}

    def named_observation(self, observation: Observation) -> dict[str, Any]:
        """Return an observation as schema.yaml describes it."""
        hour, calls, waits, teams = np.split(observation, [1, 1 + _QUEUES, 1 + 2 * _QUEUES])
        return {
            "hour": float(hour[0]),
            "calls_waiting": calls.astype(int).tolist(),
            "longest_wait": waits.tolist(),
            "is_team_present": teams.astype(bool).tolist(),
        }

    def action_from(self, actions: list[Any]) -> Action:
        """Return what `step` takes for the `actions` of a server's answer."""
        return np.array(actions, np.int64)

    def random_action(self, generator: np.random.Generator) -> Action:
        """Return an action of the random policy that a trained one has to beat."""
        return generator.integers(_QUEUES + 1, size=_TEAMS)

    def _arrivals(self) -> NDArray[np.float64]:
        """Return the mean number of new calls: sales peak at noon, support in the afternoon."""
        day = self._steps / self.steps_a_day
        noon, afternoon = np.exp(-(((day - np.array([0.35, 0.75])) / 0.15) ** 2))
        return np.array([0.8 + 1.6 * noon, 0.8 + 1.6 * afternoon, 0.7])

    def _observation(self) -> Observation:
        hour = 9.0 + 8.0 * self._steps / self.steps_a_day
        return np.array([hour, *self._calls, *self._waits, *self._is_present], dtype=np.float32)


def make_environment() -> CallCenter:
    """Return a new environment."""
    return CallCenter()
