"""The demo page, `streamlit run frontend.py`: start a policy's server, ask it, watch it play.

The page knows a policy only by a server's answers over HTTP.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import streamlit as st

from demo.asking import show_asking, show_refusal
from demo.asking_team import show_asking_team
from demo.examples import EXAMPLES, example_introduction, example_names
from demo.plain_text import as_text
from demo.played import served_team
from demo.playing import show_playing
from demo.server_client import RefusalError, ServerClient
from demo.server_process import Backend, ServerProcess, ServerSlot, has_served_policy
from demo.versions import choose_version, show_comparison
from policy_server.errors import PolicyServerError

if TYPE_CHECKING:
    from streamlit.runtime.uploaded_file_manager import UploadedFile

_DEFAULT_EXAMPLE = "lpoc"
_DEFAULT_URL = "http://127.0.0.1:8000"
_UPLOAD = "my own policy"
_START_HERE, _CONNECT = "Start one here", "Connect to one"
_BACKENDS = {"local": "local: starts in seconds", "ray": "ray: as in production"}
_LOG_LINES = 20
# Streamlit keeps as much room above a page as for its own tool bar, which is hidden.
# Its captions and the colours of code are fainter than WCAG 2 AA allows. On a phone its bar covers
# the top of the page, and the sidebar is behind a button that has no name.
_STYLE = """<style>
.stMainBlockContainer {padding-top: 2.5rem;}
h1 {font-size: 1.75rem !important;}
h2 {font-size: 1.5rem !important;}
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p {
  color: inherit !important; opacity: 1 !important;
}
[data-testid="stCode"] .token {color: inherit !important;}
[data-testid^="stBaseButton-primary"] {background-color: #1d4ed8; border-color: #1d4ed8;}
[data-testid="stMultiSelectTagsContainer"] [data-tag] {background-color: #1d4ed8 !important;}
@media (max-width: 640px) {
  .stMainBlockContainer {padding-top: 4.5rem;}
  [data-testid="stMarkdownContainer"] :is(th, td) {padding: 0.25rem 0.5rem !important;}
  [data-testid="stExpandSidebarButton"] {width: auto !important; padding: 0 0.5rem;}
  [data-testid="stExpandSidebarButton"]::after {content: "Server"; font-size: 1rem;}
}
</style>"""
_REFRESH_S = 1.0


@st.cache_resource(scope="session", on_release=lambda slot: slot.release(), show_spinner=False)
def _slot() -> ServerSlot:
    """Return the slot of this browser session's server; the server ends with the session."""
    return ServerSlot()


def main() -> None:
    """Draw the page."""
    st.set_page_config("Policy Server", page_icon="🧭", layout="wide")
    st.html(_STYLE)
    slot = _slot()
    with st.sidebar:
        st.title("Policy Server", anchor=False)
        client = _choose_server(slot)
    if client is not None:
        _show_policy(client)
    elif slot.server is not None:
        _watch_start(slot.server)
    else:
        _welcome()


def _choose_server(slot: ServerSlot) -> ServerClient | None:
    """Draw the sidebar, and return a client of the server, if there is one that should answer."""
    where = st.segmented_control(
        "Server", [_START_HERE, _CONNECT], default=_START_HERE, required=True,
        label_visibility="collapsed", key="where",
    )  # fmt: skip
    if where == _CONNECT:
        url = st.text_input("Address", _DEFAULT_URL, key="url")
        return ServerClient(url, _key_input())
    if slot.server is None:
        _offer_start(slot)
        return None
    server = slot.server
    documentation = f"[Documentation of its API]({server.url}/docs)"
    st.markdown(f"**{st.session_state['served']}** at {server.url}  \n{documentation}")
    is_ready = st.session_state["is_ready"]
    on_stop = slot.stop if is_ready else slot.release
    st.button("Stop the server", on_click=on_stop, key="stop", width="stretch")
    if server.exit_code is not None or not is_ready:
        return None
    return ServerClient(server.url, _key_input())


def _key_input() -> str:
    return st.text_input(
        "Access key",
        type="password",
        key="api_key",
        persist_state="session",
        help="`api_key` of schema.yaml, or POLICY_SERVER_API_KEY. A server that is started here "
        "fills it in.",
    )


def _offer_start(slot: ServerSlot) -> None:
    names = [*example_names(), _UPLOAD]
    name = st.selectbox(
        "Policy", names, index=names.index(_DEFAULT_EXAMPLE), key="policy", persist_state="session"
    )
    files: Sequence[UploadedFile] = ()
    schema: UploadedFile | None = None
    if name == _UPLOAD:
        files = st.file_uploader(
            "The policy",
            accept_multiple_files=True,
            key="files",
            help="A zip, such as `saved_model.zip`, or another file that holds a policy; with the "
            "file that belongs to it, such as `vec_normalize.pkl`. Zip a folder.",
        )
        schema = st.file_uploader("schema.yaml", type=["yaml", "yml"], key="yaml")
    backend = st.radio(
        "Backend",
        list(_BACKENDS),
        format_func=_BACKENDS.__getitem__,
        key="backend",
        persist_state="session",
    )
    replaces = st.checkbox(
        "Replace the served policy" if has_served_policy() else "Keep it as the served policy",
        key="replace",
        help="Copy the two files to where `uvicorn app:app` looks for them, in place of those "
        "there. Otherwise they go to a folder that is removed with the server.",
    )
    is_pressed = st.button(
        "Start the server from schema",
        type="primary",
        key="start",
        width="stretch",
        disabled=name == _UPLOAD and not (files and schema),
    )
    if not is_pressed:
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = EXAMPLES / name
            if name == _UPLOAD:
                source = Path(folder)
                assert schema is not None, "the button is disabled"
                for file in files:
                    (source / Path(file.name).name).write_bytes(file.getvalue())
                (source / "schema.yaml").write_bytes(schema.getvalue())
            with st.spinner("Loading the policy to see whether it can be served …"):
                slot.server = ServerProcess(
                    source, backend=cast("Backend", backend), replace_served_policy=replaces
                )
    except PolicyServerError as error:
        st.error(f"The policy can't be served: {as_text(error.message)}.")
        return
    st.session_state["served"] = name
    st.session_state["is_ready"] = False
    st.session_state["api_key"] = slot.server.api_key
    st.rerun()


def _welcome() -> None:
    name = st.session_state.get("policy", _DEFAULT_EXAMPLE)
    if name == _UPLOAD:
        st.info(
            "Choose the files of your policy: its zip or other file, such as `saved_model.zip`, "
            "and the `schema.yaml` that says what an observation looks like."
        )
        return
    title, text = example_introduction(name)
    schema = (EXAMPLES / name / "schema.yaml").read_text(encoding="utf-8")
    with st.container(border=True):
        st.header(title, anchor=False)
        st.markdown(text)
        with st.expander("schema.yaml", expanded=True):
            # The key is for the password field.
            st.code("".join(_without_key(schema)), language="yaml", wrap_lines=True)


def _without_key(schema: str) -> list[str]:
    return [line for line in schema.splitlines(keepends=True) if "api_key" not in line]


def _watch_start(server: ServerProcess) -> None:
    """Show how the start gets on, until the server is ready or has ended."""
    if server.exit_code is not None:
        st.error(
            f"The server ended by itself (exit code {server.exit_code}). The end of its log says "
            "why; stop it on the left to choose again."
        )
        st.code(
            server.log_tail(_LOG_LINES) or "(it printed nothing)", language=None, wrap_lines=True
        )
        return

    def progress() -> None:
        if ServerClient(server.url, server.api_key).is_ready():
            st.session_state["is_ready"] = True
        if st.session_state["is_ready"] or server.exit_code is not None:
            st.rerun()
        st.status(f"Starting the server: {server.age_s:.0f} s", state="running")
        st.code(server.log_tail(_LOG_LINES) or "…", language=None, wrap_lines=True)

    st.fragment(progress, run_every=_REFRESH_S)()


def _show_policy(client: ServerClient) -> None:
    try:
        with st.sidebar:
            client, entry, rules = choose_version(client)
        schema, team = client.schema(), served_team(client, rules)
    except RefusalError as refusal:
        show_refusal(refusal)
        return
    digest = hashlib.sha256(
        f"{client.url} {client.policy} {json.dumps([schema, rules])}".encode()
    ).hexdigest()[:12]
    if st.session_state.get("shown") != digest:
        # Answers of another policy say nothing about this one.
        st.session_state["shown"] = digest
        for stale in ("answers", "team_answers", "episode", "is_running", "sessions"):
            st.session_state.pop(stale, None)
    st.sidebar.caption(as_text(_describe_policy(schema)))
    tabs: dict[str, Callable[[], None]] = {
        "Ask for an action": lambda: show_asking(client, schema, key=digest)
    }
    if team is not None:
        tabs["Ask the team"] = lambda: show_asking_team(team, key=digest)
    tabs["Play an episode"] = lambda: show_playing(client, schema, team)
    if len(entry["versions"]) > 1:
        tabs["Compare versions"] = lambda: show_comparison(client, schema, entry)
    for tab, show in zip(st.tabs(list(tabs)), tabs.values(), strict=True):
        with tab:
            show()


_BASES = {
    "structure": "as its file itself tells",
    "metadata": "as its file describes, whose test vectors agree",
    "names": "as the names of its outputs state",
    "schema": "as schema.yaml states",
    "graph": "drawn by the model itself",
}


def _describe_policy(schema: Mapping[str, Any]) -> str:
    policy = schema["policy"]
    width = policy["observation_width"]
    proof = _BASES[policy["basis"]]
    observation = "observations of any length" if width is None else f"{width} values in"
    return f"{observation}, {policy['family']} out · {proof}"


if __name__ == "__main__":
    main()
