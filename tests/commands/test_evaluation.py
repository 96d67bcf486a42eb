"""A policy is measured by its episodes on a server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from policy_server.commands import evaluation
from policy_server.commands.client import PolicyClient
from policy_server.errors import PolicyServerError, ServerAnswerError, SettingsError
from policy_server.metrics import Metrics
from policy_server.schema import AgentPolicies, parse_schema_file
from policy_server.serving import PolicyRegistry, PolicySlot
from policy_server.serving.process_sessions import ProcessSessions
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.support.fakes import integer_backend, opened, summing_backend
from tests.support.servers import KEY, SCHEMA, live_server, served_app

ENVIRONMENT = """
class Coin:
    '''Pays one for each of ten times that action 1 is taken, and a tenth of the seed's parity.'''

    def reset(self, *, seed=None):
        self.steps, self.bonus = 0, 0.1 * (seed % 2)
        return [0.5, 0.5, True], {}

    def step(self, action):
        assert action in (0, 1)
        self.steps += 1
        return [0.5, 0.5, True], action + self.bonus, False, self.steps == 10, {}

    def named_observation(self, observation):
        return {"links": observation[:2], "is_open": observation[2]}

    def action_from(self, actions):
        return actions[0]

    def random_action(self, generator):
        return int(generator.integers(2))


def make_environment():
    return Coin()
"""

SUMS_SCHEMA = f"""
observations: {{cat: {{type: int}}, mouse: {{type: float}}}}
parameters: {{api_key: {KEY}}}
"""
SUMS = """
class Sums:
    '''Pays one for each action that is the number of steps, modulo 3.'''

    def reset(self, *, seed=None):
        self.steps = 1
        return None, {}

    def step(self, action):
        reward = float(action == self.steps % 3)
        self.steps += 1
        return None, reward, self.steps > 8, False, {}

    def named_observation(self, observation):
        return {"cat": 1, "mouse": 0.0}

    def action_from(self, actions):
        return actions[0]

    def random_action(self, generator):
        return int(generator.integers(3))


def make_environment():
    return Sums()
"""


@pytest.fixture
def coin(tmp_path: Path) -> Path:
    folder = tmp_path / "coin"
    folder.mkdir()
    (folder / "environment.py").write_text(ENVIRONMENT)
    (folder / "schema.yaml").write_text(SCHEMA)
    return folder


def evaluate(folder: Path, url: str, **options: object) -> evaluation.Evaluation:
    known: dict[str, Any] = {
        "episodes": 60,
        "seed": 0,
        "is_deterministic": False,
        "keeps_memory": True,
        "parallel": 4,
        "on_progress": lambda _done, _total: None,
    }
    return evaluation.evaluate(folder, lambda: PolicyClient(url, KEY), **known | options)


def served(result: evaluation.Evaluation) -> evaluation.MeanReturn:
    """Return the return of the only policy."""
    (found,) = result.comparisons
    return found.served


def test_the_policy_is_measured_as_served(coin: Path, url: str) -> None:
    result = evaluate(coin, url)

    # Ten steps of 0.8 and of 0.5, and 0.5 for the seeds; the errors are those of binomial draws.
    (found,) = result.comparisons
    assert found.served.mean == pytest.approx(8.5, abs=4 * found.served.standard_error)
    assert found.random.mean == pytest.approx(5.5, abs=4 * found.random.standard_error)
    assert found.served.standard_error == pytest.approx(1.36 / 60**0.5, rel=0.4)
    assert (result.name, result.episodes) == ("coin", 60)


def test_the_same_seed_gives_the_same_returns_in_any_number_of_threads(
    coin: Path, url: str
) -> None:
    first = evaluate(coin, url, parallel=1, episodes=12)

    assert evaluate(coin, url, parallel=7, episodes=12) == first
    assert evaluate(coin, url, seed=1000, episodes=12) != first


def test_the_mode_is_measured_where_it_is_asked(coin: Path, url: str) -> None:
    result = evaluate(coin, url, is_deterministic=True, episodes=4)

    assert served(result).mean == pytest.approx(10.5)
    assert served(result).standard_error == pytest.approx(0.2887, abs=1e-4)


def test_a_flat_observation_goes_the_raw_way(coin: Path, url: str) -> None:
    file = coin / "environment.py"
    named = 'return {"links": observation[:2], "is_open": observation[2]}'
    file.write_text(ENVIRONMENT.replace(named, "return [0.5, 0.5, 1.0]"))

    assert served(evaluate(coin, url, episodes=2, is_deterministic=True)).mean == 10.5


@pytest.fixture
def sums(coin: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve a policy whose mode is the sum of its episode's observations, modulo 3."""
    (coin / "environment.py").write_text(SUMS)
    (coin / "schema.yaml").write_text(SUMS_SCHEMA)
    monkeypatch.setenv("POLICY_SERVER_MAX_SESSIONS", "2")
    with live_server(SUMS_SCHEMA, summing_backend()) as url:
        yield url


@pytest.mark.parametrize(("keeps_memory", "mean"), [(True, 8.0), (False, 3.0)])
def test_an_episode_has_a_memory_of_its_own(
    coin: Path,
    sums: str,
    keeps_memory: bool,  # noqa: FBT001 -- a parameter
    mean: float,
) -> None:
    options: dict[str, Any] = {"is_deterministic": True, "keeps_memory": keeps_memory}

    result = evaluate(coin, sums, episodes=6, parallel=2, **options)

    assert served(result) == evaluation.MeanReturn(mean, 0.0)


def test_an_evaluation_leaves_no_session(coin: Path, sums: str) -> None:
    evaluate(coin, sums, episodes=2, parallel=2)

    with PolicyClient(sums, KEY) as client:
        begun = [client.post("/sessions", b"")["session_id"] for _ in range(2)]
        with pytest.raises(ServerAnswerError, match="2 sessions are open already"):
            client.post("/sessions", b"")
    assert len(set(begun)) == 2


def test_progress_is_told_for_each_episode(coin: Path, url: str) -> None:
    told: list[tuple[int, int]] = []

    evaluate(coin, url, episodes=5, on_progress=lambda done, total: told.append((done, total)))

    assert told == [(done, 5) for done in range(1, 6)] * 2


def test_an_evaluation_reads_well() -> None:
    high, low = evaluation.MeanReturn(10.5, 0.25), evaluation.MeanReturn(-1.0, 0.125)
    coin = evaluation.Evaluation("coin", 9, (evaluation.Comparison("", high, low),))
    hunt = evaluation.Evaluation(
        "hunt",
        9,
        (evaluation.Comparison("hunter", high, low), evaluation.Comparison("prey", low, low)),
    )

    assert coin.as_text() == [
        "mean return ± standard error of 9 episodes of coin",
        "policy as served  10.50 ± 0.25",
        "random actions    -1.00 ± 0.12",
    ]
    assert coin.as_markdown() == ["| coin | 9 | 10.50 ± 0.25 | -1.00 ± 0.12 |"]
    assert hunt.as_text()[1:] == [
        "hunter: policy as served  10.50 ± 0.25",
        "hunter: random actions    -1.00 ± 0.12",
        "prey: policy as served    -1.00 ± 0.12",
        "prey: random actions      -1.00 ± 0.12",
    ]
    assert hunt.as_markdown()[1] == "| hunt: prey | 9 | -1.00 ± 0.12 | -1.00 ± 0.12 |"


# Teams

HUNT = """
class Hunt:
    '''Pays each hunter for the number of its steps, modulo 3, and the prey for action 2.

    The second hunter is there in every other step; an episode has eight.
    '''

    possible_agents = ["hunter_0", "hunter_1", "prey"]

    def reset(self, *, seed=None):
        self.steps = 0
        self.agents = list(self.possible_agents)
        return dict.fromkeys(self.agents), {}

    def step(self, actions):
        assert list(actions) == self.agents
        half = self.steps // 2 + 1
        wanted = {"hunter_0": (self.steps + 1) % 3, "hunter_1": half % 3, "prey": 2}
        rewards = {agent: float(action == wanted[agent]) for agent, action in actions.items()}
        self.steps += 1
        there = self.possible_agents if self.steps % 2 == 0 else ["hunter_0", "prey"]
        self.agents = [] if self.steps == 8 else list(there)
        return dict.fromkeys(self.possible_agents), rewards, {}, {}, {}

    def named_observation(self, agent, observation):
        if agent == "prey":
            return [0.5, 0.5]
        return {"cat": 1, "mouse": 0.0}

    def action_from(self, agent, actions):
        return actions[0]

    def random_action(self, agent, generator):
        return int(generator.integers(3))


def make_environment():
    return Hunt()
"""
HUNT_SCHEMA = """
policies:
  hunter:
    model: hunter.zip
    observations: {cat: {type: int}, mouse: {type: float}}
  prey: {model: prey.zip}
parameters: {api_key: secret}
"""


@contextmanager
def live_team(rules: dict[str, str] | None) -> Iterator[str]:
    """Serve a hunter with memory, whose mode is the sum of its ones, and a prey that prefers 2."""
    file, settings, metrics = parse_schema_file(HUNT_SCHEMA), Settings(), Metrics()
    sessions = ProcessSessions(settings, metrics)
    backends = {"hunter": summing_backend(), "prey": integer_backend(weight=0.0)}
    slots = [
        PolicySlot(
            section.name,
            section.schema,
            partial(opened, backends[section.name], digest=section.name),
            settings=settings,
            metrics=metrics,
            sessions=sessions,
        )
        for section in file
    ]
    registry = PolicyRegistry(slots, agents=None if rules is None else AgentPolicies(rules))
    app = create_app(registry, settings, api_key=KEY, metrics=metrics)
    with served_app(app, ws="none") as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def hunt(tmp_path: Path) -> Path:
    folder = tmp_path / "hunt"
    folder.mkdir()
    (folder / "environment.py").write_text(HUNT)
    (folder / "schema.yaml").write_text(HUNT_SCHEMA)
    return folder


def test_each_policy_of_a_team_is_measured_against_random_agents_in_its_place(hunt: Path) -> None:
    with live_team({"hunter_*": "hunter", "prey": "prey"}) as url:
        result = evaluate(hunt, url, episodes=40, is_deterministic=True)

    hunter, prey = result.comparisons
    assert (hunter.policy, prey.policy) == ("hunter", "prey")
    # The first hunter is right in eight steps, the second in its four.
    assert hunter.served == evaluation.MeanReturn(6.0, 0.0)
    assert prey.served == evaluation.MeanReturn(8.0, 0.0)
    assert hunter.random.mean == pytest.approx(2.0, abs=4 * hunter.random.standard_error)
    assert prey.random.mean == pytest.approx(8 / 3, abs=4 * prey.random.standard_error)


def test_a_team_without_its_memory_asks_each_step_as_the_first(hunt: Path) -> None:
    with live_team({"hunter_*": "hunter", "prey": "prey"}) as url:
        result = evaluate(hunt, url, episodes=2, is_deterministic=True, keeps_memory=False)

    # Action 1 is right in steps 1, 4 and 7 of eight, and in 1 and 4 of four.
    assert result.comparisons[0].served.mean == 2.5


@pytest.mark.parametrize(
    ("rules", "policy", "says"),
    [
        pytest.param(None, None, "serves no team; expected the section multi_agent", id="no team"),
        pytest.param(
            {"hunter_0": "hunter", "prey": "prey"},
            None,
            "has no policy for the agent 'hunter_1'; its multi_agent has hunter_0, prey",
            id="unknown agent",
        ),
        pytest.param({"*": "hunter"}, "prey", "--policy: the agents have the policies", id="one"),
        pytest.param({"*": "hunter"}, None, None, id="other observations"),
    ],
)
def test_a_server_that_does_not_fit_the_team_is_said(
    hunt: Path, rules: dict[str, str] | None, policy: str | None, says: str | None
) -> None:
    if says is None:
        (hunt / "schema.yaml").write_text(HUNT_SCHEMA.replace("cat:", "dog:"))
        says = "serves another schema than"

    with live_team(rules) as url, pytest.raises(PolicyServerError, match=re.escape(says)):
        evaluation.evaluate(
            hunt,
            lambda: PolicyClient(url, KEY, policy=policy),
            episodes=2,
            seed=0,
            is_deterministic=True,
            keeps_memory=True,
            parallel=1,
            on_progress=lambda _done, _total: None,
        )


@pytest.mark.parametrize(
    "options",
    [{"episodes": 1}, {"parallel": 0}, {"seed": -1}],
    ids=["episodes", "parallel", "seed"],
)
def test_numbers_that_measure_nothing_are_refused(coin: Path, options: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="expected --episodes from 2"):
        evaluate(coin, "http://127.0.0.1:1", **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"environment\.py: not found; expected an example's folder"),
        ("import not_there.at_all", r"environment\.py: needs the package not_there"),
        ("import rules_of_it", r"environment\.py: imports rules_of_it, which lies beside it"),
        ("import", r"environment\.py: can't be imported: SyntaxError"),
        ("1 / 0", r"environment\.py: can't be imported: ZeroDivisionError: division by zero"),
        ("", r"environment\.py: has no function make_environment"),
    ],
    ids=["missing", "package", "module beside it", "syntax", "error", "empty"],
)
def test_an_environment_that_is_none_is_said(coin: Path, text: str | None, message: str) -> None:
    file = coin / "environment.py"
    file.unlink()
    (coin / "rules_of_it.py").touch()
    if text is not None:
        file.write_text(text)

    with pytest.raises(SettingsError, match=message):
        evaluate(coin, "http://127.0.0.1:1")


def test_a_server_with_another_schema_is_said(coin: Path, url: str) -> None:
    (coin / "schema.yaml").write_text("observations: {other: {type: int}}")

    with pytest.raises(ServerAnswerError, match=r"serves another schema than .*copy_server_files"):
        evaluate(coin, url)


def test_an_example_without_a_schema_is_not_compared(coin: Path, url: str) -> None:
    (coin / "schema.yaml").unlink()

    assert served(evaluate(coin, url, episodes=2, is_deterministic=True)).mean == 10.5


def test_a_failing_episode_stops_the_others(coin: Path, url: str) -> None:
    file = coin / "environment.py"
    endless = ENVIRONMENT.replace("self.steps == 10", "False")
    file.write_text(
        endless.replace("self.steps += 1", "self.steps += 1; assert self.steps < 30 or self.bonus")
    )

    with pytest.raises(AssertionError):
        evaluate(coin, url, episodes=2, parallel=2)
