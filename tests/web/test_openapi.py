"""The OpenAPI document and the pages that show it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]  # its types are a package of their own
import pytest

from policy_server.access_keys import AccessKey, KeyRing
from policy_server.policy import ActionOutput
from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry
from policy_server.serving.process_sessions import NoSessions
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.support.fakes import (
    FakeBackend,
    components_of,
    integer_backend,
    signature_of,
    slot_of,
    summing_backend,
)
from tests.support.teams import served_team
from tests.support.web import (
    KEY,
    OBSERVATION,
    SCHEMA,
    assert_invalid,
    build,
    client_of,
    running,
    serve,
    serve_shared,
    validator_of,
)

PREFIXED = SCHEMA + "  url_path: app/v1\n"
KINDS = ["predict", "predict_deterministic", "distribution"]
RAW = ["", "_raw"]
BATCH = ["", "/batch"]
SESSION = "/sessions/{session_id}"
OPEN = ["/", "/livez", "/readyz"]


async def document_of(**options: Any) -> dict[str, Any]:  # noqa: ANN401 -- what `serve` takes
    """Return the OpenAPI document of a server."""
    async with serve(key=None, **options) as client:
        return dict((await client.get("/openapi.json")).json())


def nodes_of(node: object) -> Iterator[dict[str, Any]]:
    """Go through every object of a document."""
    if isinstance(node, dict):
        yield node
    for child in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from nodes_of(child)


async def test_document_is_made_once_a_start() -> None:
    async with serve_shared() as client:
        first, second = [(await client.get("/openapi.json")).content for _ in range(2)]

    assert first == second


async def test_document_describes_every_route_once() -> None:
    document = await document_of()

    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        *OPEN,
        "/schema",
        "/policies",
        "/clients",
        "/clients/{language}",
        *(f"/{kind}{raw}{batch}" for kind in KINDS for raw in RAW for batch in BATCH),
        "/sessions",
        SESSION,
        f"{SESSION}/reset",
        *(f"{SESSION}/{kind}{raw}" for kind in KINDS for raw in RAW),
    }
    names = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    assert len(names) == len(set(names))
    assert KEY not in str(document)


async def test_document_of_a_raw_schema_has_raw_routes_only() -> None:
    document = await document_of(schema="parameters: {}")

    assert {path for path in document["paths"] if "predict" in path or "dist" in path} == {
        *(f"/{kind}_raw{batch}" for kind in KINDS for batch in BATCH),
        *(f"{SESSION}/{kind}_raw" for kind in KINDS),
    }
    assert "Observation" not in document["components"]["schemas"]


async def test_every_reference_resolves_and_every_schema_is_valid() -> None:
    document = await document_of()

    for node in nodes_of(document):
        if "$ref" in node:
            section, kind, name = node["$ref"].removeprefix("#/").split("/")
            assert name in document[section][kind]
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_every_answer_has_a_description_and_errors_have_examples() -> None:
    document = await document_of()

    for path, methods in document["paths"].items():
        for operation in methods.values():
            responses = operation["responses"]
            assert all(response["description"] for response in responses.values())
            assert ("401" in responses) == ("security" in operation) == (path not in OPEN)
    predict = document["paths"]["/predict"]["post"]["responses"]
    statuses = ["200", "401", "408", "409", "413", "415", "422", "429", "500", "501", "503", "504"]
    assert sorted(predict) == statuses


async def test_header_that_is_given_twice_is_a_documented_refusal_of_each_route_with_a_key() -> (
    None
):
    twice = [("access-token", KEY)] * 2
    async with serve_shared(key=None) as client:
        document = (await client.get("/openapi.json")).json()
        for path, methods in document["paths"].items():
            for method, operation in methods.items() if path not in OPEN else ():
                url = path.format(session_id="0" * 32, language="python")
                answer = await client.request(method, url, headers=twice)
                assert_invalid(answer, "header.access-token")
                told = operation["responses"]["422"]
                assert "given twice" in told["description"]
                name = told["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                validator_of(document, name).validate(answer.json())


@pytest.mark.parametrize("backend", [integer_backend(), summing_backend()], ids=["plain", "memory"])
async def test_headers_of_answers_are_documented(backend: FakeBackend) -> None:
    asked = {"x-observation-stamp": "1"}
    state = {"x-state": "new"} if backend.signature.memory else {}
    async with serve(backend) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        session = (await client.post("/sessions")).json()["session_id"]
        answers = [
            await client.post("/predict", json=OBSERVATION, headers=asked),
            await client.post("/predict", json=OBSERVATION, headers=asked | state),
            await client.post("/distribution/batch", json=[OBSERVATION], headers=asked),
            await client.post(f"/sessions/{session}/predict", json=OBSERVATION, headers=asked),
        ]

    for answer in answers:
        path = answer.request.url.path.replace(session, "{session_id}")
        told = paths[path]["post"]["responses"]["200"]["headers"]
        # The document's introduction has the id, which every answer carries.
        own = {name for name in answer.headers if name.startswith("x-")} - {"x-request-id"}
        assert "x-policy-version" in own
        assert own <= told.keys()


async def test_key_is_optional_in_the_document_until_the_server_has_one() -> None:
    keys = KeyRing()
    needed: list[dict[str, list[str]]] = [{"accessToken": []}, {"bearer": []}]
    async with serve(key=None, keys=keys) as client:
        for security in ([*needed, {}], needed):
            document = (await client.get("/openapi.json")).json()
            answer = await client.get("/schema")
            operations = [item for path in document["paths"].values() for item in path.values()]

            found = [item["security"] for item in operations if "security" in item]
            assert found == [security] * (len(operations) - len(OPEN))
            assert answer.status_code == (401 if security == needed else 200)
            keys.replace([AccessKey.of("late", KEY)])


async def test_each_route_with_a_body_may_answer_408_as_the_http_server_does() -> None:
    document = await document_of()

    for methods in document["paths"].values():
        for method, operation in methods.items():
            assert ("408" in operation["responses"]) == (method == "post")


async def answers_without_sessions() -> list[httpx.Response]:
    """Return the answers to requests about sessions where there are none."""
    slot = slot_of(integer_backend(), parse_schema(SCHEMA), sessions=NoSessions())
    app = create_app(PolicyRegistry([slot]), Settings(), api_key=KEY)
    async with running(app), client_of(app) as client:
        return [
            await client.post("/sessions"),
            await client.get("/sessions/0123"),
            await client.delete("/sessions/0123"),
            await client.post("/sessions/0123/reset"),
        ]


async def test_documented_statuses_hold_those_that_are_answered() -> None:
    nowhere = {"x-policy-version": "nowhere"}
    async with client_of(build()) as client:
        answers = [await client.get("/schema")]
    async with serve_shared() as client:
        document = (await client.get("/openapi.json")).json()
        answers += [
            await client.post("/predict", json=OBSERVATION, headers=nowhere),
            await client.post("/predict/batch", json=[OBSERVATION], headers=nowhere),
            await client.post("/sessions", headers=nowhere),
        ]
    answers += await answers_without_sessions()

    assert [answer.status_code for answer in answers] == [503, *[409] * 3, *[501] * 4]
    for answer in answers:
        path = answer.request.url.path.replace("0123", "{session_id}")
        operation = document["paths"][path][answer.request.method.lower()]
        told = operation["responses"][str(answer.status_code)]
        example = told["content"]["application/json"]["example"]["detail"]
        is_of_kind = example.split()[0] == answer.json()["detail"].split()[0]
        assert is_of_kind or answer.status_code == 503


async def test_store_of_sessions_may_be_out_of_reach_for_each_of_their_routes() -> None:
    document = await document_of()

    for path, methods in document["paths"].items():
        for operation in methods.values() if "/sessions" in path else ():
            assert {"501", "503"} <= set(operation["responses"])


async def test_document_of_a_team_has_the_statuses_of_versions_and_sessions() -> None:
    async with served_team() as team:
        document = (await team.client.get("/openapi.json")).json()
        nowhere = {"x-policy-version": "hunter=nowhere"}
        body = {"hunter_1": {"cat": 1, "mouse": 0.5}}
        answer = await team.client.post("/predict/agents", json=body, headers=nowhere)

    paths = document["paths"]
    assert answer.status_code == 409
    assert "409" in paths["/predict/agents"]["post"]["responses"]
    assert {"409", "501", "503"} <= set(paths["/sessions/agents"]["post"]["responses"])
    assert "501" in paths["/sessions/{session_id}/agents"]["get"]["responses"]


@pytest.mark.parametrize("kind", KINDS)
async def test_examples_are_real_requests_and_real_answers(kind: str) -> None:
    async with serve_shared() as client:
        document = (await client.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        named = await client.post(f"/{kind}", json=schemas["Observation"]["examples"][0])
        raw = await client.post(
            f"/{kind}_raw?seed=0", json=schemas["RawObservation"]["examples"][0]
        )

    operation = document["paths"][f"/{kind}_raw"]["post"]
    answer = operation["responses"]["200"]["content"]["application/json"]
    assert (named.status_code, raw.status_code) == (200, 200)
    assert answer["example"] == raw.json()
    validator_of(document, answer["schema"]["$ref"].rpartition("/")[2]).validate(raw.json())


async def test_schemas_take_what_the_server_takes_and_refuse_what_it_refuses() -> None:
    bodies: list[dict[str, Any]] = [
        OBSERVATION,
        {"cat": 0},
        {**OBSERVATION, "dog": 1},
        {"cat": "0", "mouse": 1},
        {"cat": 0, "mouse": 11},
        {"cat": 0, "mouse": None},
    ]
    async with serve_shared() as client:
        document = (await client.get("/openapi.json")).json()
        statuses = [(await client.post("/predict", json=body)).status_code for body in bodies]

    valid = [validator_of(document, "Observation").is_valid(body) for body in bodies]
    assert valid == [status == 200 for status in statuses] == [True] + [False] * 5


@pytest.mark.parametrize(
    ("reward", "status"), [(3.4e38, 200), (-3.4e38, 200), (3.5e38, 422), (-1e300, 422)]
)
async def test_reward_has_the_range_that_the_server_takes(reward: float, status: int) -> None:
    async with serve(summing_backend()) as client:
        document = (await client.get("/openapi.json")).json()
        session = (await client.post("/sessions")).json()["session_id"]
        answer = await client.post(
            f"/sessions/{session}/predict",
            json=OBSERVATION,
            headers={"x-previous-reward": str(reward)},
        )

    types = [
        parameter["schema"]
        for item in document["paths"].values()
        for parameter in item.get("post", {}).get("parameters", ())
        if parameter["name"] == "x-previous-reward"
    ]
    assert answer.status_code == status
    assert len(types) == 6
    for known in types:
        assert jsonschema.Draft202012Validator(known).is_valid(reward) == (status == 200)


BOX = ActionOutput("actions_0", is_integer=False, columns=1, is_vector=True)
ITEMS = {
    "integer": (integer_backend(), {"type": "integer"}),
    "Box": (
        FakeBackend(signature_of(components_of(("normal", 1)), outputs=(BOX,)), (0, 0)),
        {"type": "number", "format": "float"},
    ),
    "mixed tuple": (
        FakeBackend(
            signature_of(components_of(("categorical", 2), ("normal", 1), ("categorical", 2))),
            (0,) * 6,
        ),
        {
            "anyOf": [
                {"type": "integer"},
                {"type": "array", "items": {"type": "number", "format": "float"}},
            ]
        },
    ),
}


@pytest.mark.parametrize(("backend", "items"), ITEMS.values(), ids=ITEMS)
async def test_actions_have_the_policys_type(backend: FakeBackend, items: dict[str, Any]) -> None:
    document = await document_of(backend=backend, schema="parameters: {}")

    prediction = document["components"]["schemas"]["Prediction"]
    assert prediction["properties"]["actions"]["items"] == items


@pytest.mark.parametrize(("discrete", "kind"), [("True", "integer"), ("False", "number")])
async def test_document_before_the_start_takes_the_schemas_word(discrete: str, kind: str) -> None:
    app = build(schema=f"parameters: {{discrete: {discrete}}}")
    async with client_of(app) as client:
        document = (await client.get("/openapi.json")).json()

    prediction = document["components"]["schemas"]["Prediction"]
    assert prediction["properties"]["actions"]["items"]["type"] == kind


async def test_raw_width_is_stated_once_the_policy_is_loaded() -> None:
    document = await document_of(schema="parameters: {}")

    obs = document["components"]["schemas"]["RawObservation"]["properties"]["obs"]
    assert (obs["minItems"], obs["maxItems"]) == (2, 2)


@pytest.mark.parametrize(("schema", "servers"), [(SCHEMA, []), (PREFIXED, [{"url": "/app/v1"}])])
async def test_servers_name_the_proxys_prefix_once(
    schema: str, servers: list[dict[str, str]]
) -> None:
    assert (await document_of(schema=schema)).get("servers", []) == servers


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
@pytest.mark.parametrize(("schema", "prefix"), [(SCHEMA, ""), (PREFIXED, "/app/v1")])
@pytest.mark.parametrize("is_stripped", [True, False])
async def test_pages_take_everything_from_this_server(
    page: str, schema: str, prefix: str, *, is_stripped: bool
) -> None:
    async with serve_shared(key=None, schema=schema) as client:
        response = await client.get(page if is_stripped else prefix + page)
        links = re.findall(r"""(?:src|href|url|spec-url)(?:=|: )["']([^"']+)["']""", response.text)
        fetched = [
            await client.get(link.removeprefix(prefix) if is_stripped else link) for link in links
        ]

    assert response.headers["content-type"].startswith("text/html")
    assert "://" not in response.text
    assert len(links) >= 3
    assert all(link.startswith(f"{prefix}/") for link in links)
    assert [item.status_code for item in fetched] == [200] * len(links)
