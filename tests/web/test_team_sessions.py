"""Sessions of a team: a memory for each agent, one step of all at once, steps sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgpack
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import SecretStr

from policy_server.metrics import Metrics
from policy_server.serving.process_sessions import NoSessions
from policy_server.serving.redis_sessions import RedisSessions
from policy_server.serving.session_store import LONGEST_SHORT_ANSWER
from policy_server.settings import Settings
from policy_server.web import Application
from tests.fuzz.team_steps import compare_teams
from tests.support.fakes import integer_backend, opened, previous_backend, summing_backend
from tests.support.redis_servers import redis_server
from tests.support.teams import ServedTeam, build_team, own_seed, served_team
from tests.support.web import assert_error, assert_invalid, running

REQUESTS = 200
HUNTERS = ("hunter_1", "hunter_2", "hunter_3")
SEEN = {"distance": 2.0, "is_seen": True}


def observed(**cats: int) -> dict[str, Any]:
    """Return observations of hunters that add numbers to their memories."""
    return {agent: {"cat": cat, "mouse": 1.0} for agent, cat in cats.items()}


@pytest.fixture
async def team() -> AsyncIterator[ServedTeam]:
    """Return a team that many examples ask."""
    async with served_team() as served:
        yield served


async def begun(team: ServedTeam, **start: Any) -> str:  # noqa: ANN401 -- any start
    """Begin a session, and return its address."""
    answer = await team.client.post("/sessions/agents", json=start)
    assert answer.status_code == 201, answer.text
    return f"/sessions/{answer.json()['session_id']}"


async def stepped(
    team: ServedTeam, session: str, body: dict[str, Any], **headers: str
) -> httpx.Response:
    """Make a step, and return the answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    path = f"{session}/predict_deterministic/agents"
    return await team.client.post(path, json=body, headers=named)


def actions_of(answer: httpx.Response) -> dict[str, int]:
    """Return the action of each agent."""
    assert answer.status_code == 200, answer.text
    return {agent: found["actions"][0] for agent, found in answer.json().items()}


async def test_each_agent_keeps_a_memory_of_its_own(team: ServedTeam) -> None:
    session = await begun(team)
    answers = [
        await stepped(team, session, {**observed(hunter_1=1, hunter_2=2), "prey": SEEN}),
        await stepped(team, session, observed(hunter_2=2)),
        await stepped(team, session, observed(hunter_3=1, hunter_1=1)),
    ]
    shown = (await team.client.get(f"{session}/agents")).json()

    assert [actions_of(answer) for answer in answers] == [
        {"hunter_1": 1, "hunter_2": 2, "prey": 0},
        {"hunter_2": 1},
        {"hunter_3": 1, "hunter_1": 2},
    ]
    assert [answer.headers["x-step"] for answer in answers] == ["0", "1", "2"]
    assert "x-policy-memory" not in answers[0].headers
    versions = {"hunter": "hunter0123", "prey": "prey0123", "drone": "drone0123"}
    assert answers[1].headers["x-policy-version"] == ", ".join(
        f"{policy}={version}" for policy, version in versions.items()
    )
    assert shown == {
        "session_id": session.rpartition("/")[2],
        "versions": versions,
        "steps": 3,
        "agents": list(HUNTERS),
        "seed": None,
        "episode_id": "",
    }


async def test_agents_of_one_policy_ride_in_one_call_with_their_memories(
    team: ServedTeam,
) -> None:
    session = await begun(team)
    calls = team.backends["hunter"].calls
    await stepped(team, session, observed(hunter_1=1, hunter_2=2))
    del calls[:]
    await stepped(team, session, observed(hunter_2=1, hunter_3=1, hunter_1=1))

    assert len(calls) == 1
    assert calls[0].state is not None
    assert calls[0].state.tolist() == [[2.0], [0.0], [1.0]]


async def test_steps_of_many_teams_ride_in_one_call(team: ServedTeam) -> None:
    sessions = [await begun(team) for _ in range(3)]
    batches = team.backends["hunter"].batches
    del batches[:]
    for _ in range(2):
        answers = await asyncio.gather(
            *(
                stepped(team, session, observed(hunter_1=cat, hunter_2=1))
                for cat, session in enumerate(sessions)
            )
        )

    assert batches == [6, 6]
    assert [actions_of(answer)["hunter_1"] for answer in answers] == [0, 2, 1]


@examples(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.dictionaries(st.sampled_from(HUNTERS), st.integers(0, 2)), max_size=6),
    seed=st.integers(0, 2**63 - 1),
)
async def test_agent_is_answered_as_in_a_session_of_its_own(
    team: ServedTeam, steps: list[dict[str, int]], seed: int
) -> None:
    session = await begun(team, seed=seed)
    together: dict[str, list[Any]] = {agent: [] for agent in HUNTERS}
    for cats in steps:
        body = observed(**cats)
        answer = await team.client.post(f"{session}/predict/agents", json=body)
        for agent, found in answer.json().items():
            together[agent].append(found)

    for agent, answers in together.items():
        own = await team.client.post("/policies/hunter/sessions")
        address = f"/policies/hunter/sessions/{own.json()['session_id']}/predict"
        alone = []
        for number, cats in enumerate(steps):
            if agent in cats:
                drawn = own_seed((seed + number) % 2**63, agent)
                observation = observed(**cats)[agent]
                answer = await team.client.post(f"{address}?seed={drawn}", json=observation)
                alone.append(answer.json())
        assert alone == answers


async def test_step_that_is_sent_again_gets_its_answer_again(team: ServedTeam) -> None:
    session = await begun(team)
    body = observed(hunter_1=1, hunter_2=1)
    path = f"{session}/predict/agents"
    first, again = [
        await team.client.post(path, json=body, headers={"x-step": "0"}) for _ in range(2)
    ]
    other = await stepped(team, session, observed(hunter_1=2), x_step="0")
    late = await stepped(team, session, body, x_step="7")
    second = await stepped(team, session, body, x_step="1")

    assert again.content == first.content
    assert again.headers["x-step"] == "0"
    assert again.headers["x-policy-version"] == first.headers["x-policy-version"]
    assert_error(other, 409, "x-step 0: was answered to another request")
    assert_error(late, 409, "x-step 7: expected 1")
    assert actions_of(second) == {"hunter_1": 2, "hunter_2": 2}


async def test_long_answer_that_could_not_be_kept_is_a_409_when_its_step_is_sent_again() -> None:
    many = observed(**{f"hunter_{number}": 1 for number in range(400)})
    async with served_team(max_kept_answer_bytes=0) as team:
        session = await begun(team)
        first = await stepped(team, session, many, x_step="0")
        again = await stepped(team, session, many, x_step="0")
        short = [await stepped(team, session, observed(hunter_1=1), x_step="1") for _ in range(2)]

    assert first.status_code == 200
    assert len(first.content) > LONGEST_SHORT_ANSWER
    assert_error(again, 409, "x-step 0", "could not be kept", "go on with step 1")
    assert actions_of(short[0]) == actions_of(short[1]) == {"hunter_1": 2}


async def test_step_that_fails_for_one_agent_moves_nobodys_memory(team: ServedTeam) -> None:
    session = await begun(team)
    await stepped(team, session, observed(hunter_1=1, hunter_2=1))
    invalid = await stepped(
        team, session, {**observed(hunter_1=1), "hunter_2": {"cat": "x", "mouse": 0}}
    )
    team.backends["prey"].error = RuntimeError("it broke")
    failed = await stepped(
        team, session, {**observed(hunter_1=1), "prey": {"distance": 666.0, "is_seen": True}}
    )
    after = await stepped(team, session, observed(hunter_1=0, hunter_2=0), x_step="1")

    assert_invalid(invalid, "body.hunter_2.cat")
    assert_error(failed, 500, "agent 'prey': ")
    assert actions_of(after) == {"hunter_1": 1, "hunter_2": 1}


async def test_reset_of_one_agent_leaves_the_others(team: ServedTeam) -> None:
    session = await begun(team, seed=3)
    await stepped(team, session, observed(hunter_1=1, hunter_2=1))
    reset = await team.client.post(
        f"{session}/reset/agents", json={"agents": ["hunter_2", "hunter_3", "prey"]}
    )
    after = await stepped(team, session, observed(hunter_1=1, hunter_2=1))

    assert reset.status_code == 200
    assert (reset.json()["agents"], reset.json()["steps"]) == (["hunter_1"], 1)
    assert actions_of(after) == {"hunter_1": 2, "hunter_2": 1}
    assert after.headers["x-step"] == "1"


async def test_reset_of_all_begins_another_episode(team: ServedTeam) -> None:
    session = await begun(team, seed=3, episode_id="first")
    await stepped(team, session, observed(hunter_1=1))
    reset = await team.client.post(f"{session}/reset/agents")
    named = await team.client.post(f"{session}/reset/agents", json={"seed": 4})
    after = await stepped(team, session, observed(hunter_1=1))

    shown = reset.json()
    assert (shown["steps"], shown["seed"], shown["agents"]) == (0, 3, [])
    assert (named.json()["seed"], named.json()["episode_id"]) == (4, "first")
    assert (actions_of(after), after.headers["x-step"]) == ({"hunter_1": 1}, "0")


async def test_reset_of_agents_that_are_none_or_with_a_seed_is_refused(team: ServedTeam) -> None:
    session = await begun(team)
    unknown = await team.client.post(f"{session}/reset/agents", json={"agents": ["wolf"]})
    mixed = await team.client.post(
        f"{session}/reset/agents", json={"agents": ["hunter_1"], "seed": 0, "episode_id": "a"}
    )
    empty = await team.client.post(
        f"{session}/reset/agents", json={"agents": [], "seed": None, "episode_id": ""}
    )

    assert_invalid(unknown, "body.wolf")
    assert_invalid(mixed, "body.seed", "body.episode_id")
    assert empty.status_code == 200


async def test_session_ends_and_is_unknown_then(team: ServedTeam) -> None:
    session = await begun(team)
    own = await team.client.post("/sessions")
    ended = await team.client.delete(f"{session}/agents")
    after = await stepped(team, session, observed(hunter_1=1))
    crossed = await stepped(team, f"/sessions/{own.json()['session_id']}", observed(hunter_1=1))

    assert ended.status_code == 204
    assert_error(after, 404, "is unknown, has ended or was idle")
    assert_error(crossed, 409, "was begun for policy", "POST /sessions/agents")


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_address_that_begins_a_session_is_that_of_none(team: ServedTeam, method: str) -> None:
    answer = await team.client.request(method, "/sessions/agents")

    assert_error(answer, 405, "method not allowed")
    assert answer.headers["allow"] == "POST"


async def test_memories_of_agents_are_bounded() -> None:
    async with served_team(max_agents=2) as team:
        session = await begun(team)
        await stepped(team, session, {**observed(hunter_1=1), "prey": SEEN})
        await stepped(team, session, observed(hunter_2=1))
        full = await stepped(team, session, observed(hunter_3=1))
        await team.client.post(f"{session}/reset/agents", json={"agents": ["hunter_1"]})
        after = await stepped(team, session, observed(hunter_3=1))

    assert_error(full, 409, "memories of 2 agents already", "POLICY_SERVER_MAX_AGENTS")
    assert actions_of(after) == {"hunter_3": 1}


async def test_episode_keeps_the_version_of_each_policy() -> None:
    async with served_team() as team:
        session = await begun(team)
        await stepped(team, session, observed(hunter_1=1))
        slot = team.slots["hunter"]
        await slot.add(lambda: opened(summing_backend(), digest="other"))
        slot.route({"other": 100.0})
        other = await team.client.post("/predict/agents", json=observed(hunter_1=1))
        counts = [await slot.sessions_of(name) for name in ("hunter0123", "other")]
        kept = await stepped(team, session, observed(hunter_1=1))
        await slot.remove("hunter0123")
        gone = await stepped(team, session, observed(hunter_1=1))
        prey = await stepped(team, session, {"prey": SEEN})
        reset = await team.client.post(f"{session}/reset/agents")
        after = await stepped(team, session, observed(hunter_1=1))

    assert other.headers["x-policy-version"] == "hunter=other"
    assert counts == [1, 0]
    assert actions_of(kept) == {"hunter_1": 2}
    assert "hunter=hunter0123" in kept.headers["x-policy-version"]
    assert_error(gone, 409, "agent 'hunter_1': ", "version hunter0123 of the policy hunter")
    assert prey.status_code == 200
    assert reset.json()["versions"]["hunter"] == "other"
    assert actions_of(after) == {"hunter_1": 1}


async def test_session_begins_with_the_versions_that_are_asked_for() -> None:
    async with served_team() as team:
        await team.slots["prey"].add(lambda: opened(integer_backend(), digest="other"))
        asked = await team.client.post(
            "/sessions/agents", headers={"x-policy-version": "prey=other"}
        )
        unknown = await team.client.post(
            "/sessions/agents", headers={"x-policy-version": "prey=v9"}
        )

    assert asked.json()["versions"]["prey"] == "other"
    assert_error(unknown, 409, "'v9' is not loaded")


async def test_policy_that_is_not_loaded_keeps_no_team_from_its_session() -> None:
    async with served_team() as team:
        await team.slots["prey"].aclose()
        session = await begun(team)
        alone = await stepped(team, session, observed(hunter_1=1))
        whole = await stepped(team, session, {**observed(hunter_1=1), "prey": SEEN})

    assert actions_of(alone) == {"hunter_1": 1}
    assert_error(whole, 503, "agent 'prey': ")


async def test_previous_action_and_reward_stand_beside_the_observation_of_their_agent() -> None:
    backends = {"hunter": previous_backend(), "prey": integer_backend()}
    rules = {"hunter_*": "hunter", "prey": "prey"}
    own = {"cat": 2, "mouse": 1.0}
    async with served_team(backends, rules=rules) as team:
        session = await begun(team)
        calls = backends["hunter"].calls
        first = await stepped(team, session, {"hunter_1": own, "prey": SEEN})
        missing = await stepped(team, session, {"hunter_1": own})
        stated = {"observation": own, "previous_reward": 1.5}
        del calls[:]
        second = await stepped(team, session, {"hunter_1": stated, "hunter_2": own})
        executed = {**stated, "previous_action": [1]}
        third = await stepped(team, session, {"hunter_1": executed})
        wrong = await stepped(team, session, {"hunter_1": {**stated, "previous_action": [9]}})
        plain = await team.client.post("/predict/agents", json={"hunter_1": stated})

    assert actions_of(first)["hunter_1"] == 2
    assert_invalid(missing, "body.hunter_1.previous_reward")
    assert (second.status_code, third.status_code) == (200, 200)
    given = [call.state.tolist() for call in calls if call.state is not None]
    assert given == [[[2.0, 2.0, 1.5], [0.0, 0.0, 0.0]], [[1.0, 1.0, 1.5]]]
    assert_invalid(wrong, "body.hunter_1.previous_action")
    assert plain.status_code == 422


async def test_web_processes_share_the_sessions_of_a_team_in_redis() -> None:
    def store(settings: Settings, metrics: Metrics) -> RedisSessions:
        return RedisSessions(SecretStr(server.url), settings, metrics)

    with redis_server() as server:
        async with (
            served_team(open_sessions=store) as first,
            served_team(open_sessions=store) as second,
            first.slots["hunter"].sessions.running(),
            second.slots["hunter"].sessions.running(),
        ):
            session = await begun(first, seed=5)
            answers = [
                await stepped(team, session, observed(hunter_1=1, hunter_2=2), x_step=str(step))
                for step, team in enumerate((first, second, first, second))
            ]
            again = await stepped(first, session, observed(hunter_1=1, hunter_2=2), x_step="3")
            await second.client.post(f"{session}/reset/agents", json={"agents": ["hunter_2"]})
            after = await stepped(first, session, observed(hunter_1=1, hunter_2=2))
            counts = [await team.slots["prey"].sessions_of("prey0123") for team in (first, second)]
            await second.client.delete(f"{session}/agents")
            gone = await stepped(first, session, observed(hunter_1=1))

    hunters = [actions_of(answer) for answer in answers]
    assert [found["hunter_1"] for found in hunters] == [1, 2, 0, 1]
    assert [found["hunter_2"] for found in hunters] == [2, 1, 0, 2]
    assert again.content == answers[3].content
    assert actions_of(after) == {"hunter_1": 2, "hunter_2": 2}
    assert counts == [1, 1]
    assert_error(gone, 404, "is unknown")


WRONG_TEAMS: dict[str, tuple[int, Any]] = {
    "no team": (10, None),
    "version without a digest": (10, [{"hunter": ["hunter012"]}, {}]),
    "version of four parts": (10, [{"hunter": ["a", "b", "c", "d"]}, {}]),
    "agent without a memory": (10, [{}, {"hunter_1": ["hunter", None, 0, True]}]),
    "number for a policy": (10, [{}, {"hunter_1": [7, b"", 0, True]}]),
    "number for an agent": (10, [{}, {7: ["hunter", b"", 0, True]}]),
    "another policy's": (1, "hunter"),
}


@pytest.mark.parametrize(("place", "value"), WRONG_TEAMS.values(), ids=WRONG_TEAMS)
async def test_record_of_a_team_with_a_wrong_value_is_damaged(place: int, value: object) -> None:
    def store(settings: Settings, metrics: Metrics) -> RedisSessions:
        return RedisSessions(SecretStr(server.url), settings, metrics)

    with redis_server() as server:
        async with (
            served_team(open_sessions=store) as team,
            team.slots["hunter"].sessions.running(),
        ):
            session = await begun(team, seed=5)
            await stepped(team, session, observed(hunter_1=1))
            key = f"policy-server:session:{session.rpartition('/')[2]}"
            record = msgpack.unpackb(server.ask("HGET", key, "record"))
            record[place] = value
            server.ask("HSET", key, "record", msgpack.packb(record))
            answers = [
                await stepped(team, session, observed(hunter_1=1)),
                await team.client.get(f"{session}/agents"),
                await team.client.post(f"{session}/reset/agents", json={}),
            ]
            deleted = await team.client.delete(f"{session}/agents")

    for answer in answers:
        assert_error(answer, 409, "can't be read (it is damaged)")
    assert deleted.is_success


async def test_steps_of_a_team_in_redis_get_the_same_bytes_three_ways() -> None:
    def store(settings: Settings, metrics: Metrics) -> RedisSessions:
        return RedisSessions(SecretStr(server.url), settings, metrics)

    @asynccontextmanager
    async def serve(*, has_fast_path: bool) -> AsyncIterator[Application]:
        app, slots, _ = build_team(open_sessions=store, has_fast_path=has_fast_path)
        async with slots["hunter"].sessions.running(), running(app):
            yield app

    with redis_server() as server:
        statuses = await compare_teams(REQUESTS, seed=28, serve=serve)

    assert set(statuses) >= {200, 409, 415, 422}


async def test_server_that_keeps_no_sessions_says_so() -> None:
    async with served_team(open_sessions=lambda *_: NoSessions()) as team:
        answer = await team.client.post("/sessions/agents")

    assert_error(answer, 501, "POLICY_SERVER_SESSIONS_URL", "take a stream")
    assert "x-state" not in answer.text
