"""A machine with five slots for jobs: which job should run next? Empty slots can't be chosen."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["JobShop", "make_environment"]

Observation = dict[str, Any]  # arrays

_SLOTS = 5
_KEYS = ("action_mask", "processing_time", "time_left", "value")


class JobShop(gymnasium.Env[Observation, np.int64]):
    """One episode is 60 jobs on one machine.

    Observation, a dictionary of arrays with one entry a slot: `action_mask` (int8: 1 where there is
    a job), and float32 `processing_time` (1 to 8), `time_left` until it is due (-10 to 30) and
    `value` (1 to 5), all zero in an empty slot. Action: the slot whose job runs next. Reward: the
    job's value if it is done in time, else nothing; -1 for each job that leaves because it is 10
    late, and for choosing an empty slot, which is why the policy masks them.
    """

    jobs = 60
    arrival_rate = 0.35

    def __init__(self) -> None:
        def times(low: float, high: float) -> spaces.Box:
            return spaces.Box(low, high, (_SLOTS,), np.float32)

        self.observation_space = spaces.Dict(
            {
                "action_mask": spaces.MultiBinary(_SLOTS),
                "processing_time": times(0.0, 8.0),
                "time_left": times(-10.0, 30.0),
                "value": times(0.0, 5.0),
            }
        )
        self.action_space = spaces.Discrete(_SLOTS)
        self._steps = 0
        self._jobs = np.zeros((_SLOTS, 3), np.float32)
        self._is_filled = np.zeros(_SLOTS, np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Fill all slots but one."""
        super().reset(seed=seed, options=options)
        self._steps = 0
        self._is_filled[:] = False
        for slot in self.np_random.permutation(_SLOTS)[1:]:
            self._fill(int(slot))
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run a job to its end, let time pass for the others, and let new jobs come in."""
        self._steps += 1
        slot, reward, passed = int(action), -1.0, 1
        if self._is_filled[slot]:
            duration, left, value = self._jobs[slot].tolist()
            reward, passed = (value if duration <= left else 0.0), int(duration)
            self._is_filled[slot] = False
        self._jobs[:, 1] -= passed
        is_gone = self._is_filled & (self._jobs[:, 1] < -10.0)
        self._is_filled &= ~is_gone
        reward -= float(is_gone.sum())
        for _ in range(int(self.np_random.binomial(passed, self.arrival_rate))):
            if not self._is_filled.all():
                self._fill(int(np.flatnonzero(~self._is_filled)[0]))
        if not self._is_filled.any():
            self._fill(int(self.np_random.integers(_SLOTS)))
        return self._observation(), reward, False, self._steps >= self.jobs, {}

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which slots can be chosen, as MaskablePPO asks for it in training."""
        return self._is_filled.copy()

    def named_observation(self, observation: Observation) -> dict[str, Any]:
        """Return an observation as schema.yaml describes it."""
        named: dict[str, Any] = {key: observation[key].tolist() for key in _KEYS}
        return named | {"action_mask": observation["action_mask"].astype(bool).tolist()}

    def action_from(self, actions: list[Any]) -> int:
        """Return what `step` takes for the `actions` of a server's answer."""
        return int(actions[0])

    def random_action(self, generator: np.random.Generator) -> int:
        """Return an action of the random policy to beat: any slot that holds a job."""
        return int(generator.choice(np.flatnonzero(self._is_filled)))

    def _fill(self, slot: int) -> None:
        duration = int(self.np_random.integers(1, 9))
        left = min(duration + int(self.np_random.integers(0, 20)), 30)
        self._jobs[slot] = duration, left, int(self.np_random.integers(1, 6))
        self._is_filled[slot] = True

    def _observation(self) -> Observation:
        shown = np.where(self._is_filled[:, None], self._jobs, 0.0).astype(np.float32)
        parts = (self._is_filled.astype(np.int8), *shown.T)
        return dict(zip(_KEYS, parts, strict=True))


def make_environment() -> JobShop:
    """Return a new environment."""
    return JobShop()
