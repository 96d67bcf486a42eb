"""The tab that plays an example's environment with the served policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from demo.asking import show_refusal
from demo.episode import Episode
from demo.episode_view import show_episode
from demo.pictures import is_board
from demo.plain_text import as_text
from demo.played import Played, ServedTeam, find_played
from demo.server_client import RefusalError, ServerClient
from policy_server.errors import SettingsError

__all__ = ["show_playing"]

_STEP_S = 0.3
# On a board each step can be followed; the others' episodes are long.
_STEPS_AT_ONCE = 4
_DRAWN, _DETERMINISTIC = "drawn", "deterministic"


def show_playing(client: ServerClient, schema: Mapping[str, Any], team: ServedTeam | None) -> None:
    """Draw the tab.

    Args:
        client: of the server.
        schema: the server's answer at /schema.
        team: the policies of the server's team.
    """
    played = find_played(client, schema, team)
    if played is None:
        st.info("None of the examples' environments has these observations and actions.")
        return
    is_running = st.session_state.get("is_running", False)
    fragment = st.fragment(_play, run_every=_STEP_S if is_running else None)
    fragment(played)


def _play(played: Played) -> None:
    state = st.session_state
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        seed = st.number_input("Seed", min_value=0, value=0, step=1, key="seed", width=140)
        choice = st.radio("Actions are", [_DRAWN, _DETERMINISTIC], horizontal=True, key="choice")
    has_memory = _show_memory(played)
    begun = (played.name, seed, has_memory, played.client.version)
    if state.get("begun") != begun or "episode" not in state:
        try:
            state["episode"], state["begun"] = Episode(played.name, seed=seed), begun
        except SettingsError as error:
            st.error(f"{as_text(error.message)}.")
            return
    episode: Episode = state["episode"]
    steps = _draw_buttons(episode)
    try:
        session = _session(played.client, episode) if steps and has_memory else ""
        for _ in range(steps):
            if not episode.is_over:
                episode.step(played, is_deterministic=choice == _DETERMINISTIC, session=session)
    except RefusalError as refusal:
        show_refusal(refusal)
        state["is_running"] = False
    if episode.is_over and steps:
        state["is_running"] = False
        # The buttons are drawn already, and the page still comes back by itself.
        st.rerun()
    show_episode(episode, played)


def _show_memory(played: Played) -> bool:
    """Say that a policy has a memory, if so, and return whether the episode is to keep it."""
    width = played.memory_width
    if not width:
        return False
    whose = "policy's memory" if played.agents is None else "policies' memories"
    return st.toggle(
        f"Keep the {whose} ({width} numbers) from step to step",
        value=True,
        key="keeps_memory",
        help="A session of the server keeps it; Reset empties it. Switched off, each step is "
        "answered as an episode's first.",
    )


def _session(client: ServerClient, episode: Episode) -> str:
    """Return the session of an episode: a new episode begins in the session of the one before."""
    sessions: dict[str, str] = st.session_state.setdefault("sessions", {})
    if not episode.rewards:
        sessions[client.version] = client.begin_episode(sessions.get(client.version, ""))
    return sessions[client.version]


def _draw_buttons(episode: Episode) -> int:
    """Return how many steps to take now."""
    state = st.session_state
    is_running = state.get("is_running", False)
    with st.container(horizontal=True):
        is_run = st.button(
            "Pause" if is_running else "Run",
            # A click that comes twice, beside the page's own coming back, does the same twice.
            key="pause" if is_running else "run",
            type="primary",
            disabled=episode.is_over,
            width=100,
        )
        is_step = st.button("Step", key="step", disabled=episode.is_over or is_running)
        is_reset = st.button("Reset", key="reset")
    if is_reset or is_run:
        state["is_running"] = is_run and not is_running
        if is_reset:
            del state["episode"]
        st.rerun()
    if is_running:
        return 1 if is_board(episode.name) else _STEPS_AT_ONCE
    return int(is_step)
