"""The tab that asks about one observation: the form on the left, the answers on the right."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, cast

import streamlit as st

from demo.answers import describe_actions, describe_masses, format_probability, split_actions
from demo.charts import component_chart
from demo.observation_form import named_fields, named_inputs, raw_input
from demo.plain_text import as_code, as_text
from demo.server_client import AnswerKind, Observation, RefusalError, ServerClient
from policy_server.errors import SettingsError

__all__ = ["ask_each_kind", "show_asking", "show_refusal", "show_request"]


def show_asking(client: ServerClient, schema: Mapping[str, Any], *, key: str) -> None:
    """Draw the tab.

    Args:
        client: of the server.
        schema: the server's answer at /schema.
        key: sets the inputs apart from those of another server.
    """
    left, right = st.columns([7, 6], gap="large")
    with left:
        fields = named_fields(schema)
        is_raw = fields is None or st.toggle(
            "Flat observation", key=f"raw.{key}", help="What `/predict_raw` takes: a list"
        )
        with st.form("observation", border=False, enter_to_submit=False):
            given: Observation | SettingsError = (
                raw_input(schema, key=f"obs.{key}")
                if is_raw or fields is None
                else named_inputs(fields, key=key)
            )
            is_pressed = st.form_submit_button(
                "Predict", type="primary", key="predict", width="stretch"
            )
    if is_pressed:
        unread = _unread(given)
        st.session_state["answers"] = unread or ask_each_kind(client, cast("Observation", given))
    with right:
        if schema["policy"].get("memory_width"):
            st.caption(
                "This policy has a memory. It answers here as at an episode's first step; "
                "**Play an episode** keeps its memory from step to step."
            )
        answers = st.session_state.get("answers")
        if answers is None:
            st.info("Fill in an observation and press **Predict**.")
        elif isinstance(answers, RefusalError):
            show_refusal(answers)
        else:
            _show_answers(client, schema, answers)


def _unread(given: Observation | SettingsError) -> RefusalError | None:
    """Return the fields whose text can't be read, in the form of a refusal."""
    values = given.items() if isinstance(given, Mapping) else [("obs", given)]
    problems = [(name, value.message) for name, value in values if isinstance(value, SettingsError)]
    return RefusalError("this is no observation yet", problems=problems) if problems else None


def ask_each_kind(client: ServerClient, observation: Observation) -> dict[str, Any] | RefusalError:
    """Return the answer of each kind, and the observation; a kind that is not served refuses.

    One version answers all of them: they are shown as one policy's.

    Args:
        client: of the server.
        observation: by name, or flat.
    """
    answers: dict[str, Any] = {"observation": observation}
    episode = secrets.token_hex(8)
    try:
        answers["predict"] = client.ask("predict", observation, episode=episode)
    except RefusalError as refusal:
        return refusal
    kinds: tuple[AnswerKind, ...] = ("predict_deterministic", "distribution")
    for kind in kinds:
        try:
            answers[kind] = client.ask(kind, observation, episode=episode)
        except RefusalError as refusal:
            answers[kind] = refusal
    return answers


def _show_answers(
    client: ServerClient, schema: Mapping[str, Any], answers: Mapping[str, Any]
) -> None:
    components = schema["policy"]["components"]
    kinds = {"predict": "Drawn action", "predict_deterministic": "Deterministic action"}
    for column, (kind, title) in zip(st.columns(2), kinds.items(), strict=True):
        with column.container(border=True, height="stretch"):
            st.markdown(f"**{title}**")
            answer = answers[kind]
            if isinstance(answer, RefusalError):
                st.caption(as_text(answer.message))
                continue
            described = describe_actions(answer["actions"], components)
            if len(described) == 1:
                st.markdown(f"## {as_text(described[0][1])}")
            else:
                lines = [f"{as_text(name)}: **{as_text(text)}**" for name, text in described]
                st.markdown("  \n".join(lines))
            st.caption(format_probability(answer, components))
    distribution = answers["distribution"]
    if isinstance(distribution, RefusalError):
        st.info(as_text(distribution.message))
    else:
        _show_distribution(schema, answers)
    with st.expander("The requests"):
        _show_requests(client, answers)


def _show_distribution(schema: Mapping[str, Any], answers: Mapping[str, Any]) -> None:
    components = schema["policy"]["components"]
    parts = {
        kind: []
        if isinstance(answers[kind], RefusalError)
        else split_actions(answers[kind]["actions"], components)
        for kind in ("predict", "predict_deterministic")
    }
    for index, component in enumerate(answers["distribution"]["components"]):
        name = component.get("name") or f"action {index}"
        entry = schema.get("actions", {}).get(name, {})
        st.markdown(f"**{as_text(name)}** &nbsp; {as_text(entry.get('description', ''))}")
        chart = component_chart(
            component,
            bounds=entry,
            deterministic=next(iter(parts["predict_deterministic"][index : index + 1]), []),
            drawn=next(iter(parts["predict"][index : index + 1]), []),
            is_dark=st.context.theme.type == "dark",
        )
        st.altair_chart(chart, width="stretch", key=f"chart.{index}")
        if masses := describe_masses(component):
            st.caption(masses)
    if any(part["kind"] == "categorical" for part in answers["distribution"]["components"]):
        st.caption("◆ the deterministic action, ● the drawn one")


def _show_requests(client: ServerClient, answers: Mapping[str, Any]) -> None:
    kinds: tuple[AnswerKind, ...] = ("predict", "predict_deterministic", "distribution")
    for kind in kinds:
        show_request(client, client.request_of(kind, answers["observation"]), answers[kind])


def show_request(
    client: ServerClient, request: tuple[str, str], answer: Mapping[str, Any] | RefusalError
) -> None:
    """Show a request as a command, and its answer.

    Args:
        client: of the server.
        request: the route and the body.
        answer: the answer's JSON, or the refusal.
    """
    route, body = request
    shown = answer.message if isinstance(answer, RefusalError) else json.dumps(answer)
    version = f" -H 'x-policy-version: {client.version}'" if client.version else ""
    command = (
        f'curl -s {client.url}{route} -H "access-token: $KEY"{version} \\\n'
        f"  -H 'content-type: application/json' -d '{body}'"
    )
    st.code(f"{command}\n\n{shown}", language="bash", wrap_lines=True)


def show_refusal(refusal: RefusalError) -> None:
    """Show in words why there is no answer.

    Args:
        refusal: the server's refusal, or the failure to reach it.
    """
    message = as_text(refusal.message[:1].upper() + refusal.message[1:])
    problems = [f"- {as_code(field)}: {as_text(problem)}" for field, problem in refusal.problems]
    st.error("\n".join([f"{message}{':' if problems else '.'}", "", *problems]))
