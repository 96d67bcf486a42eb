"""OpenAPI of teams: what the document allows is answered, and what is refused it forbids."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # its types are a package of their own
import pytest

from policy_server.sdk.openapi_document import prepare_document
from tests.support.fakes import integer_backend, previous_backend
from tests.support.teams import HUNTER, PREY, ServedTeam, served_team
from tests.support.web import validator_of

HUNTED = {"cat": 1, "mouse": 0.5}
SEEN = {"distance": 2.0, "is_seen": True}
FLAT = {"obs": [0.5, 1.0]}


@pytest.fixture
async def team() -> AsyncIterator[ServedTeam]:
    """Return a team of which one hunter has another policy than the others."""
    rules = {"*_of_prey": "prey", "hunter_*": "hunter", "hunter_0": "prey", "drone.1": "drone"}
    async with served_team(rules=rules) as served:
        yield served


async def test_document_allows_what_is_answered_and_nothing_else(team: ServedTeam) -> None:
    document = (await team.client.get("/openapi.json")).json()
    observations = validator_of(document, "ObservationsByAgent")
    answers = validator_of(document, "PredictionsByAgent")
    statuses = []
    for body in (
        {"hunter_1": HUNTED, "hunter_0": SEEN, "drone.1": FLAT},
        {"hunter_of_prey": SEEN},
        {"hunter_" + "é" * 121: HUNTED},
        {},
        {"hunter_" + "é" * 122: HUNTED},
        {"hunter_of_prey": HUNTED},
        {"hunter_0": HUNTED},
        {"hunter_1": SEEN},
        {"hunter_1": FLAT},
        {"drone_1": FLAT},
        {"wolf": HUNTED},
    ):
        answer = await team.client.post("/predict/agents", json=body)
        statuses.append(answer.status_code)
        assert observations.is_valid(body) == (answer.status_code == 200), body
        assert answer.status_code != 200 or answers.is_valid(answer.json())

    assert statuses == [200] * 4 + [422] * 7


async def test_expressions_of_agents_are_those_of_ecma_262() -> None:
    rules = {"robot-#1 (*": "hunter", "a&b~*": "hunter", "x-1": "prey"}
    backends = {"hunter": integer_backend(), "prey": integer_backend()}
    async with served_team(backends, schemas={"hunter": HUNTER, "prey": PREY}, rules=rules) as team:
        document = (await team.client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    patterns = [*schemas["ObservationsByAgent"]["patternProperties"]]
    patterns += [kind["pattern"] for kind in team_reset_kinds(schemas) if "pattern" in kind]

    assert len(patterns) == 4
    for pattern in patterns:
        # By the flag `u`, which readers of JSON Schema set, nothing else may be escaped.
        assert set(re.findall(r"\\(.)", pattern)) <= set("^$\\.*+?()[]{}|sS")
    observations = validator_of(document, "ObservationsByAgent")
    assert observations.is_valid({"robot-#1 (2": HUNTED, "a&b~": HUNTED, "x-1": SEEN})
    assert not observations.is_valid({"robot_#1 (2": HUNTED})


def team_reset_kinds(schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the types of an agent's id in the body of a team's reset."""
    agents = schemas["TeamReset"]["properties"]["agents"]["anyOf"][0]
    return list(agents["items"]["anyOf"])


async def test_address_of_teams_sessions_names_its_own_methods(team: ServedTeam) -> None:
    one, all_ = [await team.client.put(f"/sessions{at}/agents") for at in ("/a", "")]

    assert (one.headers["allow"], all_.headers["allow"]) == ("DELETE, GET", "POST")


async def test_document_forbids_what_a_reset_refuses(team: ServedTeam) -> None:
    document = (await team.client.get("/openapi.json")).json()
    session = (await team.client.post("/sessions/agents")).json()["session_id"]
    reset = validator_of(document, "TeamReset")
    bodies: list[tuple[dict[str, Any], int]] = [
        ({"seed": 2**63 - 1, "episode_id": "a"}, 200),
        ({"seed": 2**63 - 1, "agents": None}, 200),
        ({"seed": None, "episode_id": "", "agents": ["hunter_1"]}, 200),
        ({"seed": 7.0}, 200),
        ({"seed": 7.5}, 422),
        ({"seed": 2**63}, 422),
        ({"seed": 2, "agents": []}, 422),
        ({"episode_id": "a", "agents": ["hunter_1"]}, 422),
        ({"agents": ["hunter_1", "wolf"]}, 422),
        ({"agents": [""]}, 422),
        ({"agents": ["hunter_" + "1" * 121]}, 200),
        ({"agents": ["hunter_" + "1" * 122]}, 422),
    ]

    for body, status in bodies:
        answer = await team.client.post(f"/sessions/{session}/reset/agents", json=body)
        assert (answer.status_code, reset.is_valid(body)) == (status, status == 200), body


async def test_every_route_has_an_example_that_is_answered(team: ServedTeam) -> None:
    document = (await team.client.get("/openapi.json")).json()
    asked = 0
    for path, methods in document["paths"].items():
        if not path.endswith("/agents") or "{session_id}" in path or path == "/sessions/agents":
            continue
        content = methods["post"]["requestBody"]["content"]["application/json"]
        answer = await team.client.post(path, json=content["example"])
        shown = methods["post"]["responses"]["200"]["content"]["application/json"]["example"]
        name = content["schema"]["$ref"].rpartition("/")[2]
        assert answer.status_code == 200, answer.text
        assert answer.json().keys() == content["example"].keys() == shown.keys()
        validator_of(document, name).validate(content["example"])
        asked += 1

    assert asked == 6
    assert {"hunter_1", "hunter_0", "drone.1", "1_of_prey"} == content["example"].keys()


async def test_bodies_of_sessions_may_state_the_step_before() -> None:
    backends = {"hunter": previous_backend(), "prey": integer_backend()}
    rules = {"hunter_*": "hunter", "prey": "prey"}
    async with served_team(backends, rules=rules) as team:
        document = (await team.client.get("/openapi.json")).json()
    operation = document["paths"]["/sessions/{session_id}/predict/agents"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    bodies = validator_of(document, reference.rpartition("/")[2])

    stated = {"observation": HUNTED, "previous_reward": 1.0, "previous_action": [1]}
    assert bodies.is_valid({"hunter_1": stated, "prey": SEEN})
    assert bodies.is_valid({"hunter_1": HUNTED})
    assert not bodies.is_valid({"prey": {"observation": SEEN}})
    assert not validator_of(document, "ObservationsByAgent").is_valid({"hunter_1": stated})


async def test_document_is_a_valid_one_and_names_each_header(team: ServedTeam) -> None:
    document = (await team.client.get("/openapi.json")).json()
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema.get("title", name) == name
    plain = document["paths"]["/predict/agents"]["post"]["responses"]
    step = document["paths"]["/sessions/{session_id}/predict/agents"]["post"]["responses"]

    times = {"x-observation-stamp", "x-held-ms"}
    assert plain["200"]["headers"].keys() == {"x-policy-version", "x-policy-memory", *times}
    assert step["200"]["headers"].keys() == {"x-policy-version", "x-step", *times}
    assert {"401", "404", "409", "413", "415", "422", "500", "501", "503"} <= step.keys()


@pytest.mark.parametrize(
    ("rules", "inner"),
    [
        ({"a_*": "hunter", "b": "hunter"}, {"$ref": "#/components/schemas/HunterObservation"}),
        ({"a_*": "hunter", "b": "prey"}, {}),
    ],
    ids=["one policy", "several"],
)
async def test_libraries_have_a_map_by_agent(rules: dict[str, str], inner: dict[str, Any]) -> None:
    backends = {"hunter": integer_backend(), "prey": integer_backend()}
    schemas = {"hunter": HUNTER, "prey": PREY}
    async with served_team(backends, schemas=schemas, rules=rules) as team:
        document = (await team.client.get("/openapi.json")).json()
    prepared = prepare_document(document, url="http://server")

    assert prepared["components"]["schemas"]["ObservationsByAgent"] == {
        "type": "object",
        "title": "ObservationsByAgent",
        "additionalProperties": inner,
    }
