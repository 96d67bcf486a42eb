"""Pictures of the examples' environments, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from demo.server_client import Observation
from policy_server.commands.games import ALONE

__all__ = ["draw", "is_board"]

_CELL = 64
_COLORS = ("#2563eb", "#f97316", "#16a34a", "#9333ea")


class _HasRender(Protocol):
    def render(self) -> str:
        """Return the state as text, one line a row."""


def draw(name: str, environment: object, observations: Mapping[str, Observation]) -> str | None:
    """Return an SVG of an example's state; None where there is no picture of it.

    Args:
        name: the example's.
        environment: its environment.
        observations: those of this state, by agent.
    """
    if name == "pendulum":
        observation = observations[ALONE]
        assert isinstance(observation, Mapping), "its schema names them"
        return _pendulum(observation)
    if name in _PIECES:
        rendered: _HasRender = environment  # type: ignore[assignment]  # these have it
        return _grid(rendered.render(), _PIECES[name])
    return None


def is_board(name: str) -> bool:
    """Return whether an example's picture is a board, on which each step can be followed.

    Args:
        name: the example's.
    """
    return name in _PIECES


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
    **{str(dock): _letter(str(dock), _COLORS[dock], is_dock=True) for dock in range(4)},
    **{
        letter: _letter(str(mover), _COLORS[mover], is_dock=False)
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

_BELT = (
    '<rect y="14" width="64" height="36" fill="#94a3b8"/>'
    '<path d="M8 14v36M24 14v36M40 14v36M56 14v36" stroke="#cbd5e1" stroke-width="2"/>'
)


def _parcel(lane: int, *, is_scanned: bool) -> str:
    color = _COLORS[lane]
    beam = '<path d="M2 32h60" stroke="#dc2626" stroke-width="4"/>' if is_scanned else ""
    return (
        f'{_BELT}<rect x="9" y="9" width="46" height="46" rx="4" fill="{color}"/>'
        '<path d="M32 9v9" stroke="white" stroke-width="8"/><text x="32" y="46" '
        'text-anchor="middle" font-family="sans-serif" font-size="22" font-weight="bold" '
        f'fill="white">{lane}</text>{beam}'
    )


_CONVEYOR = {
    "=": _BELT,
    ">": '<path d="M6 22h30v-14l24 24l-24 24v-14h-30z" fill="#0f172a"/>',
    **{str(lane): _letter(str(lane), _COLORS[lane], is_dock=True) for lane in range(3)},
    **{sign: _parcel(lane, is_scanned=False) for lane, sign in enumerate("ABC")},
    **{sign: _parcel(lane, is_scanned=True) for lane, sign in enumerate("abc")},
}


def _hunter(number: int, color: str) -> str:
    return (
        f'{_MOUSE_PIECES["X"]}<circle cx="51" cy="51" r="11" fill="{color}"/><text x="51" y="56" '
        'text-anchor="middle" font-family="sans-serif" font-size="15" font-weight="bold" '
        f'fill="white">{number}</text>'
    )


_PURSUIT = {
    "0": _hunter(0, "#c2410c"),
    "1": _hunter(1, "#1d4ed8"),
    "P": _MOUSE_PIECES["M"],
}

_PIECES = {
    "conveyor": _CONVEYOR,
    "lpoc": _MOVERS,
    "mouse_and_cheese": _MOUSE_PIECES,
    "pursuit": _PURSUIT,
}
