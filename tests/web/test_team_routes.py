"""Teams over HTTP: every agent by its policy, one call a policy, and all answered or none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fakes import gated, hold
from tests.support.pages import rendered
from tests.support.teams import ServedTeam, own_seed, served_team, usual_backends
from tests.support.waiting import until
from tests.support.web import assert_error, assert_invalid, serve

TEAM: dict[str, dict[str, Any]] = {
    "hunter_1": {"cat": 1, "mouse": 0.5},
    "prey": {"distance": 2.0, "is_seen": True},
    "hunter_2": {"cat": 2, "mouse": 0.0},
    "drone_x": {"obs": [0.5, -1.0]},
}
POLICIES = {"hunter_1": "hunter", "hunter_2": "hunter", "prey": "prey", "drone_x": "drone"}


def lone(agent: str, kind: str) -> str:
    """Return the route of an agent's policy that takes its observation alone."""
    raw = "_raw" if agent.startswith("drone") else ""
    return f"/policies/{POLICIES[agent]}/{kind}{raw}"


@pytest.fixture
async def team() -> AsyncIterator[ServedTeam]:
    """Return a team that many examples ask."""
    async with served_team() as served:
        yield served


@pytest.mark.parametrize("kind", ["predict_deterministic", "distribution"])
async def test_each_agent_is_answered_as_by_the_route_of_its_policy(kind: str) -> None:
    async with served_team() as team:
        together = await team.client.post(f"/{kind}/agents", json=TEAM)
        alone = {
            agent: (await team.client.post(lone(agent, kind), json=observation)).json()
            for agent, observation in TEAM.items()
        }

    assert together.status_code == 200, together.text
    assert together.json() == alone
    assert list(together.json()) == list(TEAM)


async def test_raw_routes_take_flat_observations_of_all_agents() -> None:
    body = {"hunter_1": {"obs": [1.0, 0.5]}, "prey": {"obs": [2.0, 1]}}
    async with served_team() as team:
        raw = await team.client.post("/predict_deterministic_raw/agents", json=body)
        named = await team.client.post(
            "/predict_deterministic/agents",
            json={agent: TEAM[agent] for agent in ("hunter_1", "prey")},
        )

    assert raw.status_code == 200
    assert raw.content == named.content


async def test_agents_of_one_policy_ride_in_one_call_of_it() -> None:
    async with served_team() as team:
        for backend in team.backends.values():
            del backend.batches[:]
        await team.client.post("/predict/agents", json=TEAM)

    assert {name: backend.batches for name, backend in team.backends.items()} == {
        "hunter": [2],
        "prey": [1],
        "drone": [1],
    }


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    agents=st.permutations(list(TEAM)),
    count=st.integers(1, 4),
    seed=st.integers(0, 2**63 - 1),
)
async def test_seeded_draw_of_an_agent_depends_on_nothing_but_its_id_and_observation(
    team: ServedTeam, agents: list[str], count: int, seed: int
) -> None:
    some = {agent: TEAM[agent] for agent in agents[:count]}

    together = await team.client.post(f"/predict/agents?seed={seed}", json=some)
    alone = {}
    for agent, observation in some.items():
        path = f"{lone(agent, 'predict')}?seed={own_seed(seed, agent)}"
        alone[agent] = (await team.client.post(path, json=observation)).json()

    assert together.json() == alone
    assert list(together.json()) == list(some)


async def test_answer_names_the_version_of_each_policy_and_says_that_it_has_no_memory() -> None:
    async with served_team() as team:
        mixed = await team.client.post("/predict/agents", json=TEAM)
        plain = await team.client.post("/predict/agents", json={"prey": TEAM["prey"]})
        nobody = await team.client.post("/predict/agents", json={})

    assert mixed.headers["x-policy-version"] == "hunter=hunter0123, prey=prey0123, drone=drone0123"
    assert mixed.headers["x-policy-memory"] == "none"
    assert plain.headers["x-policy-version"] == "prey=prey0123"
    assert "x-policy-memory" not in plain.headers
    assert (nobody.status_code, nobody.json()) == (200, {})
    assert "x-policy-version" not in nobody.headers


async def test_version_is_asked_for_by_policy(team: ServedTeam) -> None:
    async def asked(wanted: str) -> httpx.Response:
        headers = {"x-policy-version": wanted}
        return await team.client.post("/predict/agents", json=TEAM, headers=headers)

    for wanted in ("prey=prey0123", "hunter=hunter0123,prey=prey0123"):
        assert (await asked(wanted)).status_code == 200
    for wanted in ("prey0123", "wolf=1"):
        assert_error(await asked(wanted), 409, f"x-policy-version: '{wanted}' names no version")
    assert_error(await asked("prey=v9"), 409, "agent 'prey': x-policy-version: 'v9' is not loaded")


async def test_mistakes_of_all_agents_are_named_and_nobody_is_asked() -> None:
    body = {
        "hunter_1": {"cat": 1, "mouse": 99},
        "wolf": {"cat": 1},
        "prey": TEAM["prey"],
        "hunter_2": {"cat": 1.5},
        "drone_x": {"obs": [1.0]},
    }
    async with served_team() as team:
        for backend in team.backends.values():
            del backend.batches[:]
        answer = await team.client.post("/predict/agents", json=body)

    assert_invalid(
        answer,
        "body.hunter_1.mouse",
        "body.wolf",
        "body.hunter_2.cat",
        "body.hunter_2.mouse",
        "body.drone_x.obs",
    )
    assert answer.json()["detail"][1]["msg"] == (
        "Input should be an agent of multi_agent: hunter_*, prey, drone_*"
    )
    assert not any(backend.batches for backend in team.backends.values())


async def test_body_that_is_no_team_is_refused(team: ServedTeam) -> None:
    for body, place in (
        (b"[]", "body"),
        (b"7", "body"),
        (b'{"prey": {"distance": 1.0, "is_seen": true}', "body"),
        (b'{"prey": []}', "body.prey"),
        (b'{"prey": null}', "body.prey"),
        (b'{"prey": {"distance": NaN, "is_seen": true}}', "body.prey.distance"),
        (b'{"prey": {"distance": 1e39, "is_seen": true}}', "body.prey.distance"),
        (b'{"": {"distance": 1.0}}', "body."),
        (b'{"prey": ' + b"[" * 400 + b"]" * 400 + b"}", "body"),
    ):
        assert_invalid(await team.client.post("/predict/agents", content=body), place)


async def test_array_is_refused_in_words() -> None:
    async with served_team() as team:
        answer = await team.client.post(
            "/predict/agents", content=b"", headers={"content-type": "application/x-npy"}
        )
        utf16 = await team.client.post("/predict/agents", content='{"a": 1}'.encode("utf-16"))

    assert_error(answer, 415, "an array is one observation; send a team's as JSON")
    assert_error(utf16, 415, "the body is UTF-16")


async def test_state_token_is_refused_in_words() -> None:
    async with served_team() as team:
        answer = await team.client.post("/predict/agents", json=TEAM, headers={"x-state": "new"})

    assert_invalid(answer, "header.x-state")
    assert "sessions and streams" in answer.json()["detail"][0]["msg"]


async def test_agents_beyond_the_limit_are_413() -> None:
    async with served_team(max_agents=3) as team:
        answer = await team.client.post("/predict/agents", json=TEAM)

    assert_error(answer, 413, "the team has 4 agents; at most 3", "POLICY_SERVER_MAX_AGENTS")


async def test_team_that_is_larger_than_a_queue_is_413() -> None:
    async with served_team(max_queue_size=1) as team:
        answer = await team.client.post("/predict/agents", json=TEAM)
        others = {name: TEAM[name] for name in ("hunter_1", "prey", "drone_x")}
        one_of_each = await team.client.post("/predict/agents", json=others)

    assert_error(
        answer, 413, "2 agents of the policy hunter; its queue", "POLICY_SERVER_MAX_QUEUE_SIZE"
    )
    assert one_of_each.status_code == 200


async def test_team_that_finds_no_room_in_a_queue_takes_none() -> None:
    backends = {name: gated(backend) for name, backend in usual_backends().items()}
    # Of two hunters the first would find room beside the one that waits.
    async with served_team(backends, max_queue_size=2) as team:
        for backend in team.backends.values():
            del backend.batches[:]
        gate = hold(backends["hunter"])
        hunter = {"hunter_1": TEAM["hunter_1"]}
        before = asyncio.create_task(team.client.post("/predict/agents", json=hunter))
        await until(lambda: team.slots["hunter"].current().scheduler.waiting)
        answer = await team.client.post("/predict/agents", json=TEAM)
        schedulers = [slot.current().scheduler for slot in team.slots.values()]
        gate.set()
        await before
        await until(lambda: not any(scheduler.waiting for scheduler in schedulers))
        alone = await team.client.post("/predict/agents", json={"prey": TEAM["prey"]})

    assert_error(answer, 503, "agent 'hunter_2': 2 observations are waiting already")
    assert answer.headers["retry-after"] == "1"
    assert alone.status_code == 200
    assert {name: backend.batches for name, backend in team.backends.items()} == {
        "hunter": [1],
        "prey": [1],
        "drone": [],
    }


async def test_policy_that_fails_on_one_agent_fails_the_step_and_is_named() -> None:
    async with served_team() as team:
        team.backends["prey"].error = RuntimeError("a secret")
        body = {**TEAM, "prey": {"distance": 666.0, "is_seen": False}}
        answer = await team.client.post("/predict/agents", json=body)

    assert_error(answer, 500, "agent 'prey': the policy failed")
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/predict/agents", "/sessions/{}/predict/agents"])
async def test_reason_of_a_policy_that_fails_is_in_the_log(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_team() as team:
        team.backends["prey"].error = RuntimeError("the reason")
        session = (await team.client.post("/sessions/agents")).json()["session_id"]
        body = {**TEAM, "prey": {"distance": 666.0, "is_seen": False}}
        answer = await team.client.post(path.format(session), json=body)

    assert_error(answer, 500, "the server's log has the reason")
    assert "RuntimeError: the reason" in caplog.text


async def test_policy_that_hangs_ends_the_step_in_time_and_frees_the_others() -> None:
    backends = usual_backends()
    gate = asyncio.Event()
    async with served_team(backends, request_timeout_s=0.2) as team:
        backends["prey"].gate = gate
        answer = await team.client.post("/predict/agents", json=TEAM)
        schedulers = [slot.current().scheduler for slot in team.slots.values()]
        await until(lambda: not any(scheduler.waiting for scheduler in schedulers))
        gate.set()

    assert_error(answer, 503, "agent 'prey': no answer within 0.2 s")


async def test_policy_that_is_not_loaded_answers_503_for_its_agents_alone() -> None:
    async with served_team() as team:
        await team.slots["prey"].aclose()
        whole = await team.client.post("/predict/agents", json=TEAM)
        others = await team.client.post("/predict/agents", json={"hunter_1": TEAM["hunter_1"]})

    assert_error(whole, 503, "agent 'prey': ")
    assert others.status_code == 200


async def test_requests_of_a_team_are_counted_and_so_are_the_calls_of_each_policy() -> None:
    async with served_team() as team:
        before = rendered(team.metrics)
        await team.client.post("/predict/agents", json=TEAM)
        after = rendered(team.metrics)

    route = "requests_total policy= route=/predict/agents status=200"
    assert after[route] - before.get(route, 0) == 1
    for policy, rows in (("hunter", 2), ("prey", 1)):
        name = f"batch_size_sum policy={policy}"
        assert after[name] - before[name] == rows


async def test_fast_path_and_fastapis_routes_answer_alike() -> None:
    headers: tuple[dict[str, str], ...] = (
        {},
        {"x-policy-version": "prey=prey0123"},
        {"x-policy-version": "wolf"},
        {"x-episode-id": "one"},
        {"content-type": "application/x-npy"},
    )
    bodies = (
        *(json.dumps(body).encode() for body in (TEAM, {}, {"wolf": 1}, {"prey": TEAM["prey"]})),
        b"{",
        b"",
        '{"prey": 1}'.encode("utf-16"),
    )
    answered = []
    for has_fast_path in (True, False):
        async with served_team(has_fast_path=has_fast_path) as team:
            answered.append(
                [
                    await team.client.post(path, content=body, headers=some | {"x-request-id": "a"})
                    for path in ("/predict_deterministic/agents", "/distribution_raw/agents")
                    for body in bodies
                    for some in headers
                ]
            )

    fast, slow = [[_comparable(answer) for answer in answers] for answers in answered]
    assert fast == slow
    assert {status for status, *_ in fast} == {200, 409, 415, 422}


def _comparable(answer: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    return answer.status_code, answer.content, sorted(answer.headers.items())


async def test_server_without_a_team_has_no_routes_of_one() -> None:
    async with serve() as client:
        answer = await client.post("/predict/agents", json=TEAM)

    assert_error(answer, 404)
