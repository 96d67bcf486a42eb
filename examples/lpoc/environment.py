"""Four movers share a warehouse floor, and each has to reach its own dock."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["Movers", "make_environment"]

Observation = NDArray[np.float32]
Cell = tuple[int, int]

# `#` is a shelf; a digit is the dock of the mover with that id.
_FLOOR = ("0....1", ".#..#.", "......", "......", ".#..#.", "2....3")
_MOVES = ((0, 0), (-1, 0), (0, 1), (1, 0), (0, -1))
_DIRECTIONS = ("up", "right", "down", "left")
_NAMES = (
    "id",
    "coordinates_0",
    "coordinates_1",
    *(name for way in _DIRECTIONS for name in (f"has_{way}_neighbour", f"is_{way}_free")),
)


class Movers(gymnasium.Env[Observation, np.int64]):
    """The movers take turns, and one policy drives them all: each observation is that of one mover.

    Observation: float32[11], the mover's id, its row and column, and for each direction whether
    there is floor and whether that is free. The way to the dock is not in it: a mover has to know
    its dock by its id. Actions: 0 stay, 1 up, 2 right, 3 down, 4 left. Reward: +1 for reaching the
    dock, where the mover stays; every turn -0.01 for each row and column between the mover and its
    dock; -0.1 more for a move that is not possible. An episode ends when every mover has docked, or
    after 30 rounds.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 8}  # noqa: RUF012 -- gymnasium's own attribute
    max_rounds = 30

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        cells = {(r, c): sign for r, row in enumerate(_FLOOR) for c, sign in enumerate(row)}
        self._floor = [cell for cell, sign in cells.items() if sign != "#"]
        self._docks = {int(sign): cell for cell, sign in cells.items() if sign.isdigit()}
        last = [len(self._docks) - 1, len(_FLOOR) - 1, len(_FLOOR[0]) - 1] + [1] * 8
        self.observation_space = spaces.Box(
            np.zeros(len(_NAMES), np.float32), np.array(last, np.float32), dtype=np.float32
        )
        self.action_space = spaces.Discrete(len(_MOVES))
        self._cells: list[Cell] = [(0, 0)] * len(self._docks)
        self._mover = 0
        self._rounds = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Put the movers on cells of their own, none on its dock."""
        super().reset(seed=seed, options=options)
        while True:
            places = self.np_random.choice(len(self._floor), len(self._docks), replace=False)
            self._cells = [self._floor[place] for place in places]
            if not any(self._is_docked(mover) for mover in self._docks):
                break
        self._mover = self._rounds = 0
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the mover whose turn it is, then pass the turn to the next that has not docked."""
        reward, target = 0.0, self._target(int(action))
        if int(action) != 0:
            if self._is_free(target):
                self._cells[self._mover] = target
                reward += float(self._is_docked(self._mover))
            else:
                reward -= 0.1
        reward -= 0.01 * self._distance(self._mover)
        waiting = [mover for mover in self._docks if not self._is_docked(mover)]
        if not waiting:
            return self._observation(), reward, True, False, {}
        later = [mover for mover in waiting if mover > self._mover]
        self._rounds += not later
        self._mover = (later or waiting)[0]
        return self._observation(), reward, False, self._rounds >= self.max_rounds, {}

    def render(self) -> str:
        """Return the floor as text: letters are the movers A to D of the docks 0 to 3."""
        rows = [list(row) for row in _FLOOR]
        for mover, (row, column) in enumerate(self._cells):
            rows[row][column] = "ABCD"[mover]
        return "\n".join(" ".join(row) for row in rows)

    def named_observation(self, observation: Observation) -> dict[str, int | bool]:
        """Return an observation as schema.yaml describes it."""
        values = zip(_NAMES, observation.tolist(), strict=True)
        return {
            name: bool(value) if "_free" in name or "has_" in name else int(value)
            for name, value in values
        }

    def action_from(self, actions: list[Any]) -> int:
        """Return what `step` takes for the `actions` of a server's answer."""
        return int(actions[0])

    def random_action(self, generator: np.random.Generator) -> int:
        """Return an action of the random policy that a trained one has to beat."""
        return int(generator.integers(len(_MOVES)))

    def _target(self, action: int) -> Cell:
        row, column = self._cells[self._mover]
        return row + _MOVES[action][0], column + _MOVES[action][1]

    def _is_docked(self, mover: int) -> bool:
        return self._cells[mover] == self._docks[mover]

    def _distance(self, mover: int) -> int:
        places = zip(self._cells[mover], self._docks[mover], strict=True)
        return sum(abs(place - dock) for place, dock in places)

    def _is_free(self, cell: Cell) -> bool:
        return cell in self._floor and cell not in self._cells

    def _observation(self) -> Observation:
        around = [self._target(action) for action in range(1, len(_MOVES))]
        flags = [flag for cell in around for flag in (cell in self._floor, self._is_free(cell))]
        return np.array([self._mover, *self._cells[self._mover], *flags], dtype=np.float32)


def make_environment() -> Movers:
    """Return a new environment."""
    return Movers()
