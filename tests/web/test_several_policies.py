"""Several policies in one server: addresses, types and metrics of their own."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from policy_server.errors import SettingsError
from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry
from policy_server.settings import Settings
from policy_server.web import Application, create_app
from tests.support.fakes import integer_backend, slot_of
from tests.support.web import KEY, assert_error, assert_invalid, client_of, running

DOOR = parse_schema("observations: {cat: {type: int}, mouse: {type: float}}")
LIFT = parse_schema("observations: {floor: {type: int}, weight: {type: float}}")
FLAT = parse_schema("parameters: {discrete: True}")
OBSERVATIONS = {"door": {"cat": 0, "mouse": 0.0}, "lift-2": {"floor": 0, "weight": 0.0}}


def build_several(metrics: Metrics) -> Application:
    """Build an application of three policies, which answer 0, 1 and 2."""
    known = {"door": DOOR, "lift-2": LIFT, "lamp": FLAT}
    slots = [
        slot_of(
            integer_backend([9.0 if place == action else 0.0 for place in range(3)]),
            schema,
            name=name,
            metrics=metrics,
        )
        for action, (name, schema) in enumerate(known.items())
    ]
    return create_app(PolicyRegistry(slots), Settings(), api_key=KEY, metrics=metrics)


@asynccontextmanager
async def several() -> AsyncIterator[tuple[httpx.AsyncClient, Metrics]]:
    """Serve three policies."""
    metrics = Metrics()
    app = build_several(metrics)
    async with running(app), client_of(app) as client:
        yield client, metrics


async def test_each_policy_answers_at_its_own_address_and_the_first_at_the_short_one() -> None:
    async with several() as (client, _):
        actions = {}
        for address, body in (
            ("", OBSERVATIONS["door"]),
            ("/policies/door", OBSERVATIONS["door"]),
            ("/policies/lift-2", OBSERVATIONS["lift-2"]),
        ):
            answer = await client.post(f"{address}/predict_deterministic", json=body)
            actions[address] = answer.json()["actions"]
        rows = await client.post(
            "/policies/lamp/predict_deterministic_raw/batch", json=[{"obs": [0, 0]}] * 3
        )

    assert actions == {"": [0], "/policies/door": [0], "/policies/lift-2": [1]}
    assert rows.json()["actions"] == [[2]] * 3


async def test_observation_of_another_policy_is_refused() -> None:
    async with several() as (client, _):
        answer = await client.post("/policies/lift-2/predict", json=OBSERVATIONS["door"])

    assert_invalid(answer, "body.floor", "body.weight", "body.cat", "body.mouse")


@pytest.mark.parametrize("path", ["/policies/lamp/predict", "/policies/roof/predict_raw"])
async def test_address_of_no_policy_is_not_found(path: str) -> None:
    async with several() as (client, _):
        answer = await client.post(path, json={"obs": [0, 0]})

    assert_error(answer, 404, "no such route")


async def test_each_policy_has_its_own_schema_and_key() -> None:
    async with several() as (client, _):
        schemas = [
            (await client.get(path)).json()["observations"]
            for path in ("/schema", "/policies/door/schema", "/policies/lift-2/schema")
        ]
        refused = await client.get("/policies/door/schema", headers={"access-token": "wrong"})

    assert schemas[0] == schemas[1] != schemas[2]
    assert_error(refused, 401, "wrong access key")


async def test_openapi_names_types_and_operations_apart() -> None:
    async with several() as (client, _):
        document = (await client.get("/openapi.json")).json()

    schemas, paths = document["components"]["schemas"], document["paths"]
    assert set(schemas["Lift2Observation"]["properties"]) == {"floor", "weight"}
    assert set(schemas["Observation"]["properties"]) == {"cat", "mouse"}
    assert "LampObservation" not in schemas
    operations = [item["operationId"] for path in paths.values() for item in path.values()]
    assert len(operations) == len(set(operations))
    body = paths["/policies/lift-2/predict"]["post"]["requestBody"]["content"]
    reference = body["application/json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/Lift2Observation"
    answer = paths["/policies/lift-2/predict"]["post"]["responses"]["200"]["content"]
    assert answer["application/json"]["example"]["actions"] == [1]


async def test_columns_of_each_policy_are_named_by_its_own_schema() -> None:
    async with several() as (client, _):
        document = (await client.get("/openapi.json")).json()

    named = [
        re.findall(r"the schema `(\w+)`", operation["requestBody"].get("description", ""))
        for path in document["paths"].values()
        for operation in path.values()
        if "requestBody" in operation
    ]
    names = {name for found in named for name in found}
    assert "DoorObservationColumns" in names
    assert names <= set(document["components"]["schemas"])


async def test_title_of_each_type_is_its_name() -> None:
    """openapi-generator would write one type of those with equal titles and equal properties."""
    async with several() as (client, _):
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]

    titles = {name: schema.get("title") for name, schema in schemas.items() if name in _types()}
    assert titles == {name: name for name in _types()}


def _types() -> set[str]:
    kinds = {"Observation", "RawObservation", "Prediction", "ComponentBatch", "ObservationColumns"}
    return kinds | {f"{policy}{kind}" for policy in ("Door", "Lift2") for kind in kinds}


@pytest.mark.parametrize(
    ("names", "type_name"),
    [
        (("lift-2", "lift_2"), "Lift2Observation"),
        (("door", "Door"), "DoorObservation"),
        (("door", "door-raw"), "DoorRawObservation"),
        (("door", "raw"), "RawObservation"),
    ],
)
def test_policies_whose_types_would_have_one_name_are_refused(
    names: tuple[str, str], type_name: str
) -> None:
    registry = PolicyRegistry([slot_of(integer_backend(), DOOR, name=name) for name in names])

    with pytest.raises(SettingsError, match=f"{names[1]}.*its type {type_name} in OpenAPI"):
        create_app(registry, Settings(), api_key=KEY)


async def test_requests_are_counted_by_policy() -> None:
    async with several() as (client, metrics):
        await client.post("/policies/lift-2/predict", json=OBSERVATIONS["lift-2"])
        await client.post("/predict", json=OBSERVATIONS["door"])
        await client.get("/readyz")

    requests = metrics.snapshot().numbers["requests"]
    assert requests == {
        ("/policies/lift-2/predict", "200", "lift-2"): 1.0,
        ("/predict", "200", "door"): 1.0,
        ("/readyz", "200", ""): 1.0,
    }
