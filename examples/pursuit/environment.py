"""Two hunters and their prey on a small board, all of whom move at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["Pursuit", "make_environment"]

Cell = tuple[int, int]
Observation = NDArray[np.int64]

_HUNTERS = ("hunter_0", "hunter_1")
_PREY = "prey"
_MOVES = ((0, 0), (-1, 0), (0, 1), (1, 0), (0, -1))
_NAMES = {
    **dict.fromkeys(
        _HUNTERS,
        ("row", "column", "prey_rows", "prey_columns", "partner_rows", "partner_columns"),
    ),
    _PREY: (
        "row",
        "column",
        "nearer_rows",
        "nearer_columns",
        "farther_rows",
        "farther_columns",
    ),
}


class Pursuit:
    """One episode is one hunt: it ends when the prey is caught, or after 40 steps.

    The agents have observations, actions and rewards of their own, in dictionaries by their names,
    as in PettingZoo's parallel environments; all are there until the end.

    Observation: int64[6], the agent's own row and column, counted from 0 at the top left, and how
    many rows down and columns to the right the two others are: for a hunter the prey and the other
    hunter, for the prey the hunter that is nearer (in rows plus columns) and the other one.
    Actions: 0 stay, 1 up, 2 right, 3 down, 4 left; a move into the wall stays. The prey is caught
    where a hunter stands on its cell or changes cells with it. Reward of each step: 0.05 for the
    prey and -0.05 for each hunter; in the step that catches the prey, -1 for it and 1 for each.
    """

    size = 7
    max_steps = 40
    possible_agents: ClassVar = [*_HUNTERS, _PREY]

    def __init__(self) -> None:
        low, high = 1 - self.size, self.size - 1
        space = spaces.Box(np.array([0, 0, low, low, low, low]), np.full(6, high), dtype=np.int64)
        self.observation_spaces = dict.fromkeys(self.possible_agents, space)
        self.action_spaces = dict.fromkeys(self.possible_agents, spaces.Discrete(len(_MOVES)))
        self.agents: list[str] = []
        self._cells: dict[str, Cell] = {}
        self._steps = 0
        self._random = np.random.default_rng()

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Observation], dict[str, Any]]:
        """Put all on cells of their own; `cells` in the options has others."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        places = self._random.choice(self.size**2, size=len(self.possible_agents), replace=False)
        cells = [divmod(int(place), self.size) for place in places]
        cells = (options or {}).get("cells", cells)
        self._cells = dict(zip(self.possible_agents, cells, strict=True))
        self._steps = 0
        self.agents = list(self.possible_agents)
        return self._observations(), {agent: {} for agent in self.agents}

    def step(
        self, actions: Mapping[str, int]
    ) -> tuple[
        dict[str, Observation],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, Any],
    ]:
        """Move all at once."""
        before = self._cells
        self._cells = {agent: self._moved(before[agent], actions[agent]) for agent in self.agents}
        self._steps += 1
        prey = self._cells[_PREY]
        is_caught = any(
            self._cells[hunter] == prey
            or (self._cells[hunter] == before[_PREY] and before[hunter] == prey)
            for hunter in _HUNTERS
        )
        gain = 1.0 if is_caught else -0.05
        observations = self._observations()
        rewards = {agent: -gain if agent == _PREY else gain for agent in self.agents}
        terminations = dict.fromkeys(self.agents, is_caught)
        truncations = dict.fromkeys(self.agents, self._steps >= self.max_steps)
        infos: dict[str, Any] = {agent: {} for agent in self.agents}
        if is_caught or self._steps >= self.max_steps:
            self.agents = []
        return observations, rewards, terminations, truncations, infos

    def render(self) -> str:
        """Return the board as text: 0 and 1 the hunters, P the prey."""
        rows = [["."] * self.size for _ in range(self.size)]
        for sign, agent in zip("P01", (_PREY, *_HUNTERS), strict=True):
            row, column = self._cells[agent]
            rows[row][column] = sign
        return "\n".join(" ".join(row) for row in rows)

    def named_observation(self, agent: str, observation: Observation) -> dict[str, int]:
        """Return an agent's observation as schema.yaml describes it."""
        return dict(zip(_NAMES[agent], observation.tolist(), strict=True))

    def action_from(self, agent: str, actions: list[Any]) -> int:  # noqa: ARG002 -- all have the same
        """Return what `step` takes for the `actions` of an agent's answer."""
        return int(actions[0])

    def random_action(self, agent: str, generator: np.random.Generator) -> int:  # noqa: ARG002 -- all have the same
        """Return an action of the random policy that a trained one has to beat."""
        return int(generator.integers(len(_MOVES)))

    def _moved(self, cell: Cell, action: int) -> Cell:
        row, column = (
            min(max(place + change, 0), self.size - 1)
            for place, change in zip(cell, _MOVES[action], strict=True)
        )
        return row, column

    def _observations(self) -> dict[str, Observation]:
        prey = self._cells[_PREY]
        first, second = (self._cells[hunter] for hunter in _HUNTERS)
        near, far = sorted((first, second), key=lambda cell: sum(map(abs, _from(prey, cell))))
        return {
            _HUNTERS[0]: _seen(first, prey, second),
            _HUNTERS[1]: _seen(second, prey, first),
            _PREY: _seen(prey, near, far),
        }


def _from(cell: Cell, other: Cell) -> Cell:
    return other[0] - cell[0], other[1] - cell[1]


def _seen(own: Cell, *others: Cell) -> Observation:
    return np.array([*own, *(part for other in others for part in _from(own, other))], np.int64)


def make_environment() -> Pursuit:
    """Return a new environment."""
    return Pursuit()
