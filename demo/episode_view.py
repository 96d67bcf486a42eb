"""How far an episode is: its figures, its picture and the chart of its rewards."""

from __future__ import annotations

import streamlit as st

from demo.answers import describe_actions
from demo.charts import reward_chart, team_return_chart
from demo.episode import Episode
from demo.plain_text import as_text
from demo.played import Played
from policy_server.commands.games import ALONE

__all__ = ["show_episode"]


def show_episode(episode: Episode, played: Played) -> None:
    """Draw an episode.

    Args:
        episode: the episode.
        played: the policies of its agents.
    """
    if played.agents is None:
        _show_figures(episode, played)
    else:
        _show_team(episode, played)
    picture = episode.picture()
    left, right = st.columns(2, gap="large") if picture else (None, st.container())
    if left is not None and picture is not None:
        left.image(picture, alt=f"state of {episode.name}")
    with right:
        if episode.rewards:
            returns = {agent: episode.rewards_of(agent) for agent in episode.agents}
            chart = (
                reward_chart(returns[ALONE])
                if played.agents is None
                else team_return_chart(returns)
            )
            st.altair_chart(chart, width="stretch", key="rewards")
        if episode.is_over:
            st.success(f"The episode is over after {len(episode.rewards)} steps.")


def _show_figures(episode: Episode, played: Played) -> None:
    rewards = episode.rewards_of(ALONE)
    figures = {
        "Steps": str(len(rewards)),
        "Last reward": f"{rewards[-1]:.2f}" if rewards else "-",
        "Return": f"{sum(rewards):.2f}",
    }
    with st.container(horizontal=True, gap="medium"):
        for label, value in figures.items():
            st.metric(label, value, width=120)
        if episode.actions:
            described = describe_actions(episode.actions[ALONE], played.components_of(ALONE))
            actions = [f"{as_text(name)}: **{as_text(text)}**" for name, text in described]
            st.markdown("  \n".join([":small[Last action]", *actions]), width="content")


def _show_team(episode: Episode, played: Played) -> None:
    """Draw a row of figures for each agent."""
    rows = ["| Agent | Policy | Action | Reward | Return |", "|---|---|---|--:|--:|"]
    for agent in episode.agents:
        rewards = episode.rewards_of(agent)
        actions = episode.actions.get(agent)
        described = describe_actions(actions, played.components_of(agent)) if actions else []
        action = ", ".join(
            text if len(described) == 1 else f"{name}: {text}" for name, text in described
        )
        last = f"{rewards[-1]:.2f}" if rewards else "-"
        rows.append(
            f"| {as_text(agent)} | {as_text(played.policy_of(agent))} | "
            f"**{as_text(action) if action else '-'}** | {last} "
            f"| {sum(rewards):.2f} |"
        )
    with st.container(horizontal=True, gap="medium"):
        st.metric("Steps", str(len(episode.rewards)), width=120)
        st.markdown("\n".join(rows), width="content")
