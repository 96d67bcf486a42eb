"""A mouse looks for cheese on a grid and keeps away from the cat."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["MouseAndCheese", "make_environment"]

Observation = NDArray[np.float32]

_NAMES = ("mouse_row", "mouse_column", "cheese_row", "cheese_column", "cat_row", "cat_column")
_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


class MouseAndCheese(gymnasium.Env[Observation, np.int64]):
    """One episode is one hunt: it ends with the cheese, with the cat, or after 50 steps.

    Observation: float32[6], the rows and columns of mouse, cheese and cat, counted from 0 at the
    top left. Actions: 0 up, 1 right, 2 down, 3 left; a move into the wall leaves the mouse where it
    is. After each move of the mouse the cat takes a step in a random direction, every second time
    on average. Reward: +1 for the cheese, -1 for the cat, -0.01 for every step.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 -- gymnasium's own attribute
    size = 6
    max_steps = 50

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0.0, self.size - 1.0, (len(_NAMES),), np.float32)
        self.action_space = spaces.Discrete(len(_MOVES))
        self._mouse = self._cheese = self._cat = (0, 0)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Put mouse, cheese and cat on cells of their own."""
        super().reset(seed=seed, options=options)
        cells = self.np_random.choice(self.size**2, size=3, replace=False)
        self._mouse, self._cheese, self._cat = (divmod(int(cell), self.size) for cell in cells)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the mouse, then perhaps the cat."""
        self._steps += 1
        self._mouse = self._moved(self._mouse, int(action))
        if self._mouse == self._cheese:
            return self._observation(), 1.0, True, False, {}
        is_caught = self._mouse == self._cat
        if not is_caught and self.np_random.random() < 0.5:
            self._cat = self._moved(self._cat, int(self.np_random.integers(len(_MOVES))))
            is_caught = self._mouse == self._cat
        reward = -1.0 if is_caught else -0.01
        return self._observation(), reward, is_caught, self._steps >= self.max_steps, {}

    def render(self) -> str:
        """Return the grid as text: M the mouse, C the cheese, X the cat."""
        rows = [["."] * self.size for _ in range(self.size)]
        for letter, (row, column) in zip(
            "CXM", (self._cheese, self._cat, self._mouse), strict=True
        ):
            rows[row][column] = letter
        return "\n".join(" ".join(row) for row in rows)

    def named_observation(self, observation: Observation) -> dict[str, float]:
        """Return an observation as schema.yaml describes it."""
        return dict(zip(_NAMES, observation.tolist(), strict=True))

    def action_from(self, actions: list[Any]) -> int:
        """Return what `step` takes for the `actions` of a server's answer."""
        return int(actions[0])

    def random_action(self, generator: np.random.Generator) -> int:
        """Return an action of the random policy that a trained one has to beat."""
        return int(generator.integers(len(_MOVES)))

    def _moved(self, cell: tuple[int, int], action: int) -> tuple[int, int]:
        row, column = (
            min(max(place + change, 0), self.size - 1)
            for place, change in zip(cell, _MOVES[action], strict=True)
        )
        return row, column

    def _observation(self) -> Observation:
        return np.array([*self._mouse, *self._cheese, *self._cat], dtype=np.float32)


def make_environment() -> MouseAndCheese:
    """Return a new environment."""
    return MouseAndCheese()
