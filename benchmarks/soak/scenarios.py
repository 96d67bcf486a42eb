"""All scenarios, with how often each is drawn."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.soak import episodes, manners, mistakes, questions
from benchmarks.soak.traffic import Scenario
from benchmarks.soak.versions import Reloads

__all__ = ["scenarios"]


def scenarios(reloads: Reloads) -> Mapping[str, tuple[Scenario, float]]:
    """Return the scenarios by name, each with its weight.

    Args:
        reloads: changes versions.
    """
    return {
        "one observation": (questions.ask_one, 40),
        "a draw": (questions.draw_one, 10),
        "a batch": (questions.ask_batch, 8),
        "many at once": (questions.ask_many_at_once, 6),
        "a team": (questions.ask_all_agents, 5),
        "pages": (questions.read_pages, 4),
        "metrics": (questions.scrape, 1),
        "sessions": (episodes.play_session, 3),
        "state tokens": (episodes.play_tokens, 2),
        "streams": (episodes.play_stream, 4),
        "streams with mistakes": (episodes.stream_questions, 3),
        "streams that break": (episodes.break_stream, 3),
        "mistakes": (mistakes.make_mistake, 15),
        "broken protocol": (mistakes.break_protocol, 3),
        "broken frames": (mistakes.break_frames, 2),
        "clients that leave": (manners.leave, 10),
        "slow requests": (manners.ask_slowly, 2),
        "half closed": (manners.half_close, 3),
        "slow readers": (manners.read_slowly, 1),
        "stalled heads": (manners.stall, 0.5),
        "versions": (reloads.cycle, 1),
    }
