"""A conveyor: a parcel is scanned where it is put on the belt, and sorted by a gate at the end."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["Conveyor", "make_environment"]

Observation = NDArray[np.float32]

_LANES = 3
_SHORTEST, _LONGEST = 3, 10


class Conveyor(gymnasium.Env[Observation, np.int64]):
    """One episode is 20 parcels, one after another.

    A parcel is scanned when it is put on the belt, 3 to 10 steps before the gate; the next one
    comes when it is through. Observation: float32[4], all 0 or 1: for each of the three lanes
    whether the scanner reads a parcel for it, which is so in the parcel's first step alone, and
    whether a parcel is at the gate. Action: the lane that the gate points to. Reward: 1 for a
    parcel at the gate that goes into its lane, else 0.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 -- gymnasium's own attribute
    parcels = 20

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0.0, 1.0, (_LANES + 1,), np.float32)
        self.action_space = spaces.Discrete(_LANES)
        self._lane = self._left = self._done = self._gate = 0
        self._is_scanned = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Scan the first parcel."""
        super().reset(seed=seed, options=options)
        self._done = self._gate = 0
        self._next_parcel()
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the belt on by one place."""
        reward = 0.0
        self._gate = int(action)
        self._is_scanned = False
        if self._left:
            self._left -= 1
        else:
            reward = float(self._gate == self._lane)
            self._done += 1
            self._next_parcel()
        return self._observation(), reward, self._done >= self.parcels, False, {}

    def render(self) -> str:
        """Return the belt as text: from the left to the gate, which points to a lane, 0 to 2.

        A to C is a parcel for one of these; it is a to c while the scanner reads it.
        """
        signs = "abc" if self._is_scanned else "ABC"
        belt = ["="] * (_LONGEST + 1)
        belt[_LONGEST - self._left] = signs[self._lane]
        rows = [["."] * len(belt), belt, ["."] * len(belt)]
        return "\n".join(
            " ".join([*row, ">" if lane == self._gate else ".", str(lane)])
            for lane, row in enumerate(rows)
        )

    def named_observation(self, observation: Observation) -> dict[str, Any]:
        """Return an observation as schema.yaml describes it."""
        *scanned, is_at_gate = observation.astype(bool).tolist()
        return {"scanned": scanned, "is_at_gate": is_at_gate}

    def action_from(self, actions: list[Any]) -> int:
        """Return what `step` takes for the `actions` of a server's answer."""
        return int(actions[0])

    def random_action(self, generator: np.random.Generator) -> int:
        """Return an action drawn uniformly."""
        return int(generator.integers(_LANES))

    def _next_parcel(self) -> None:
        self._lane = int(self.np_random.integers(_LANES))
        self._left = int(self.np_random.integers(_SHORTEST, _LONGEST + 1))
        self._is_scanned = True

    def _observation(self) -> Observation:
        found = np.zeros(_LANES + 1, np.float32)
        found[self._lane] = self._is_scanned
        found[_LANES] = self._left == 0
        return found


def make_environment() -> Conveyor:
    """Return a new environment."""
    return Conveyor()
