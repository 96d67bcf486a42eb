"""The figures of a closed loop as lines of text, and as one SVG file."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from policy_server.commands.realtime.figures import Bar, LoopFigures, PolicyFigures, Spread

__all__ = ["as_svg", "as_text"]

_BAR_WIDTH = 40
_SPREAD = ("p50", "p90", "p99", "worst")
_WIDTH, _MARGIN, _TOP, _PLOT, _GAP = 720, 60, 76, 200, 120


def as_text(figures: LoopFigures) -> Iterator[str]:
    """Yield the lines of a report.

    Args:
        figures: what was measured.
    """
    yield (
        f"{figures.transport}, {figures.hz:g} Hz: {figures.ticks} of {figures.planned} ticks, "
        f"{figures.missed} missed their deadline of {figures.deadline_ms:g} ms"
    )
    yield ""
    yield f"{'milliseconds':<28}" + "".join(f"{name:>10}" for name in _SPREAD)
    yield _row("start of a tick, late by", figures.start_jitter_ms)
    for policy in figures.policies:
        yield _row(f"round trip{_behind(figures, policy)}", policy.round_trip_ms)
        yield _row(f"answers, uneven by{_behind(figures, policy)}", policy.answer_jitter_ms)
    yield _row("schedule to answer", figures.answered_ms)
    for policy in figures.policies:
        if policy.errors:
            counts = ", ".join(f"{count} x {status}" for status, count in policy.errors.items())
            yield f"errors{_behind(figures, policy)}: {counts}"
    for policy in figures.policies:
        yield ""
        yield f"round trips{_behind(figures, policy)}"
        yield from _bars(policy.histogram)


def as_svg(figures: LoopFigures) -> str:
    """Return a picture: the histogram of each policy's round trips, with its figures.

    Args:
        figures: what was measured.
    """
    height = _TOP + len(figures.policies) * (_PLOT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="13" '
        'fill="#222">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        _text(
            _MARGIN,
            28,
            f"{figures.transport}, {figures.hz:g} Hz, {figures.ticks} ticks: {figures.missed} "
            f"missed {figures.deadline_ms:g} ms",
            size=16,
        ),
        _text(_MARGIN, 48, f"start of a tick, late by: {_said(figures.start_jitter_ms)}"),
        _text(_MARGIN, 66, f"schedule to answer: {_said(figures.answered_ms)}"),
    ]
    for index, policy in enumerate(figures.policies):
        parts += _plot(figures, policy, _TOP + index * (_PLOT + _GAP))
    return "\n".join([*parts, "</svg>", ""])


def _behind(figures: LoopFigures, policy: PolicyFigures) -> str:
    return f" of {policy.policy}" if len(figures.policies) > 1 else ""


def _row(title: str, spread: Spread) -> str:
    return f"{title:<28}" + "".join(f"{getattr(spread, name):>10.3f}" for name in _SPREAD)


def _said(spread: Spread) -> str:
    return f"p50 {spread.p50:.3g}, p99 {spread.p99:.3g}, worst {spread.worst:.3g} ms"


def _bars(histogram: list[Bar]) -> Iterator[str]:
    most = max(bar.count for bar in histogram)
    for bar in histogram:
        length = -(-_BAR_WIDTH * bar.count // most)
        yield f"{bar.low_ms:>9.3f} to {bar.high_ms:>9.3f} ms {bar.count:>7} {'#' * length}".rstrip()


def _plot(figures: LoopFigures, policy: PolicyFigures, top: int) -> Iterator[str]:
    histogram = policy.histogram
    most = max(bar.count for bar in histogram)
    step = (_WIDTH - 2 * _MARGIN) / len(histogram)
    floor = top + 40 + _PLOT
    title = f"round trips{_behind(figures, policy)}: {_said(policy.round_trip_ms)}"
    yield _text(_MARGIN, top + 24, title)
    for at, bar in enumerate(histogram):
        length = _PLOT * bar.count / most
        yield (
            f'<rect x="{_MARGIN + at * step + 1:.1f}" y="{floor - length:.1f}" '
            f'width="{step - 2:.1f}" height="{length:.1f}" fill="#3b6ea5">'
            f"<title>{bar.low_ms:g} to {bar.high_ms:g} ms: {bar.count}</title></rect>"
        )
    yield f'<path d="M{_MARGIN} {floor}H{_WIDTH - _MARGIN}" stroke="#222"/>'
    for at in range(0, len(histogram) + 1, len(histogram) // 4):
        edge = histogram[at].low_ms if at < len(histogram) else histogram[-1].high_ms
        yield _text(_MARGIN + at * step, floor + 18, f"{edge:.3g} ms", anchor="middle")
    yield _text(_MARGIN - 8, floor - _PLOT + 10, str(most), anchor="end")


def _text(x: float, y: float, said: str, *, size: int = 13, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" text-anchor="{anchor}">{escape(said)}</text>'
    )
