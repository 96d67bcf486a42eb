"""Headers and parameters that a server would have to guess about are refused, in one clear way."""

from __future__ import annotations

import httpx
import pytest

from tests.support.fakes import summing_backend
from tests.support.teams import served_team
from tests.support.web import (
    OBSERVATION,
    assert_error,
    assert_invalid,
    serve_shared,
)


async def begun(client: httpx.AsyncClient) -> str:
    """Begin a session, and return its address."""
    answer = await client.post("/sessions")
    return f"/sessions/{answer.json()['session_id']}"


@pytest.mark.parametrize(
    "name",
    ["x-state", "x-policy-version", "x-episode-id", "x-request-timeout-ms", "x-observation-stamp"],
)
async def test_header_that_is_given_twice_is_refused(name: str) -> None:
    async with serve_shared() as client:
        answer = await client.post("/predict", json=OBSERVATION, headers=[(name, "1"), (name, "1")])

    assert_invalid(answer, f"header.{name}")
    assert answer.json()["detail"][0]["msg"] == "Input should be given once, not 2 times"


@pytest.mark.parametrize("name", ["x-step", "x-previous-reward", "x-previous-action"])
async def test_header_of_a_step_that_is_given_twice_is_refused(name: str) -> None:
    async with serve_shared(summing_backend) as client:
        path = f"{await begun(client)}/predict"
        answer = await client.post(path, json=OBSERVATION, headers=[(name, "0"), (name, "0")])

    assert_invalid(answer, f"header.{name}")


async def test_first_of_two_request_ids_counts() -> None:
    async with serve_shared() as client:
        pairs = [("x-request-id", "a"), ("x-request-id", "b")]
        answer = await client.post("/predict", json=OBSERVATION, headers=pairs)

    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "a")


async def test_empty_state_token_is_refused() -> None:
    async with serve_shared() as client:
        answer = await client.post("/predict", json=OBSERVATION, headers={"x-state": ""})

    assert_invalid(answer, "header.x-state")


@pytest.mark.parametrize("has_fast_path", [True, False])
async def test_id_of_an_episode_is_short_since_it_is_kept(*, has_fast_path: bool) -> None:
    async with serve_shared(has_fast_path=has_fast_path) as client:
        fitting, long = [
            await client.post("/predict", json=OBSERVATION, headers={"x-episode-id": "e" * size})
            for size in (256, 257)
        ]

    assert fitting.status_code == 200
    assert_invalid(long, "header.x-episode-id")
    assert long.json()["detail"][0]["msg"] == "Input should have at most 256 bytes"


@pytest.mark.parametrize("name", ["x-policy-version", "x-episode-id", "x-state"])
async def test_step_of_a_session_takes_nothing_that_the_session_has(name: str) -> None:
    async with serve_shared(summing_backend) as client:
        path = f"{await begun(client)}/predict"
        answer = await client.post(path, json=OBSERVATION, headers={name: "new"})

    assert_invalid(answer, f"header.{name}")


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/reset", "x-episode-id"),
        ("POST", "/reset", "x-policy-version"),
        ("POST", "/reset", "x-state"),
        ("GET", "", "x-policy-version"),
        ("DELETE", "", "x-state"),
    ],
)
@pytest.mark.parametrize("team", ["", "/agents"])
async def test_page_of_a_session_takes_nothing_that_the_session_has(
    team: str, method: str, path: str, name: str
) -> None:
    async with served_team() as served:
        begin = team or "/policies/hunter"
        sessions = "/sessions/agents" if team else f"{begin}/sessions"
        session = (await served.client.post(sessions)).json()["session_id"]
        one = f"{sessions.removesuffix(team)}/{session}"
        answer = await served.client.request(method, one + path + team, headers={name: "new"})

    assert_invalid(answer, f"header.{name}")


@pytest.mark.parametrize("team", ["", "/agents"])
async def test_session_begins_with_no_state_token(team: str) -> None:
    path = "/sessions/agents" if team else "/policies/hunter/sessions"
    async with served_team() as served:
        answer = await served.client.post(path, headers={"x-state": "new"})

    assert_invalid(answer, "header.x-state")


@pytest.mark.parametrize("team", ["", "/agents"])
async def test_session_takes_its_episode_from_the_header_where_the_body_has_none(
    team: str,
) -> None:
    path = "/sessions/agents" if team else "/policies/hunter/sessions"
    lap = {"x-episode-id": "lap"}
    async with served_team() as served:
        alone = await served.client.post(path, headers=lap)
        same = await served.client.post(path, headers=lap, json={"episode_id": "lap"})
        other = await served.client.post(path, headers=lap, json={"episode_id": "pal"})

    assert [answer.json().get("episode_id") for answer in (alone, same)] == ["lap", "lap"]
    assert_invalid(other, "header.x-episode-id")


@pytest.mark.parametrize("number", ["1_0", "1 0", "\u0663", "0_"])
async def test_numbers_are_digits(number: str) -> None:
    async with serve_shared(summing_backend) as client:
        path, text = f"{await begun(client)}/predict", number.encode()
        step = await client.post(path, json=OBSERVATION, headers={b"x-step": text})
        reward = await client.post(path, json=OBSERVATION, headers={b"x-previous-reward": text})
        seed = await client.post("/predict", params={"seed": number}, json=OBSERVATION)

    assert_invalid(step, "header.x-step")
    assert_invalid(reward, "header.x-previous-reward")
    assert_invalid(seed, "query.seed")


async def test_seed_of_a_session_in_its_query_is_refused() -> None:
    async with serve_shared() as client:
        begin = await client.post("/sessions?seed=7")
        reset = await client.post(f"{await begun(client)}/reset?seed=7")
        needless = await client.post("/predict_deterministic?seed=7", json=OBSERVATION)

    assert_invalid(begin, "query.seed")
    assert_invalid(reset, "query.seed")
    assert needless.status_code == 200


async def test_unknown_session_of_a_team_names_where_the_teams_begin() -> None:
    async with served_team() as team:
        of_team = await team.client.delete("/sessions/nobody/agents")
        of_policy = await team.client.delete("/policies/hunter/sessions/nobody")

    assert_error(of_team, 404, "begin another one with POST /sessions/agents")
    assert_error(of_policy, 404, "begin another one with POST /policies/hunter/sessions")


async def test_agents_id_that_is_too_long_is_told_so() -> None:
    async with served_team() as team:
        answer = await team.client.post("/predict/agents", json={"hunter_" + "1" * 200: {}})

    assert "at most 128 characters" in answer.text


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/openapi.json", "/nowhere"])
async def test_headers_of_a_request_for_an_open_page_are_not_looked_at(path: str) -> None:
    pairs = [("x-state", ""), ("x-policy-version", "1"), ("x-policy-version", "2")]
    async with serve_shared() as client:
        plain, odd = [await client.get(path, headers=headers) for headers in ([], pairs)]

    assert odd.status_code == plain.status_code
    assert odd.status_code in {200, 404}


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    "headers", [{"x-state": ""}, {"x-request-timeout-ms": "0"}, {"x-observation-stamp": "a b"}]
)
async def test_wrong_method_is_told_whatever_the_headers(
    headers: dict[str, str], method: str
) -> None:
    async with serve_shared() as client:
        answer = await client.request(method, "/predict", headers=headers)

    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
