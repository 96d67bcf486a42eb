"""The policies and versions of a server: a choice in the sidebar, and a comparison of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from demo.answers import describe_actions, format_probability
from demo.charts import component_chart
from demo.plain_text import as_text
from demo.server_client import RefusalError, ServerClient

__all__ = ["choose_version", "show_comparison"]

_BY_TRAFFIC = "as the traffic falls"
Listed = Mapping[str, Any]


def choose_version(client: ServerClient) -> tuple[ServerClient, Listed, Mapping[str, str] | None]:
    """Draw the choice of a policy and a version, where there are several.

    Args:
        client: of the server.

    Returns:
        A client of what was chosen, the policy's entry in `/policies`, and the policies of a
        team's agents there; None where there is no team.

    Raises:
        RefusalError: if the server can't be reached, or refuses.
    """
    listed = client.policies()
    entries = {entry["name"]: entry for entry in listed["policies"]}
    name = listed["default"]
    if len(entries) > 1:
        name = st.selectbox(
            "Policy of the server", list(entries), index=list(entries).index(name), key="asked"
        )
        client = client.of(policy=name)
    entry: Listed = entries[name]
    names = _loaded(entry)
    if len(names) > 1:
        version = st.selectbox("Version", [_BY_TRAFFIC, *names], key=f"version.{name}")
        client = client.of(version="" if version == _BY_TRAFFIC else version)
    if len(entry["versions"]) > 1:
        for version in entry["versions"]:
            st.caption(as_text(_describe_version(version)))
    return client, entry, listed.get("multi_agent")


def show_comparison(client: ServerClient, schema: Mapping[str, Any], entry: Listed) -> None:
    """Draw the answers of two versions to the observation that was asked about last.

    Args:
        client: of the policy.
        schema: the server's answer at /schema.
        entry: the policy's entry in `/policies`.
    """
    names = _loaded(entry)
    answers = st.session_state.get("answers")
    if not isinstance(answers, Mapping):
        st.info("Ask for an action first: its observation is what the versions are compared on.")
        return
    columns = st.columns(2, gap="large")
    for place, column in enumerate(columns):
        with column:
            name = st.selectbox(
                "Version" if place == 0 else "Compared with",
                names,
                index=min(place, len(names) - 1),
                key=f"compared.{place}",
            )
            _show_version(client.of(version=name), schema, answers, place)


def _show_version(
    client: ServerClient, schema: Mapping[str, Any], answers: Mapping[str, Any], place: int
) -> None:
    components = schema["policy"]["components"]
    observation = answers["observation"]
    try:
        mode = client.ask("predict_deterministic", observation)
        distribution = client.ask("distribution", observation)
    except RefusalError as refusal:
        st.caption(as_text(refusal.message))
        return
    with st.container(border=True):
        for name, text in describe_actions(mode["actions"], components):
            shown = as_text(text)
            st.markdown(f"{as_text(name)}: **{shown}**" if len(components) > 1 else f"## {shown}")
        st.caption(format_probability(mode, components))
    for index, component in enumerate(distribution["components"]):
        name = component.get("name") or f"action {index}"
        chart = component_chart(
            component,
            bounds=schema.get("actions", {}).get(name, {}),
            deterministic=[],
            drawn=[],
            is_dark=st.context.theme.type == "dark",
        )
        st.altair_chart(chart, width="stretch", key=f"compared.{place}.{index}")


def _loaded(entry: Listed) -> Sequence[str]:
    return [version["name"] for version in entry["versions"] if version["state"] != "failed"]


def _describe_version(version: Mapping[str, Any]) -> str:
    name, report = version["name"], version["agreement"]
    if version["reason"]:
        return f"{name}: could not be loaded: {version['reason']}"
    text = f"{name}: a shadow" if version["is_shadow"] else f"{name}: {version['traffic']:g} %"
    if report is None:
        return text
    if report["same_mode"] is None:
        return f"{text}, nothing compared yet"
    return f"{text}, the same action on {report['same_mode']:.1%} of {report['copies']}"
