"""The routes: which exist, health, and the schema as a client sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.fakes import FakeBackend, components_of, integer_backend, renamed, signature_of
from tests.support.web import KEY, OBSERVATION, SCHEMA, serve, serve_shared

KINDS = ["predict", "predict_deterministic", "distribution"]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("kind", KINDS)
async def test_named_and_raw_routes_agree(kind: str, slash: str) -> None:
    async with serve_shared() as client:
        named = await client.post(f"/{kind}{slash}?seed=3", json=OBSERVATION)
        raw = await client.post(f"/{kind}_raw{slash}?seed=3", json={"obs": [0, 1.5]})

    assert (named.status_code, raw.status_code) == (200, 200)
    assert named.content == raw.content


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz"])
async def test_health_is_a_short_json_text(path: str) -> None:
    async with serve_shared(key=None) as client:
        response = await client.get(path)

    assert (response.text, response.headers["content-type"]) == ('"ok"', "application/json")


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
async def test_body_is_json_whatever_the_client_calls_it(content_type: str) -> None:
    async with serve_shared() as client:
        response = await client.post(
            "/predict", content=b'{"cat": 0, "mouse": 1}', headers={"content-type": content_type}
        )

    assert response.status_code == 200


async def test_schema_is_shown_without_the_key() -> None:
    async with serve_shared() as client:
        response = await client.get("/schema")

    assert KEY not in response.text
    assert response.json() == {
        "observations": {"cat": {"type": "int"}, "mouse": {"type": "float", "maximum": 10}},
        "parameters": {"discrete": True, "tuple": False, "url_path": ""},
        "policy": {
            "observation_width": 2,
            "family": "categorical(3)",
            "is_proved": True,
            "basis": "structure",
            "action_mask": None,
            "memory_width": 0,
            "previous_step": [],
            "components": [
                {
                    "kind": "categorical",
                    "size": 3,
                    "has_unsquashed_mode": False,
                    "name": None,
                    "labels": None,
                },
            ],
        },
    }


async def test_schema_infers_what_the_file_leaves_out_and_names_actions() -> None:
    parts = components_of(("categorical", 2), ("normal", 1))
    backend = FakeBackend(signature_of(parts), (0.0, 0.0, 0.0, 0.0))
    named = renamed(backend, (replace(parts[0], name="move", labels=("up", "down")), parts[1]))

    async with serve(named, schema="parameters: {}") as client:
        document = (await client.get("/schema")).json()

    assert document["parameters"] == {"discrete": False, "tuple": True, "url_path": ""}
    assert document["policy"]["components"][0] == {
        "kind": "categorical",
        "size": 2,
        "has_unsquashed_mode": False,
        "name": "move",
        "labels": ["up", "down"],
    }


async def test_schema_says_what_the_file_says() -> None:
    schema = SCHEMA + "  tuple: True\n"
    async with serve(integer_backend(), schema=schema) as client:
        document = (await client.get("/schema")).json()

    assert document["parameters"]["tuple"] is True


async def test_schema_of_an_unknown_family_has_no_components() -> None:
    backend = replace(integer_backend(), actions=([1.0], 0.5))
    unknown = replace(backend, signature=replace(backend.signature, components=None))

    async with serve(unknown) as client:
        document = (await client.get("/schema")).json()

    assert (document["policy"]["family"], document["policy"]["components"]) == ("unknown", [])
