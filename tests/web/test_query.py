"""Query parameters: slips in a known name are told, and gateways add what they like."""

from __future__ import annotations

import json
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query
from starlette.datastructures import QueryParams
from starlette.testclient import TestClient, WebSocketDenialResponse

from policy_server.errors import ObservationError
from policy_server.web.query import QueryCheckedRoute, check_query
from tests.support.web import (
    KEY,
    OBSERVATION,
    assert_invalid,
    serve_shared,
    shared_app,
)

BODIES: dict[str, Any] = {
    "/predict": OBSERVATION,
    "/predict_raw": {"obs": [0, 1.5]},
    "/predict/batch": [OBSERVATION],
    "/predict_raw/batch": [{"obs": [0, 1.5]}],
}
SLIPS = [
    "Seed",
    "SEED",
    "seeD",
    "se-ed",
    "s_eed",
    "_seed",
    "seed-",
    "seed_",
    "sed",
    "see",
    "eed",
    "seeds",
    "seed2",
    "seeed",
    "sseed",
    "seedd",
    "esed",
    "sede",
    "sead",
    "seef",
    "swed",
]
OTHERS = [
    "utm_source",
    "x-id",
    "trace",
    "id",
    "speed",
    "need",
    "feed",
    "deed",
    "weed",
    "steed",
    "seeded",
    "reseed",
    "random_seed",
    "s",
    "se",
    "e",
    "ed",
    "key",
    "token",
    "limit",
    "used",
    "dees",
    "sd",
]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", ["Seed", "SEED", "sed", "seeds"])
async def test_slip_in_the_seed_is_told_on_each_route_that_takes_one(path: str, name: str) -> None:
    async with serve_shared() as client:
        response = await client.post(path, params={name: "7"}, json=BODIES[path])

    assert_invalid(response, f"query.{name}")
    assert response.json()["detail"][0] == {
        "type": "parameter_unknown",
        "loc": ["query", name],
        "msg": "Input is no parameter of this route; did you mean 'seed'?",
    }


@pytest.mark.parametrize("path", BODIES)
async def test_seed_given_twice_is_told(path: str) -> None:
    async with serve_shared() as client:
        response = await client.post(f"{path}?seed=1&seed=2", json=BODIES[path])

    assert_invalid(response, "query.seed")
    assert response.json()["detail"][0]["msg"] == "Input should be given once, not 2 times"


@pytest.mark.parametrize("path", BODIES)
async def test_what_gateways_add_is_ignored(path: str) -> None:
    added = "utm_source=a&utm_source=b&x-id=1&_=2&speed=3"
    async with serve_shared() as client:
        seeded = await client.post(f"{path}?seed=7", json=BODIES[path])
        through = await client.post(f"{path}?{added}&seed=7", json=BODIES[path])

    assert (seeded.status_code, through.content) == (200, seeded.content)


@pytest.mark.parametrize("path", ["/predict_deterministic", "/distribution"])
@pytest.mark.parametrize("query", ["seed=7", "seed=7&seed=8", "Seed=7", "sed=7"])
async def test_route_without_a_seed_ignores_it_as_any_other(path: str, query: str) -> None:
    async with serve_shared() as client:
        plain = await client.post(path, json=OBSERVATION)
        asked: httpx.Response = await client.post(f"{path}?{query}", json=OBSERVATION)

    assert (asked.status_code, asked.content) == (200, plain.content)


@pytest.mark.parametrize("name", SLIPS)
def test_slip_is_a_parameter_meant(name: str) -> None:
    with pytest.raises(ObservationError, match="did you mean 'seed'"):
        check_query(QueryParams({name: "7"}), ["seed"])


@pytest.mark.parametrize("name", OTHERS)
def test_other_word_is_no_slip(name: str) -> None:
    check_query(QueryParams({name: "7"}), ["seed"])


@pytest.mark.parametrize(
    "name",
    [
        "logProbability",
        "log-probability",
        "log_probabilty",
        "log_probabillity",
        "rlog_probability",
        "pog_probability",
        "log_porbability",
        "log_probability_",
        "log_probabilityy",
    ],
)
def test_slip_in_a_longer_name_is_any_one_edit(name: str) -> None:
    with pytest.raises(ObservationError, match="did you mean 'log_probability'"):
        check_query(QueryParams({name: "true"}), ["seed", "log_probability"])


def test_every_mistake_is_named_once_and_in_order() -> None:
    query = QueryParams("sed=1&seed=2&SEED=3&seed=4&sed=5&other=6")

    with pytest.raises(ObservationError) as caught:
        check_query(query, ["seed"])

    assert [item["loc"] for item in caught.value.problems] == [
        ["query", "sed"],
        ["query", "seed"],
        ["query", "SEED"],
    ]


def test_known_parameters_are_those_that_the_route_declares() -> None:
    router = APIRouter(route_class=QueryCheckedRoute)

    @router.get("/new")
    async def new(
        log_probability: bool = False,  # noqa: FBT001, FBT002 -- FastAPI reads it so
        size: Annotated[int, Query(alias="length")] = 0,
    ) -> list[Any]:
        return [log_probability, size]

    app = FastAPI()
    app.include_router(router)
    with TestClient(app) as client:
        assert client.get("/new?log_probability=true&length=3&size=4&seed=1").json() == [True, 3]
        for name, meant in (("logprobability", "log_probability"), ("lenght", "length")):
            with pytest.raises(ObservationError, match=f"did you mean '{meant}'"):
                client.get(f"/new?{name}=1")


@pytest.mark.parametrize("query", ["Seed=7", "sed=7", "seeds=7", "seed=7&seed=7"])
@pytest.mark.parametrize("path", ["/predict", "/predict_raw"])
def test_slip_refuses_a_streams_handshake_as_the_post_route_does(path: str, query: str) -> None:
    with TestClient(shared_app(), headers={"access-token": KEY}) as client:
        posted = client.post(f"{path}?{query}", json=BODIES[path])
        with (
            pytest.raises(WebSocketDenialResponse) as caught,
            client.websocket_connect(f"{path}/stream?{query}"),
        ):
            pytest.fail("the stream was opened")

    assert (caught.value.status_code, caught.value.json()) == (422, posted.json())


@pytest.mark.parametrize(
    "address",
    [
        "/predict/stream?utm_source=a&speed=3&seed=7",
        "/predict_deterministic/stream?sed=7",
        "/distribution/stream?seed=7&seed=8",
    ],
)
def test_other_parameters_open_a_stream(address: str) -> None:
    with (
        TestClient(shared_app(), headers={"access-token": KEY}) as client,
        client.websocket_connect(address) as stream,
    ):
        stream.send_text(json.dumps(OBSERVATION))
        assert "status" not in json.loads(stream.receive_text())
