"""The tab that asks for the actions of a team: a form for each agent, and one request for all."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, cast

import streamlit as st

from demo.answers import describe_actions, format_probability
from demo.asking import show_refusal, show_request
from demo.observation_form import named_fields, named_inputs, raw_input
from demo.plain_text import as_text
from demo.played import ServedTeam
from demo.server_client import AnswerKind, Observation, RefusalError
from policy_server.commands.served_policies import team_body
from policy_server.errors import SettingsError

__all__ = ["show_asking_team", "some_agents"]

_ANY = "*"
_KINDS: dict[AnswerKind, str] = {"predict": "Drawn", "predict_deterministic": "Deterministic"}
Given = Observation | SettingsError


def some_agents(rules: Mapping[str, str]) -> list[str]:
    """Return agents to begin with: each id of the rules, and two of each pattern.

    Example: `hunter_0`, `hunter_1` and `prey` of `{"hunter_*": "hunter", "prey": "prey"}`.

    Args:
        rules: `multi_agent` of the server.
    """
    found = [
        pattern.replace(_ANY, number)
        for pattern in rules
        for number in ("0", "1")[: 1 + (_ANY in pattern)]
    ]
    return list(dict.fromkeys(found))


def show_asking_team(team: ServedTeam, *, key: str) -> None:
    """Draw the tab.

    Args:
        team: the policies of the server's team.
        key: sets the inputs apart from those of another server.
    """
    known = some_agents(team.agents.rules)
    agents = st.multiselect(
        "Agents",
        known,
        default=known,
        accept_new_options=team.agents.has_patterns,
        key=f"agents.{key}",
        help="Those that are there in this step; type in others that a pattern is about",
    )
    strangers = [agent for agent in agents if team.agents.policy_of(agent) is None]
    if strangers:
        known_rules = as_text(", ".join(team.agents.rules))
        st.error(
            f"The server has no policy for {as_text(', '.join(strangers))}: its multi_agent has "
            f"{known_rules}."
        )
        return
    left, right = st.columns([7, 6], gap="large")
    with left, st.form("team", border=False, enter_to_submit=False):
        given = {agent: _inputs(team, agent, key=f"{key}.{agent}") for agent in agents}
        is_pressed = st.form_submit_button(
            "Predict for all", type="primary", key="predict_team", width="stretch"
        )
    if is_pressed:
        st.session_state["team_answers"] = _ask(team, given)
    with right:
        answers = st.session_state.get("team_answers")
        if answers is None:
            st.info("Fill in the agents' observations and press **Predict for all**.")
        elif isinstance(answers, RefusalError):
            show_refusal(answers)
        else:
            _show_answers(team, answers)


def _inputs(team: ServedTeam, agent: str, *, key: str) -> Given | dict[str, Any]:
    policy = team.agents.policy_of(agent)
    assert policy is not None, "a stranger is refused before"
    schema = team.schemas[policy]
    fields = named_fields(schema)
    with st.expander(f"**{as_text(agent)}** · {as_text(policy)}", expanded=True):
        if fields is None:
            return raw_input(schema, key=f"obs.{key}")
        return named_inputs(fields, key=key)


def _ask(team: ServedTeam, given: Mapping[str, Given]) -> dict[str, Any] | RefusalError:
    """Return the answers of each kind, and the requests."""
    problems = [
        (f"{agent}.{name}" if name else agent, value.message)
        for agent, values in given.items()
        for name, value in (values.items() if isinstance(values, Mapping) else [("", values)])
        if isinstance(value, SettingsError)
    ]
    if problems:
        return RefusalError("these are no observations yet", problems=problems)
    body, is_flat = team_body(cast("Mapping[str, Observation]", given), {}, ())
    answers: dict[str, Any] = {}
    episode = secrets.token_hex(8)
    try:
        for kind in _KINDS:
            request = team.client.request_of(kind, body, is_flat=is_flat)
            answer = team.client.ask(kind, body, is_flat=is_flat, episode=episode)
            answers[kind] = (request, answer)
    except RefusalError as refusal:
        return refusal
    return answers


def _show_answers(team: ServedTeam, answers: Mapping[AnswerKind, Any]) -> None:
    drawn, modes = (answers[kind][1] for kind in _KINDS)
    rows = [f"| Agent | {' | '.join(_KINDS.values())} |", "|---|---|---|"]
    for agent in drawn:
        policy = team.agents.policy_of(agent)
        assert policy is not None, "the server has answered"
        components = team.schemas[policy]["policy"]["components"]
        cells = [_describe(found[agent], components) for found in (drawn, modes)]
        rows.append(f"| {as_text(agent)} | {' | '.join(cells)} |")
    st.markdown("\n".join(rows))
    with st.expander("The requests"):
        for request, found in answers.values():
            show_request(team.client, request, found)


def _describe(answer: Mapping[str, Any], components: Sequence[Mapping[str, Any]]) -> str:
    described = describe_actions(answer["actions"], components)
    texts = [
        f"**{as_text(text)}**" if len(described) == 1 else f"{as_text(name)}: **{as_text(text)}**"
        for name, text in described
    ]
    return f"{', '.join(texts)}, {format_probability(answer, components)}"
