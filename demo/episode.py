"""An episode that is played here and decided by a server, and pictures of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from demo.examples import make_environment
from demo.server_client import AnswerKind, Observation, ServerClient

__all__ = ["Episode", "draw"]

_CELL = 64
_MOVER_COLORS = ("#2563eb", "#f97316", "#16a34a", "#9333ea")


class _HasRender(Protocol):
    def render(self) -> str:
        """Return the state as text, one line a row."""


class Episode:
    """One episode of an example's environment.

    Attributes:
        name: the example's.
        observation: the next observation, as the server takes it.
        rewards: of each step so far.
        actions: of the last answer; None before the first step.
        is_over: whether the episode has ended.
    """

    boards: ClassVar = ("lpoc", "mouse_and_cheese")

    def __init__(self, name: str, *, seed: int) -> None:
        """Own an environment, from its first state on.

        Args:
            name: the example's.
            seed: of the episode.

        Raises:
            SettingsError: if the environment needs a package that is not installed.
        """
        self.name = name
        self._environment = make_environment(name)
        first, _ = self._environment.reset(seed=seed)
        self.observation: Observation = self._environment.named_observation(first)
        self.rewards: list[float] = []
        self.actions: list[Any] | None = None
        self.is_over = False

    def step(self, client: ServerClient, *, is_deterministic: bool) -> None:
        """Take one step with the action that a server answers.

        Args:
            client: of that server.
            is_deterministic: take the policy's mode instead of a draw.

        Raises:
            RefusalError: if the server can't be reached, or refuses; the episode is as it was.
        """
        kind: AnswerKind = "predict_deterministic" if is_deterministic else "predict"
        actions = client.ask(kind, self.observation)["actions"]
        observation, reward, is_terminated, is_truncated, _ = self._environment.step(
            self._environment.action_from(actions)
        )
        self.actions = actions
        self.observation = self._environment.named_observation(observation)
        self.rewards.append(float(reward))
        self.is_over = is_terminated or is_truncated

    def picture(self) -> str | None:
        """Return an SVG of the environment's state; None where there is no picture of it."""
        return draw(self.name, self._environment, self.observation)


def draw(name: str, environment: object, observation: Observation) -> str | None:
    """Return an SVG of an example's state; None where there is no picture of it.

    Args:
        name: the example's.
        environment: its environment.
        observation: the observation of this state.
    """
    if name == "pendulum" and isinstance(observation, Mapping):
        return _pendulum(observation)
    if name in Episode.boards:
        rendered: _HasRender = environment  # type: ignore[assignment]  # these two have it
        return _grid(rendered.render(), _MOUSE_PIECES if name == "mouse_and_cheese" else _MOVERS)
    return None


def _grid(text: str, pieces: Mapping[str, str]) -> str:
    """Draw rows of signs, each a piece on a cell of its own."""
    rows = [line.split() for line in text.splitlines()]
    width, height = len(rows[0]) * _CELL, len(rows) * _CELL
    parts = []
    for row, signs in enumerate(rows):
        for column, sign in enumerate(signs):
            shade = "#f8fafc" if (row + column) % 2 else "#eef2f7"
            parts.append(
                f'<g transform="translate({column * _CELL} {row * _CELL})">'
                f'<rect width="{_CELL}" height="{_CELL}" fill="{shade}"/>{pieces.get(sign, "")}</g>'
            )
    return _svg(width, height, "".join(parts))


def _pendulum(observation: Mapping[str, Any]) -> str:
    # The angle is 0 where the rod stands upright and grows against the clock.
    x, y = 160 - 120 * observation["sine"], 160 - 120 * observation["cosine"]
    return _svg(
        320,
        320,
        '<rect width="320" height="320" fill="#f8fafc"/>'
        '<circle cx="160" cy="160" r="120" fill="none" stroke="#cbd5e1" stroke-dasharray="4 6"/>'
        f'<line x1="160" y1="160" x2="{x:.1f}" y2="{y:.1f}" stroke="#2563eb" stroke-width="14" '
        'stroke-linecap="round"/><circle cx="160" cy="160" r="7" fill="#0f172a"/>',
    )


def _svg(width: int, height: int, content: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {width + 2} {height + 2}" '
        f'width="{width}" height="{height}">{content}<rect width="{width}" height="{height}" '
        'fill="none" stroke="#cbd5e1" stroke-width="2"/></svg>'
    )


def _letter(letter: str, color: str, *, is_dock: bool) -> str:
    if is_dock:
        shape = (
            f'<rect x="10" y="10" width="44" height="44" rx="8" fill="none" stroke="{color}" '
            'stroke-width="4" stroke-dasharray="7 5"/>'
        )
    else:
        shape = f'<circle cx="32" cy="32" r="23" fill="{color}"/>'
    return (
        f'{shape}<text x="32" y="40" text-anchor="middle" font-family="sans-serif" font-size="22" '
        f'font-weight="bold" fill="{color if is_dock else "white"}">{letter}</text>'
    )


_MOVERS = {
    "#": '<rect x="5" y="5" width="54" height="54" rx="5" fill="#475569"/>'
    '<path d="M5 23h54M5 41h54" stroke="#94a3b8" stroke-width="3"/>',
    **{str(dock): _letter(str(dock), _MOVER_COLORS[dock], is_dock=True) for dock in range(4)},
    **{
        letter: _letter(str(mover), _MOVER_COLORS[mover], is_dock=False)
        for mover, letter in enumerate("ABCD")
    },
}

_MOUSE_PIECES = {
    "M": '<g fill="#94a3b8"><circle cx="18" cy="19" r="11"/><circle cx="46" cy="19" r="11"/>'
    '<ellipse cx="32" cy="37" rx="19" ry="18"/></g>'
    '<g fill="#fbcfe8"><circle cx="18" cy="19" r="6"/><circle cx="46" cy="19" r="6"/></g>'
    '<circle cx="25" cy="34" r="3"/><circle cx="39" cy="34" r="3"/>'
    '<circle cx="32" cy="45" r="4" fill="#ec4899"/>',
    "C": '<path d="M6 38 L50 14 A16 16 0 0 1 58 30 L58 38 Z" fill="#fde047"/>'
    '<rect x="6" y="38" width="52" height="14" rx="2" fill="#facc15"/><g fill="#ca8a04">'
    '<circle cx="42" cy="29" r="4"/><circle cx="28" cy="33" r="3"/><circle cx="20" cy="45" r="3"/>'
    '<circle cx="46" cy="46" r="3.5"/></g>',
    "X": '<g fill="#fb923c"><path d="M14 30 L14 7 L30 19 Z"/><path d="M50 30 L50 7 L34 19 Z"/>'
    '<ellipse cx="32" cy="36" rx="22" ry="20"/></g><g fill="#166534"><ellipse cx="24" cy="33" '
    'rx="3.5" ry="5"/><ellipse cx="40" cy="33" rx="3.5" ry="5"/></g><path d="M28 42h8l-4 5z" '
    'fill="#7c2d12"/><path d="M4 42l16 1M4 50l16-3M60 42l-16 1M60 50l-16-3" stroke="#7c2d12" '
    'stroke-width="1.5"/>',
}
