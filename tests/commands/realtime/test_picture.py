"""The report of a loop, as text and as a picture."""

from __future__ import annotations

from xml.etree import ElementTree

from policy_server.commands.realtime.figures import Bar, LoopFigures, PolicyFigures, Spread
from policy_server.commands.realtime.picture import as_svg, as_text

SPREAD = Spread(0.1, 0.2, 0.3, 12.5)


def figures(*names: str) -> LoopFigures:
    """Return the figures of policies that are asked at each tick."""
    bars = [Bar(0.1 * at, 0.1 * (at + 1), at) for at in range(1, 21)]
    return LoopFigures(
        transport="stream over UNIX socket",
        hz=200.0,
        ticks=90,
        planned=100,
        deadline_ms=5.0,
        missed=3,
        start_jitter_ms=SPREAD,
        answered_ms=SPREAD,
        policies=[PolicyFigures(name, 90, {"503": 2}, SPREAD, SPREAD, bars) for name in names],
    )


def test_text_has_the_figures_and_a_bar_for_each_range() -> None:
    lines = [*as_text(figures("lift"))]

    assert lines[0] == (
        "stream over UNIX socket, 200 Hz: 90 of 100 ticks, 3 missed their deadline of 5 ms"
    )
    assert "round trip                       0.100     0.200     0.300    12.500" in lines
    assert "errors: 2 x 503" in lines
    assert lines[-1].endswith("20 " + "#" * 40)
    assert sum("#" in line for line in lines) == 20


def test_text_of_several_policies_names_each() -> None:
    text = "\n".join(as_text(figures("lift", "door")))

    assert "round trip of lift" in text
    assert "round trips of door" in text


def test_picture_has_a_bar_for_each_range_and_escaped_names() -> None:
    picture = as_svg(figures("a<b", "door"))

    root = ElementTree.fromstring(picture)  # noqa: S314 -- our own picture
    titles = [item.text for item in root.iter("{http://www.w3.org/2000/svg}title")]
    texts = [item.text or "" for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len(titles) == 40
    assert titles[0] == "0.1 to 0.2 ms: 1"
    assert any("a<b" in text for text in texts)
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")
