"""The page as a user sees it, in streamlit's AppTest, against servers that really answer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df
from streamlit.testing.v1 import AppTest

from demo.answers import describe_actions, describe_masses, format_probability, split_actions
from demo.asking import ask_each_kind
from demo.asking_team import some_agents
from demo.charts import component_chart, density, reward_chart
from demo.episode import Episode
from demo.examples import EXAMPLES, example_names, find_example, find_team_example
from demo.observation_form import flat_example, parse_values
from demo.plain_text import as_text
from demo.played import Played, ServedTeam, find_played
from demo.server_client import RefusalError, ServerClient
from demo.server_process import ServerProcess
from policy_server import create_app
from policy_server.commands.games import ALONE
from policy_server.errors import SettingsError
from policy_server.schema import AgentPolicies, parse_schema_file, public_schema, read_schema_file
from tests.support.fakes import masked_backend
from tests.support.folders import ROOT
from tests.support.processes import child, descendants, is_running
from tests.support.servers import KEY, Handler, answered_by, live_server, served_app
from tests.support.waiting import wait_until

pytestmark = pytest.mark.page

PAGE = str(ROOT / "frontend.py")
START_TIMEOUT_S = 120.0
EXAMPLE_KEY = "1234567asdfgh"
SCHEMA = f"""
observations:
  speed: {{type: float, description: In m/s, minimum: 0, maximum: 30, example: 12.5}}
  gear: {{type: int, minimum: 1, maximum: 6}}
  is_open: {{type: bool, example: true}}
actions:
  move: {{description: Where it goes, labels: [stay, go]}}
parameters: {{api_key: {KEY}}}
"""
LISTS = f"""
observations:
  links: {{type: "List[float]", min_items: 2, max_items: 2, example: [0.5, 1.5]}}
  gates: {{type: "List[bool]", min_items: 1, max_items: 4, example: [true]}}
parameters: {{api_key: {KEY}}}
"""
WORDS = f"""
observations:
  gear: {{type: int, minimum: 1, one_hot: 3}}
  image: {{type: "List[int]", shape: [2, 2], minimum: 0, maximum: 9}}
parameters: {{api_key: {KEY}}}
"""
SCALED = ROOT / "tests" / "data" / "policies" / "sb3_ppo_vecnorm"
MASKED = f"""
observations: {{x: {{type: float}}, y: {{type: float}}}}
parameters: {{api_key: {KEY}}}
"""
ASKING_TEAM = """
import streamlit as st
from demo.asking_team import show_asking_team

show_asking_team(st.session_state["team"], key="")
"""
SCANNED = {"scanned": [True, False, False], "is_at_gate": False}
RAW = f"parameters: {{api_key: {KEY}}}\n"
COMPONENTS = [
    {"kind": "categorical", "size": 2, "name": "move", "labels": ["stay", "go"]},
    {"kind": "normal", "size": 2, "name": "force", "labels": None},
]


@pytest.fixture(autouse=True)
def _page_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("POLICY_SERVER_")]:
        monkeypatch.delenv(name)
    yield
    # As a session's end does, it stops a server that a test left behind.
    st.cache_resource.clear()
    for thread in threading.enumerate():
        if "(stop)" in thread.name:
            thread.join()


def opened_page() -> AppTest:
    page = AppTest.from_file(PAGE, default_timeout=60).run()
    assert not page.exception
    return page


def connected_page(url: str, key: str = KEY) -> AppTest:
    page = opened_page()
    page.segmented_control(key="where").set_value("Connect to one").run()
    page.text_input(key="url").set_value(url)
    page.text_input(key="api_key").set_value(key).run()
    assert not page.exception
    return page


def press(page: AppTest, key: str) -> AppTest:
    page.button(key=key).click().run()
    assert not page.exception
    return page


def widget(widgets: Any, label: str) -> Any:  # noqa: ANN401 -- streamlit's own elements
    return next(item for item in widgets if item.label == as_text(label))


def text_of(page: AppTest) -> str:
    elements = [*page.markdown, *page.caption, *page.error, *page.info, *page.code, *page.success]
    return "\n".join(str(element.value) for element in elements)


def chart_rows(page: AppTest) -> list[dict[str, Any]]:
    """Return the data of the one chart on the page, which travels apart from its description."""
    (chart,) = page.get("vega_lite_chart")
    (dataset,) = chart.proto.datasets
    rows: list[dict[str, Any]] = convert_arrow_bytes_to_pandas_df(dataset.data.data).to_dict(
        "records"
    )
    return rows


def run_until(page: AppTest, is_reached: Callable[[], bool]) -> None:
    def has_run() -> bool:
        if is_reached():
            return True
        page.run()
        assert not page.exception
        return False

    wait_until(has_run, timeout_s=START_TIMEOUT_S, pause_s=0.3, told=lambda: text_of(page))


@contextmanager
def answering(status: int, detail: object) -> Iterator[str]:
    """Serve one answer to whatever is asked."""

    class Refusing(Handler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            body = detail if isinstance(detail, bytes) else json.dumps({"detail": detail}).encode()
            self.reply(status, body)

    with answered_by(Refusing) as url:
        yield url


# What a server refuses, in words


@pytest.mark.parametrize(
    ("status", "detail", "message"),
    [
        pytest.param(401, "wrong access key", "access key is wrong", id="wrong key"),
        pytest.param(401, "no access key; send it", "access key is missing", id="no key"),
        pytest.param(501, "it is not served", "can't answer that: it is not served", id="501"),
        pytest.param(503, "full", "busy or still starting: full", id="503"),
        pytest.param(500, "internal error", "answered 500: internal error", id="500"),
        pytest.param(404, "none", "no such route", id="404"),
        pytest.param(418, b"<html>", "answered 418: I'm a Teapot", id="not ours"),
        pytest.param(200, b"<html>", "not as a Policy Server does", id="not JSON"),
        pytest.param(200, b"[" * 200_000, "not as a Policy Server does", id="deep"),
        pytest.param(422, b"[" * 200_000, "answered 422: Unprocessable", id="deep refusal"),
        pytest.param(422, ["x"], "answered 422: Unprocessable", id="strange list"),
        pytest.param(422, {"x": 1}, "answered 422: Unprocessable", id="object"),
    ],
)
def test_refusal_is_said_in_words(status: int, detail: object, message: str) -> None:
    with answering(status, detail) as url, pytest.raises(RefusalError, match=message):
        ServerClient(url, KEY).ask("predict", {})


def test_refused_observation_lists_its_fields() -> None:
    detail = [
        {"type": "less_than_equal", "loc": ["body", "links", 3], "msg": "too large"},
        {"type": "json_invalid", "loc": ["body"], "msg": "no JSON"},
    ]

    with answering(422, detail) as url, pytest.raises(RefusalError) as caught:
        ServerClient(url, KEY).ask("predict", [1.0])

    assert caught.value.problems == (("links[3]", "too large"), ("the observation", "no JSON"))


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        pytest.param("http://127.0.0.1:1", KEY, "no server answers at", id="refused"),
        pytest.param("127.0.0.1:8000", KEY, "expected an address such as", id="no scheme"),
        pytest.param("http://[", KEY, "expected an address such as", id="no address"),
        pytest.param("http://127.0.0.1:1", "schlüssel", "an HTTP header can't carry", id="key"),
    ],
)
def test_server_that_can_not_be_asked_is_said_in_words(url: str, key: str, message: str) -> None:
    with pytest.raises(RefusalError, match=message):
        ServerClient(url, key).schema()


@pytest.mark.parametrize(
    "answer",
    ["{}", "[]", '"ok"', '{"policies": []}', '{"default": "a", "policies": [{"name": 1}]}'],
)
def test_server_of_another_kind_is_said_in_words(answer: str) -> None:
    with answering(200, answer.encode()) as url:
        page = connected_page(url)

    assert not page.exception
    assert "not as a Policy Server does" in text_of(page)


# Values and words


@pytest.mark.parametrize(
    ("text", "values"),
    [
        pytest.param("1, 2.5 -3e2", [1, 2.5, -300.0], id="numbers"),
        pytest.param("[true,\n False]", [True, False], id="truth values"),
        pytest.param(" ", [], id="nothing"),
    ],
)
def test_list_is_read_from_text(text: str, values: list[Any]) -> None:
    assert parse_values(text) == values
    assert [type(value) for value in parse_values(text)] == [type(value) for value in values]


def test_text_that_is_no_list_names_the_word() -> None:
    with pytest.raises(SettingsError, match="got 'two'"):
        parse_values("1, two")


def test_flat_example_follows_the_examples_and_the_bounds() -> None:
    schema = {
        "observations": {
            "hour": {"type": "float", "example": 11.5},
            "id": {"type": "int", "minimum": 2},
            "is_open": {"type": "List[bool]", "min_items": 2, "example": [True, False]},
        },
        "policy": {"observation_width": 4},
    }

    assert flat_example(schema) == [11.5, 2.0, 1.0, 0.0]


@pytest.mark.parametrize("word", [{"one_hot": 3}, {}], ids=["by the schema", "by the file"])
def test_flat_example_is_zeros_where_the_rows_numbers_are_others(word: dict[str, int]) -> None:
    schema = {
        "observations": {"gear": {"type": "int", **word}},
        "policy": {"observation_width": 3},
    }

    assert flat_example(schema) == [0.0, 0.0, 0.0]


def test_actions_are_split_by_component_and_named() -> None:
    actions = [1, [0.25, -1.0]]

    assert split_actions(actions, COMPONENTS) == [[1], [0.25, -1.0]]
    assert describe_actions(actions, COMPONENTS) == [("move", "go"), ("force", "0.25, -1")]
    assert describe_actions([3], []) == [("action", "3")]


def test_probability_is_called_a_density_where_an_action_is_continuous() -> None:
    assert format_probability({"probability": 2.5}, COMPONENTS) == "probability density 2.5"
    assert format_probability({"probability": 0.25}, COMPONENTS[:1]) == "probability 25.0 %"
    assert format_probability({"probability": None}, []) == "probability unknown"
    assert format_probability({"probability": 2.5}, []) == "probability or density 2.5"


def test_probability_of_numbers_at_a_bound_says_so() -> None:
    answer = {"probability": 0.25, "at_bound": [1, 2]}

    assert format_probability(answer, COMPONENTS) == (
        "probability 25.0 %, 2 of 2 numbers at a bound"
    )
    assert format_probability(answer | {"at_bound": [2]}, COMPONENTS) == (
        "probability density 0.25, 1 of 2 numbers at a bound"
    )
    assert format_probability(answer | {"at_bound": []}, COMPONENTS) == "probability density 0.25"


def test_masses_are_described_where_there_are_some() -> None:
    component = {"kind": "normal", "mass_at_low": [0.125, 0.0], "mass_at_high": [0.5, 1.0]}

    assert describe_masses({"kind": "normal"}) == ""
    assert describe_masses(component) == (
        "Cut at a bound: 12.5 % at the lower, 50.0 % at the upper; 0.0 % at the lower, 100 % at "
        "the upper"
    )


def test_curve_of_a_normal_ends_at_the_bounds_that_cut_it() -> None:
    component = {"kind": "normal", "mean": [0.5], "std": [1.0]}

    actions, _ = density(component, {"low": [-1], "high": [2]}, 0)

    assert (actions[0], actions[-1]) == (-1.0, 2.0)


# Charts


@pytest.mark.parametrize(
    ("kind", "bounds", "low", "high"),
    [
        pytest.param("normal", {}, -3.5, 4.5, id="normal"),
        pytest.param("squashed_normal", {}, -1, 1, id="squashed"),
        pytest.param("squashed_normal", {"low": [-2], "high": [6]}, -2, 6, id="rescaled"),
        pytest.param(
            "squashed_normal", {"low": [-2], "high": [6], "normalized": False}, -1, 1, id="clipped"
        ),
    ],
)
def test_density_covers_the_actions_and_has_the_area_one(
    kind: str, bounds: dict[str, Any], low: float, high: float
) -> None:
    component = {"kind": kind, "mean": [0.1, 0.5], "std": [0.3, 1.0]}

    actions, values = density(component, bounds, 1)

    assert actions[0] == pytest.approx(low, abs=0.01)
    assert actions[-1] == pytest.approx(high, abs=0.01)
    assert np.trapezoid(values, actions) == pytest.approx(1.0, abs=0.01)


def test_bars_carry_labels_percentages_and_marks() -> None:
    component = {
        "kind": "categorical",
        "name": "move",
        "labels": ["stay", "go"],
        "probabilities": [0.9998, 0.0002],
    }

    chart = component_chart(component, bounds={}, deterministic=[0], drawn=[1]).to_dict()

    (rows,) = chart["datasets"].values()
    assert [row["choice"] for row in rows] == ["stay", "go"]
    assert [row["text"] for row in rows] == ["100.0 % ◆", "< 0.1 % ●"]
    # The text stands beyond the axis: as a part of that it was cut off on a narrow page.
    scales = [layer["encoding"]["x"]["scale"]["domain"] for layer in chart["layer"]]
    assert scales == [[0, 1], [0, 1]]
    assert chart["padding"]["right"] == 20


def test_many_choices_show_the_likeliest() -> None:
    component = {"kind": "categorical", "probabilities": [0.0] * 99 + [1.0]}

    chart = component_chart(component, bounds={}, deterministic=[99], drawn=[99]).to_dict()

    (rows,) = chart["datasets"].values()
    assert (len(rows), rows[0]["choice"]) == (24, "99")


@pytest.mark.parametrize("kind", ["normal", "deterministic"])
def test_curves_mark_each_dimension(kind: str) -> None:
    component = {"kind": kind, "name": "force", "mean": [0.0, 1.0], "std": [1.0, 1.0]}
    if kind == "deterministic":
        component = {"kind": kind, "name": "force", "value": [0.0, 1.0]}

    chart = component_chart(component, bounds={}, deterministic=[0.0, 1.0], drawn=[0.5, 1.5])

    marks = [row for rows in chart.to_dict()["datasets"].values() for row in rows if "what" in row]
    assert [(row["dimension"], row["action"]) for row in marks] == [
        ("force[0]", 0.0),
        ("force[1]", 1.0),
        ("force[0]", 0.5),
        ("force[1]", 1.5),
    ]


def test_reward_chart_adds_the_rewards_up() -> None:
    (rows,) = reward_chart([1.0, -0.5]).to_dict()["datasets"].values()

    assert [(row["step"], row["return"]) for row in rows] == [(1, 1.0), (2, 0.5)]


# Examples and their pictures


@pytest.mark.parametrize("name", example_names())
def test_served_example_is_recognised_by_its_schema(name: str) -> None:
    file = read_schema_file(EXAMPLES / name / "schema.yaml")
    schemas = {policy.name: public_schema(policy.schema) for policy in file}

    if file.agents is None:
        assert find_example(*schemas.values()) == name
        return
    rules = dict(file.agents.rules)
    assert find_team_example(rules, schemas) == name
    assert find_team_example({**rules, "cat": "prey"}, schemas) is None
    assert find_team_example(rules, {**schemas, "prey": schemas["hunter"]}) is None
    assert [find_example(schema) for schema in schemas.values()] == [None, None]


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        pytest.param("mouse_and_cheese", ["#ec4899", "#facc15", "#fb923c"], id="mouse_and_cheese"),
        pytest.param("lpoc", [f">{mover}</text>" for mover in range(4)], id="lpoc"),
        pytest.param("pendulum", ["<line"], id="pendulum"),
        pytest.param("conveyor", ["#dc2626", ">2</text>"], id="conveyor"),
        pytest.param("pursuit", [">0</text>", ">1</text>", "#ec4899"], id="pursuit"),
    ],
)
def test_picture_shows_every_piece(name: str, pieces: list[str]) -> None:
    picture = Episode(name, seed=0).picture()

    assert picture is not None
    assert [piece for piece in pieces if piece not in picture] == []


# Episodes of a policy with memory


@pytest.fixture(scope="module")
def conveyor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the example whose policy has to remember."""
    home = tmp_path_factory.mktemp("conveyor")
    for name in ("schema.yaml", "saved_model.zip"):
        shutil.copy(EXAMPLES / "conveyor" / name, home / name)
    with served_app(create_app(home), ws="none") as port:
        yield f"http://127.0.0.1:{port}"


def played(client: ServerClient, session: str) -> float:
    episode, found = Episode("conveyor", seed=3), find_played(client, client.schema(), None)
    assert found is not None
    while not episode.is_over:
        episode.step(found, is_deterministic=True, session=session)
    return sum(episode.rewards_of(ALONE))


def test_episode_keeps_its_memory_in_a_session_and_the_next_one_begins_without(
    conveyor: str,
) -> None:
    client = ServerClient(conveyor, EXAMPLE_KEY)

    first = client.begin_episode()
    returns = [played(client, first)]
    second = client.begin_episode(first)
    returns.append(played(client, second))

    assert second == first
    assert min(returns) >= 19
    assert returns[0] == returns[1]
    assert played(client, "") < 12


def test_version_that_was_chosen_plays_an_episode_with_its_memory(conveyor: str) -> None:
    client = ServerClient(conveyor, EXAMPLE_KEY)
    entry = client.policies()["policies"][0]
    chosen = client.of(version=entry["versions"][0]["name"])

    session = chosen.begin_episode()
    answered = chosen.ask("predict", SCANNED, session=session)

    assert len(answered["actions"]) == 1
    assert chosen.begin_episode(session) == session


def test_what_is_shown_together_is_asked_of_one_version() -> None:
    """Where traffic is shared, an episode's name keeps its questions together."""
    named: list[str | None] = []

    class Noting(Handler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            named.append(self.headers.get("x-episode-id"))
            self.reply(200, b'{"actions": [0], "probability": 1.0}')

    with answered_by(Noting) as url:
        client = ServerClient(url, KEY)
        ask_each_kind(client, SCANNED)
        ask_each_kind(client, SCANNED)
        client.ask("predict", SCANNED, session="0" * 32, episode="mine")

    assert named[0] == named[1] == named[2]
    assert named[3] == named[4] == named[5]
    assert None not in named[:6]
    assert named[0] != named[3]
    assert named[6] is None


def test_step_that_is_asked_twice_is_made_once(conveyor: str) -> None:
    client = ServerClient(conveyor, EXAMPLE_KEY)
    session = client.begin_episode()
    answers = [client.ask("predict", SCANNED, session=session) for _ in range(2)]

    assert answers[0] == answers[1]


def test_session_that_has_ended_is_said_and_another_begins(conveyor: str) -> None:
    client = ServerClient(conveyor, EXAMPLE_KEY)
    gone = "0" * 32

    with pytest.raises(RefusalError, match="the server has ended this session"):
        client.ask(
            "predict", {"scanned": [False] * 3, "is_at_gate": True}, session=gone, previous_reward=1
        )

    assert client.begin_episode(gone) != gone


def test_page_plays_a_policy_with_its_memory_or_without(conveyor: str) -> None:
    page = connected_page(conveyor, EXAMPLE_KEY)
    asking = text_of(page)
    (keeps,) = [toggle for toggle in page.toggle if "memory" in toggle.label]
    for steps in ("1", "2"):
        press(page, "step")
        assert widget(page.metric, "Steps").value == steps
    (session,) = page.session_state["sessions"].values()
    press(page, "reset")
    press(page, "step")
    again = page.session_state["sessions"].values()
    page.toggle(key="keeps_memory").set_value(False).run()
    forgetting = widget(page.metric, "Steps").value
    press(page, "step")

    assert "It answers here as at an episode's first step" in asking
    assert keeps.label == "Keep the policy's memory (32 numbers) from step to step"
    assert list(again) == [session]
    assert forgetting == "0"
    assert widget(page.metric, "Steps").value == "1"
    with answering(404, "gone") as url, pytest.raises(RefusalError, match="no such route"):
        ServerClient(url, KEY).begin_episode(session)


# Teams


@pytest.fixture(scope="module")
def pursuit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the example of a team."""
    home = tmp_path_factory.mktemp("pursuit")
    for name in ("schema.yaml", "saved_model.zip"):
        shutil.copy(EXAMPLES / "pursuit" / name, home / name)
    with served_app(create_app(home), ws="none") as port:
        yield f"http://127.0.0.1:{port}"


def test_page_plays_a_team_whose_agents_all_take_each_step(pursuit: str) -> None:
    page = connected_page(pursuit, EXAMPLE_KEY)
    press(page, "step")
    press(page, "step")

    table = next(item.value for item in page.markdown if item.value.startswith("| Agent"))
    rows = {row.split("|")[1].strip(): row for row in table.splitlines()[2:]}
    assert widget(page.metric, "Steps").value == "2"
    assert list(rows) == ["hunter_0", "hunter_1", "prey"]
    assert "| hunter |" in rows["hunter_1"]
    assert rows["prey"].endswith("| 0.05 | 0.10 |")
    assert len(page.get("image")) == 1
    returns = {(row["agent"], row["step"]): row["return"] for row in chart_rows(page)}
    assert returns["hunter_0", 2] == pytest.approx(-0.1)
    assert "memory" not in "".join(toggle.label for toggle in page.toggle)


def test_page_asks_for_all_agents_of_a_team_at_once(pursuit: str) -> None:
    page = connected_page(pursuit, EXAMPLE_KEY)
    (agents,) = page.multiselect
    proposed = agents.value
    agents.set_value(["hunter_1", "prey"]).run()
    *_, row = (item for item in page.number_input if item.label == "row")
    row.set_value(5)
    press(page, "predict_team")

    table = next(item.value for item in page.markdown if item.value.startswith("| Agent | Drawn"))
    requests = [item.value for item in page.code if "/agents" in item.value]
    assert proposed == ["hunter_0", "hunter_1", "prey"]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["hunter_1", "prey"]
    assert table.count("probability") == 4
    assert [request.split()[2].removeprefix(pursuit) for request in requests] == [
        "/predict/agents",
        "/predict_deterministic/agents",
    ]
    assert '"hunter_1": {"row": 2' in requests[0]
    assert '"prey": {"row": 5' in requests[0]


def test_agent_that_no_rule_is_about_is_said(pursuit: str) -> None:
    page = connected_page(pursuit, EXAMPLE_KEY)
    page.multiselect[0].set_value(["prey", "cat"]).run()

    assert page.error[0].value == (
        "The server has no policy for cat: its multi_agent has hunter\\_\\*, prey."
    )


def test_observation_of_a_team_that_is_refused_is_shown_by_agent_and_field() -> None:
    (schema,) = [public_schema(policy.schema) for policy in parse_schema_file(LISTS)]
    schema["policy"] = {"components": [], "observation_width": 3}
    with answering(422, [{"loc": ["body", "a_0", "gates", 1], "msg": "too many"}]) as url:
        team = ServedTeam(
            ServerClient(url, KEY).of_team(), {"a": schema}, AgentPolicies({"a_*": "a"})
        )
        page = AppTest.from_string(ASKING_TEAM, default_timeout=60)
        page.session_state["team"] = team
        page.run()
        refused = press(page, "predict_team").error[0].value
        widget(page.text_area, "gates").set_value("maybe")
        unread = press(page, "predict_team").error[0].value

    assert "`a_0.gates[1]`: too many" in refused
    assert "`a_0.gates`: expected numbers, or true and false, got 'maybe'" in unread


@pytest.mark.parametrize(
    ("rules", "agents"),
    [
        ({"hunter_*": "hunter", "prey": "prey"}, ["hunter_0", "hunter_1", "prey"]),
        ({"*": "default"}, ["0", "1"]),
        ({"hunter_0": "leader", "hunter_*": "hunter"}, ["hunter_0", "hunter_1"]),
    ],
    ids=["pattern", "all", "one apart"],
)
def test_some_agents_are_proposed(rules: dict[str, str], agents: list[str]) -> None:
    assert some_agents(rules) == agents


def test_episode_of_a_team_with_memory_is_played_in_its_session() -> None:
    asked: list[tuple[str, dict[str, Any], str | None]] = []

    class Team(Handler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append((self.path, json.loads(body or b"{}"), self.headers.get("x-step")))
            if self.path == "/sessions/agents":
                self.reply(201, b'{"session_id": "7"}')
            else:
                answers = {agent: {"actions": [0]} for agent in asked[-1][1]}
                self.reply(200, json.dumps(answers).encode())

    policy = {"components": COMPONENTS[:1], "memory_width": 2, "previous_step": ["reward"]}
    schemas = {"hunter": {"policy": policy}, "prey": {"policy": policy | {"previous_step": []}}}
    rules = {"hunter_*": "hunter", "prey": "prey"}
    episode = Episode("pursuit", seed=0)
    with answered_by(Team) as url:
        client = ServerClient(url, KEY).of_team()
        team = Played("pursuit", client, schemas, AgentPolicies(rules))
        session = client.begin_episode()
        for _ in range(2):
            episode.step(team, is_deterministic=False, session=session)
        client.begin_episode(session)

    assert team.memory_width == 4
    assert [path for path, _, _ in asked] == [
        "/sessions/agents",
        "/sessions/7/predict/agents",
        "/sessions/7/predict/agents",
        "/sessions/7/reset/agents",
    ]
    (first, step), (second, next_step) = [(body, step) for _, body, step in asked[1:3]]
    assert (step, next_step) == ("0", "1")
    assert set(first["hunter_0"]) == set(second["hunter_1"]["observation"])
    assert second["hunter_1"]["previous_reward"] == -0.05
    assert set(second["prey"]) >= {"row", "nearer_rows"}


def test_example_without_a_picture_has_none() -> None:
    assert Episode("stock", seed=0).picture() is None


# The page, connected to a server


def test_page_proposes_lpoc_and_shows_its_schema_without_the_key() -> None:
    page = opened_page()

    assert page.selectbox(key="policy").value == "lpoc"
    assert page.header[0].value == "Movers on a warehouse floor"
    assert "has_up_neighbour" in page.code[0].value
    assert "1234567asdfgh" not in text_of(page)


def test_form_is_made_from_the_schema() -> None:
    with live_server(SCHEMA) as url:
        page = connected_page(url)

    speed, gear = widget(page.number_input, "speed"), widget(page.number_input, "gear")
    assert (speed.value, speed.min, speed.max) == (12.5, 0, 30)
    assert (gear.value, gear.min, gear.max, gear.step) == (1, 1, 6, 1)
    assert widget(page.checkbox, "is_open").value is True
    assert "In m/s: number from 0 to 30, e.g. 12.5" in text_of(page)


def test_texts_of_the_schema_are_shown_as_they_are() -> None:
    description = "which *gear* <b>x</b> $a$ and $b$ :smile:"
    names = {
        "_a_": {"type": "float", "description": description},
        "_b_": {"type": "bool"},
        "_c_": {"type": "List[int]", "min_items": 1, "max_items": 1},
    }
    schema = {"observations": names, "parameters": {"api_key": KEY}}
    with live_server(json.dumps(schema)) as url:
        page = press(connected_page(url), "predict")

    widget(page.number_input, "_a_")
    widget(page.checkbox, "_b_")
    text = text_of(page)
    assert as_text(f"{description}: number") in text
    assert f":small[{as_text('_c_')}]" in text
    assert description not in text


def test_limits_are_shown_with_all_their_digits() -> None:
    limits = "minimum: -9999999, maximum: 9999999"
    schema = f"""
observations:
  a: {{type: float, {limits}}}
  b: {{type: int, minimum: 1234567}}
  c: {{type: float, maximum: 0.12345678}}
parameters: {{api_key: {KEY}}}
"""
    with live_server(schema) as url:
        text = text_of(connected_page(url))

    assert "number from -9999999 to 9999999" in text
    assert "whole number from 1234567 on" in text
    assert "number up to 0.12345678" in text


def test_prediction_shows_action_probability_and_distribution() -> None:
    with live_server(SCHEMA) as url:
        page = press(connected_page(url), "predict")

    text = text_of(page)
    assert "## 1" in text
    assert "probability 80.0 %" in text
    rows = chart_rows(page)
    assert [row["choice"] for row in rows] == ["0", "1"]
    assert [row["probability"] for row in rows] == pytest.approx([0.2, 0.8])
    assert "◆" in rows[1]["text"]


def test_requests_are_shown_with_what_was_typed_in_and_without_the_key() -> None:
    with live_server(SCHEMA) as url:
        page = connected_page(url)
        widget(page.number_input, "gear").set_value(4)
        widget(page.checkbox, "is_open").set_value(False)
        press(page, "predict")

    shown = page.code[0].value
    assert '{"speed": 12.5, "gear": 4, "is_open": false}' in shown
    assert KEY not in shown


def test_lists_have_inputs_for_each_item_or_take_text() -> None:
    with live_server(LISTS) as url:
        page = connected_page(url)
        widget(page.number_input, "links[1]").set_value(7.25)
        press(page, "predict")

    assert [item.value for item in page.text_area] == ["true"]
    assert '{"links": [0.5, 7.25], "gates": [true]}' in page.code[0].value


def test_words_of_the_schema_bound_and_nest_what_is_sent() -> None:
    with live_server(WORDS) as url:
        page = connected_page(url)
        gear = widget(page.number_input, "gear")
        widget(page.text_area, "image").set_value("[[1, 2], [3, 4]]")
        press(page, "predict")

    assert (gear.value, gear.min, gear.max) == (1, 1, 3)
    assert '{"gear": 1, "image": [[1, 2], [3, 4]]}' in page.code[0].value
    assert "2 x 2 whole numbers from 0 to 9" in text_of(page)


def test_list_that_can_not_be_read_is_named() -> None:
    with live_server(LISTS) as url:
        page = connected_page(url)
        widget(page.text_area, "gates").set_value("true, maybe")
        press(page, "predict")

    assert "`gates`: expected numbers, or true and false, got 'maybe'" in page.error[0].value


def test_observation_that_the_server_refuses_is_shown_by_field() -> None:
    with live_server(LISTS) as url:
        page = connected_page(url)
        widget(page.text_area, "gates").set_value("true, true, true, true, true")
        press(page, "predict")

    assert page.error[0].value.startswith("The server does not accept this observation:")
    assert "`gates`" in page.error[0].value


@pytest.mark.parametrize("schema", [RAW, SCHEMA], ids=["only", "besides the fields"])
def test_flat_observation_is_sent_raw(schema: str) -> None:
    with live_server(schema) as url:
        page = connected_page(url)
        if schema == SCHEMA:
            page.toggle[0].set_value(True).run()
        page.text_area[0].set_value("1 2 3")
        press(page, "predict")

    assert "/predict_raw" in page.code[0].value
    assert '{"obs": [1, 2, 3]}' in page.code[0].value


def test_action_mask_is_given_by_check_boxes_or_behind_a_flat_observation() -> None:
    with live_server(MASKED, masked_backend(3, 2)) as url:
        page = connected_page(url)
        page.checkbox[2].uncheck()
        page.checkbox[4].uncheck()
        press(page, "predict")
        named = page.code[1].value
        page.toggle[0].set_value(True).run()
        example = page.text_area[0].value
        page.text_area[0].set_value("1 2 0 1 0 0 1")
        press(page, "predict")

    assert '"action_mask": [true, true, false, true, false]}' in named
    assert '"actions": [1, 0]' in named
    assert example == "0.0, 0.0"
    assert '{"obs": [1, 2, 0, 1, 0, 0, 1]}' in page.code[1].value
    assert '"actions": [1, 1]' in page.code[1].value
    assert any("5 numbers of an action mask may follow" in item.value for item in page.caption)


def test_wrong_key_is_said_and_mended_in_the_password_field() -> None:
    with live_server(SCHEMA) as url:
        page = connected_page(url, key="wrong")
        message = page.error[0].value
        page.text_input(key="api_key").set_value(KEY).run()

    assert message == "The access key is wrong; type the server's key in on the left."
    assert (
        page.text_input(key="api_key").proto.type == page.text_input(key="api_key").proto.PASSWORD
    )
    assert not page.error


def test_refused_connection_is_said() -> None:
    page = connected_page("http://127.0.0.1:1")

    assert "No server answers at http://127.0.0.1:1" in page.error[0].value


def test_server_that_ends_between_two_requests_is_said() -> None:
    with live_server(SCHEMA) as url:
        page = connected_page(url)
    press(page, "predict")

    assert "No server answers" in page.error[0].value


def test_policy_of_no_example_has_no_episode() -> None:
    with live_server(SCHEMA) as url:
        page = connected_page(url)

    assert "None of the examples' environments" in text_of(page)


# The page, with a server of its own


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("saved_model.zip", b"no zip", "saved_model.zip: is no zip file or is damaged"),
        ("run.zip", b"<html>", "holds no policy, but run.zip (a web page;"),
        ("notes", b"a note", "holds no policy; expected"),
    ],
)
def test_upload_that_is_no_policy_is_refused_in_words(name: str, content: bytes, says: str) -> None:
    page = opened_page()
    page.selectbox(key="policy").set_value("my own policy").run()
    assert page.button(key="start").disabled
    page.file_uploader(key="files").upload(name, content)
    page.file_uploader(key="yaml").upload("schema.yaml", RAW.encode()).run()
    press(page, "start")

    assert f"The policy can't be served: {says}" in page.error[0].value
    assert tempfile.gettempdir() not in page.error[0].value


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["policy.zip"], "was trained with VecNormalize"),
        (["policy.zip", "vec_normalize.pkl"], "gives 3 values, the policy expects 4"),
    ],
    ids=["alone", "with the file beside it"],
)
def test_policy_is_uploaded_with_the_file_that_belongs_to_it(names: list[str], says: str) -> None:
    page = opened_page()
    page.selectbox(key="policy").set_value("my own policy").run()
    for name in names:
        page.file_uploader(key="files").upload(name, (SCALED / name).read_bytes())
    page.file_uploader(key="yaml").upload("schema.yaml", SCHEMA.encode()).run()
    press(page, "start")

    assert says in page.error[0].value


@pytest.mark.service
def test_lpoc_is_started_asked_played_and_stopped() -> None:
    page = press(opened_page(), "start")
    assert "Stop the server" in [button.label for button in page.button]
    run_until(page, lambda: "predict" in [button.key for button in page.button])

    assert page.text_input(key="api_key").value == "1234567asdfgh"
    press(page, "predict")
    assert "Where the mover goes" in text_of(page)
    assert [row["choice"] for row in chart_rows(page)] == ["stay", "up", "right", "down", "left"]

    press(page, "step")
    assert widget(page.metric, "Steps").value == "1"
    assert len(page.get("image")) == 1
    press(page, "run")
    run_until(page, lambda: "The episode is over" in text_of(page))
    assert page.button(key="run").disabled
    press(page, "reset")
    assert widget(page.metric, "Steps").value == "0"

    url = next(word for word in text_of(page).split() if word.startswith("http://127"))
    press(page, "stop")
    assert page.button(key="start").label == "Start the server from schema"
    assert not ServerClient(url, "").is_ready()


@pytest.mark.service
def test_policy_that_does_not_fit_its_schema_is_not_started() -> None:
    page = opened_page()
    page.selectbox(key="policy").set_value("my own policy").run()
    page.file_uploader(key="files").upload(
        "saved_model.zip", (EXAMPLES / "lpoc" / "saved_model.zip").read_bytes()
    )
    page.file_uploader(key="yaml").upload("schema.yaml", SCHEMA.encode()).run()
    press(page, "start")

    assert "gives 3 values, the policy expects 11" in page.error[0].value


@pytest.mark.service
def test_server_that_ends_by_itself_shows_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVICORN_WORKERS", "many")
    page = opened_page()
    press(page, "start")
    run_until(page, lambda: bool(page.error))

    assert "The server ended by itself" in page.error[0].value
    assert "many" in page.code[0].value


@pytest.mark.service
def test_server_ends_with_the_session_even_while_it_starts() -> None:
    page = press(opened_page(), "start")
    url = next(word for word in text_of(page).split() if word.startswith("http://127"))
    stopping = [thread for thread in threading.enumerate() if "(stop)" in thread.name]

    st.cache_resource.clear()

    (thread,) = [
        thread
        for thread in threading.enumerate()
        if "(stop)" in thread.name and thread not in stopping
    ]
    thread.join()
    assert not ServerClient(url, "").is_ready()
    assert not page.exception


@pytest.mark.service
def test_server_is_started_where_it_was_asked_to_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("POLICY_SERVER_HOME", str(home))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    server = ServerProcess(EXAMPLES / "lpoc", backend="local", replace_served_policy=True)
    is_running = server.exit_code is None
    server.stop()
    server.stop()

    assert is_running
    assert server.exit_code is not None
    assert (home / "saved_model.zip").is_file()
    assert list(scratch.iterdir()) == []


STARTED = f"""
import pathlib, time
from demo.server_process import ServerProcess
source = pathlib.Path({str(EXAMPLES / "lpoc")!r})
server = ServerProcess(source, backend="local", replace_served_policy=False)
print("started", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the server goes on")
def test_server_whose_keeper_is_killed_has_ended_and_its_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(descendants(os.getpid()))
    server = ServerProcess(EXAMPLES / "lpoc", backend="local", replace_served_policy=False)
    [folder] = tmp_path.iterdir()
    wait_until((folder / "server.log").exists)
    keeper, *below = (pid for pid in descendants(os.getpid()) if pid not in before)

    os.kill(keeper, signal.SIGKILL)

    wait_until(lambda: not any(map(is_running, [keeper, *below])))
    assert server.exit_code == -signal.SIGKILL
    server.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.service
@pytest.mark.parametrize(
    ("number", "is_ready"),
    [
        (signal.SIGTERM, False),
        (signal.SIGTERM, True),
        (signal.SIGINT, True),
        (signal.SIGHUP, True),
    ],
)
def test_server_and_its_files_go_when_all_processes_get_a_signal(
    tmp_path: Path,
    number: signal.Signals,
    is_ready: bool,  # noqa: FBT001 -- a parameter
) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with child(sys.executable, "-c", STARTED, environment=environment) as page:
        assert page.read_line() == "started"
        log = next(tmp_path.glob("policy-server-*")) / "server.log"
        page.wait_until(
            lambda: log.exists() and ("Uvicorn running" in log.read_text() or not is_ready),
            timeout_s=START_TIMEOUT_S,
        )
        below = descendants(page.process.pid)

        for pid in (page.process.pid, *below):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

        try:
            wait_until(lambda: not any(map(is_running, below)), timeout_s=100.0)
        finally:
            for pid in filter(is_running, below):
                os.kill(pid, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.service
@pytest.mark.parametrize("has_ended", [False, True], ids=["starts", "has ended by itself"])
def test_server_and_its_files_go_when_the_page_is_killed(
    tmp_path: Path,
    has_ended: bool,  # noqa: FBT001 -- a parameter
) -> None:
    workers = {"UVICORN_WORKERS": "many"} if has_ended else {}
    environment = os.environ | {"TMPDIR": str(tmp_path)} | workers
    with child(sys.executable, "-c", STARTED, environment=environment) as page:
        assert page.read_line() == "started"
        log = next(tmp_path.glob("policy-server-*")) / "server.log"
        page.wait_until(lambda: log.exists() and ("many" in log.read_text() or not has_ended))
        below = descendants(page.process.pid)

        page.process.kill()

        try:
            wait_until(lambda: not any(map(is_running, below)), timeout_s=100.0)
        finally:
            for pid in filter(is_running, below):
                os.kill(pid, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_texts_of_a_chart_can_be_read_on_the_page(is_dark: bool) -> None:  # noqa: FBT001 -- a parameter
    component = {"kind": "categorical", "probabilities": [0.2, 0.8]}
    chart = component_chart(component, bounds={}, deterministic=[0], drawn=[1], is_dark=is_dark)
    _, texts = chart.to_dict()["layer"]

    text, page = (luminance(color) for color in (texts["mark"]["color"], "#171615"))
    contrast = (text + 0.05) / (page + 0.05) if is_dark else 1.05 / (text + 0.05)
    assert contrast >= 4.5


def luminance(color: str) -> float:
    """Return the relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


# Several policies and versions


def test_policy_and_version_are_chosen_and_two_versions_compared(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(
        f"""
policies:
  walker:
    versions:
      v1: {{model: walker.zip, traffic: 90}}
      v2: {{model: walker.zip, traffic: 10}}
      v3: {{model: walker.zip, shadow: True}}
  greedy: {{model: greedy.zip}}
parameters: {{api_key: {KEY}}}
"""
    )
    shutil.copy(SCALED.parent / "sb3_v18_ppo_discrete" / "policy.zip", tmp_path / "walker.zip")
    shutil.copy(SCALED.parent / "sb3_trpo" / "policy.zip", tmp_path / "greedy.zip")
    with served_app(create_app(tmp_path), ws="none") as port:
        page = connected_page(f"http://127.0.0.1:{port}")
        described = text_of(page)
        page.selectbox(key="version.walker").set_value("v2").run()
        press(page, "predict")
        requests = [code.value for code in page.code]
        compared = text_of(page)
        charts = len(page.get("vega_lite_chart"))
        page.selectbox(key="asked").set_value("greedy").run()
        other = text_of(page)

    assert f"{port}/policies/walker/predict_raw -H" in requests[0]
    assert "-H 'x-policy-version: v2'" in requests[0]
    assert "v1: 90 %" in described
    assert "v3: a shadow" in described
    assert [tab.label for tab in page.tabs] == ["Ask for an action", "Play an episode"]
    # One of the answer, one of each compared version.
    assert charts == 3
    assert compared.count("Probability") >= 3 or compared.count("probability") >= 3
    assert not page.exception
    assert "4 values in" in described
    assert "5 values in" in other
