"""Batches over HTTP: each row is what the route for one observation gives."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.errors import PolicyFailedError
from policy_server.schema import parse_schema
from policy_server.serving import ROWS_PER_CALL
from policy_server.settings import Settings
from policy_server.web.batch_answering import BatchAnswering, BatchRequest
from policy_server.web.batch_places import MOST_AT_ONCE
from policy_server.web.unread_answers import UnreadAnswers
from tests.support.action_shapes import SHAPES
from tests.support.fakes import (
    FakeBackend,
    components_of,
    integer_backend,
    opened,
    signature_of,
    slot_of,
)
from tests.support.waiting import turns, until
from tests.support.web import (
    KEY,
    SCHEMA,
    assert_error,
    assert_invalid,
    build,
    running,
    serve,
    serve_shared,
)

RAW = "parameters: {}"
NPY = {"content-type": "application/x-npy"}
NPY_OUT = {**NPY, "accept": "application/x-npy"}
KINDS = ["predict", "predict_deterministic", "distribution"]
ROWS = [{"cat": i, "mouse": i / 7} for i in range(5)]
# All the places that one client may have.
SHARE = MOST_AT_ONCE // 2
UNKNOWN = replace(
    integer_backend(),
    signature=signature_of(None, outputs=integer_backend().signature.action_outputs),
    actions=((1.0,), float("nan")),
)


def npy_of(values: NDArray[Any]) -> bytes:
    """Return an array in npy format."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


async def answer_of(client: httpx.AsyncClient, path: str, **options: Any) -> Any:  # noqa: ANN401 -- JSON, or an array
    """Ask, and read the answer by its content type."""
    response = await client.post(path, **options)
    assert response.status_code == 200, response.text
    if response.headers["content-type"] == "application/x-npy":
        return np.load(io.BytesIO(response.content))
    assert response.headers["content-type"] == "application/json"
    return response.json()


def rows_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a batch's answer as the answers of its rows."""
    if "components" not in answer:
        return [
            dict(zip(answer, values, strict=True)) for values in zip(*answer.values(), strict=True)
        ]
    texts = ("kind", "name", "labels")
    count = len(next(v for k, v in answer["components"][0].items() if k not in texts))
    return [
        {
            "components": [
                {k: v if k in texts else v[row] for k, v in part.items()}
                for part in answer["components"]
            ]
        }
        for row in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", [item[0] for item in SHAPES.values()], ids=SHAPES)
async def test_each_row_is_what_one_observation_gets(backend: FakeBackend, kind: str) -> None:
    seed = "?seed=5" if kind == "predict" else ""
    observations = [[i / 10, 0.5] for i in range(4)]
    async with serve(backend, schema=RAW) as client:
        batch = await answer_of(
            client, f"/{kind}_raw/batch{seed}", json=[{"obs": row} for row in observations]
        )
        ones = [
            await answer_of(
                client, f"/{kind}_raw" + (f"?seed={5 + i}" if seed else ""), json={"obs": row}
            )
            for i, row in enumerate(observations)
        ]

    assert rows_of(batch) == ones


@pytest.mark.parametrize("kind", KINDS)
async def test_every_form_of_a_body_gets_the_same_answer(kind: str) -> None:
    seed = "?seed=1" if kind == "predict" else ""
    matrix = np.array([list(row.values()) for row in ROWS], np.float64)
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    async with serve_shared() as client:
        named = f"/{kind}/batch{seed}"
        answers = [
            await answer_of(client, named, json=ROWS),
            await answer_of(client, named, json=columns),
            await answer_of(client, named, content=npy_of(matrix), headers=NPY),
            await answer_of(client, named, json=ROWS),
            await answer_of(client, f"/{kind}/batch/{seed}", json=ROWS),
            await answer_of(client, f"/{kind}_raw/batch{seed}", json={"obs": matrix.tolist()}),
            await answer_of(
                client, f"/{kind}_raw/batch{seed}", content=npy_of(matrix), headers=NPY
            ),
        ]

    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("application/x-npy;q=0", "application/json"),
        ("application/json, application/x-npy;q=0.5", "application/json"),
        ("application/json;q=0.2, application/x-npy;q=0.5", "application/x-npy"),
        ("application/x-npy, */*", "application/x-npy"),
    ],
)
async def test_answer_is_an_array_where_that_is_wanted_most(accept: str, expected: str) -> None:
    async with serve_shared() as client:
        response = await client.post("/predict/batch", json=ROWS, headers={"accept": accept})

    assert response.headers["content-type"] == expected


@pytest.mark.parametrize("accept", ["application/x-npy", "text/html, Application/X-NPY;q=0.9"])
@pytest.mark.parametrize("backend", [item[0] for item in SHAPES.values()], ids=SHAPES)
async def test_array_has_the_columns_of_the_json(backend: FakeBackend, accept: str) -> None:
    body = {"json": [{"obs": [0.25, 1]}, {"obs": [0.5, 1]}], "headers": {"accept": accept}}
    plain = {"json": body["json"]}
    async with serve(backend, schema=RAW) as client:
        actions = await answer_of(client, "/predict_deterministic_raw/batch", **body)
        answers = await answer_of(client, "/predict_deterministic_raw/batch", **plain)
        inputs = await answer_of(client, "/distribution_raw/batch", **body)
        parts = (await answer_of(client, "/distribution_raw/batch", **plain))["components"]

    assert actions.dtype == inputs.dtype == np.float32
    flat = [
        [*np.hstack([np.ravel(value) for value in row]), chance]
        for row, chance in zip(answers["actions"], answers["probability"], strict=True)
    ]
    assert np.array_equal(actions, np.array(flat, np.float32))
    other = ("kind", "name", "labels", "mass_at_low", "mass_at_high")
    values = [v for part in parts for k, v in part.items() if k not in other]
    assert np.array_equal(inputs, np.hstack([np.array(v, np.float32) for v in values]))


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("backend", [item[0] for item in SHAPES.values()], ids=SHAPES)
async def test_array_has_the_log_probability_where_it_is_asked_for(
    backend: FakeBackend, kind: str
) -> None:
    seed = {"seed": 3} if kind == "predict" else {}
    body = {"json": [{"obs": [0.25, 1]}, {"obs": [0.5, 1]}]}
    accept = {"headers": {"accept": "application/x-npy"}}
    path, asked = f"/{kind}_raw/batch", seed | {"log_probability": "true"}
    async with serve(backend, schema=RAW) as client:
        plain = await answer_of(client, path, params=seed, **body, **accept)
        more = await answer_of(client, path, params=asked, **body, **accept)
        answer = await answer_of(client, path, params=asked, **body)
        same = await answer_of(client, path, params=seed, **body)
        empty = await answer_of(client, path, params=asked, json=[], **accept)

    assert np.array_equal(more[:, :-1], plain)
    assert np.array_equal(more[:, -1], np.array(answer["log_probability"], np.float32))
    assert answer == same
    assert empty.shape == (0, more.shape[1])


async def test_log_probability_of_an_array_is_nan_where_it_is_unknown() -> None:
    async with serve(UNKNOWN) as client:
        answer = await answer_of(
            client,
            "/predict/batch?log_probability=true",
            json=ROWS,
            headers={"accept": "application/x-npy"},
        )

    assert np.isnan(answer[:, 1:]).all()


async def test_parameter_of_the_log_probability_is_declared_and_validated() -> None:
    async with serve_shared() as client:
        wrong = await client.post("/predict/batch?log_probability=maybe", json=ROWS)
        document = (await client.get("/openapi.json")).json()

    assert_invalid(wrong, "query.log_probability")
    declared = {
        path
        for path, methods in document["paths"].items()
        for operation in methods.values()
        for parameter in operation.get("parameters", ())
        if parameter["name"] == "log_probability"
    }
    assert declared == {f"/{kind}{form}/batch" for kind in KINDS[:2] for form in ("", "_raw")}


@pytest.mark.parametrize("kind", KINDS)
async def test_batch_without_an_observation_has_an_answer_without_a_row(kind: str) -> None:
    async with serve_shared() as client:
        answer = await answer_of(client, f"/{kind}/batch", json=[])
        array = await answer_of(
            client, f"/{kind}/batch", content=npy_of(np.empty((0, 2))), headers=NPY_OUT
        )

    assert rows_of(answer) == []
    assert array.shape == (0, 3 if kind == "distribution" else 2)


@pytest.mark.parametrize("kind", KINDS)
async def test_empty_batch_of_a_policy_that_mixes_numbers_and_vectors_is_json(kind: str) -> None:
    mixed = FakeBackend(
        signature_of(components_of(("categorical", 3), ("normal", 2))), (0.0, 1.0, 2.0, *[0.0] * 4)
    )

    async with serve(mixed) as client:
        answer = await answer_of(client, f"/{kind}/batch", json=[])

    assert rows_of(answer) == []


async def test_large_batch_is_cut_into_calls_and_answered_in_order() -> None:
    backend = integer_backend((0.0, 1.0))
    count = 2 * ROWS_PER_CALL + 7
    first = np.arange(count) % 3
    async with serve(backend) as client:
        backend.batches.clear()
        answer = await answer_of(
            client,
            "/predict_deterministic/batch",
            content=npy_of(np.column_stack([first, first])),
            headers=NPY,
        )

    assert sorted(backend.batches) == [7, ROWS_PER_CALL, ROWS_PER_CALL]
    assert [row[0] for row in answer["actions"]] == [int(value == 0) for value in first]


async def test_seed_makes_every_draw_reproducible_and_rows_differ() -> None:
    body = {"json": [ROWS[0]] * 200}
    async with serve(integer_backend((0.0, 0.0, 0.0))) as client:
        one = await answer_of(client, "/predict/batch?seed=9223372036854775807", **body)
        two = await answer_of(client, "/predict/batch?seed=9223372036854775807", **body)
        wrapped = await answer_of(client, "/predict?seed=0", json=ROWS[0])
        free = [await answer_of(client, "/predict/batch", **body) for _ in range(2)]

    assert one == two
    assert one["actions"][1] == wrapped["actions"]
    assert len({tuple(row) for row in one["actions"]}) == 3
    assert free[0] != free[1]


async def test_mistake_is_a_422_that_names_row_and_field() -> None:
    async with serve_shared() as client:
        rows = await client.post("/predict/batch", json=[*ROWS, {"cat": 1, "mouse": 11}])
        columns = await client.post("/predict/batch", json={"cat": [1, True], "mouse": [1, 2]})
        array = await client.post("/predict/batch", content=npy_of(np.eye(3)), headers=NPY)
        text = await client.post("/predict/batch", content=b"[{]")
        seed = await client.post("/predict/batch?seed=-1", json=ROWS)

    assert_invalid(rows, "body.5.mouse")
    assert_invalid(columns, "body.cat.1")
    assert_invalid(array, "body")
    assert_invalid(text, "body")
    assert_invalid(seed, "query.seed")


async def test_named_batches_exist_only_where_the_schema_names_observations() -> None:
    async with serve_shared(schema=RAW) as client:
        response = await client.post("/predict/batch", json=[])

    assert_error(response, 404, "no such route")


async def test_limits_of_rows_and_of_bytes_are_413() -> None:
    async with serve(max_batch_rows=4, max_batch_body_bytes=300, max_body_bytes=10) as client:
        rows = await client.post("/predict/batch", json=ROWS)
        size = await client.post("/predict/batch", content=b" " * 301)
        fits = await client.post("/predict/batch", json=ROWS[:4])

    assert_error(rows, 413, "more than 4 observations", "POLICY_SERVER_MAX_BATCH_ROWS")
    assert_error(size, 413, "larger than 300 bytes", "POLICY_SERVER_MAX_BATCH_BODY_BYTES")
    assert fits.status_code == 200


async def test_key_is_asked_for() -> None:
    async with serve_shared(key=None) as client:
        response = await client.post("/predict/batch", json=ROWS)

    assert_error(response, 401, "no access key")


async def test_policy_without_a_known_family_answers_what_it_can() -> None:
    async with serve(UNKNOWN) as client:
        drawn = await answer_of(client, "/predict/batch", json=ROWS)
        refused = await client.post("/distribution/batch", json=ROWS)

    assert drawn == {"actions": [[1]] * 5, "probability": [None] * 5, "log_probability": [None] * 5}
    assert_error(refused, 501, "could not be proved")


async def test_failing_row_is_named_and_its_batch_is_refused() -> None:
    backend = replace(integer_backend(), error=PolicyFailedError("the policy failed"), poison=3.0)
    nan = FakeBackend(
        signature_of(None, outputs=integer_backend().signature.action_outputs),
        (),
        actions=((float("nan"),), 1.0),
    )
    async with serve(backend) as client, serve(nan) as other:
        failed = await client.post("/predict/batch", json=ROWS)
        infinite = await other.post("/predict/batch", json=ROWS)

    assert_error(failed, 500, "observation 3: the policy failed")
    assert_error(infinite, 500, "observation 0: the policy's action holds NaN")


async def test_body_that_takes_too_long_is_a_408() -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"["
        await asyncio.sleep(5)

    async with serve(request_timeout_s=0.1) as client:
        response = await client.post("/predict/batch", content=slowly())

    assert_error(response, 408, "did not arrive within 0.1 s")


async def test_client_that_leaves_during_its_upload_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = build()
    to_app = [
        {"type": "http.request", "body": b"[", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:  # noqa: ANN401 -- ASGI's messages
        return to_app.pop(0)

    async def send(message: Any) -> None:  # noqa: ANN401 -- likewise
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict/batch",
        "query_string": b"",
        "headers": [(b"access-token", KEY.encode()), (b"content-length", b"1000")],
    }
    caplog.set_level(logging.INFO)
    async with running(app):
        await app(scope, receive, send)

    assert sent == []
    assert "client_disconnected" in caplog.messages
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_more_batches_than_places_wait_and_then_are_503() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"["
        await asyncio.sleep(5)

    async with serve(request_timeout_s=0.6) as client:

        def begin(count: int) -> list[asyncio.Task[httpx.Response]]:
            return [
                asyncio.create_task(client.post("/predict/batch", content=never()))
                for _ in range(count)
            ]

        slow = begin(1)
        await asyncio.sleep(0.05)
        beside = await client.post("/predict/batch", json=ROWS)
        slow += begin(SHARE - 1)
        # As many again wait for a place and then get one, and this one waits for too long.
        await asyncio.sleep(0.3)
        slow += begin(SHARE)
        await asyncio.sleep(0.05)
        refused = await client.post("/predict/batch", json=ROWS)
        statuses = {response.status_code for response in await asyncio.gather(*slow)}
        after = await client.post("/predict/batch", json=ROWS)

    assert beside.status_code == after.status_code == 200
    assert_error(refused, 503, f"{SHARE} batches are being answered already")
    assert refused.headers["retry-after"] == "1"
    assert statuses == {408}


async def test_batch_that_waited_for_its_place_is_answered_by_the_version_live_by_then() -> None:
    old, new = integer_backend((9.0, 0.0, 0.0), weight=0.0), integer_backend(weight=0.0)
    body = json.dumps(ROWS).encode()
    is_sent = asyncio.Event()

    async def late() -> AsyncIterator[bytes]:
        yield body[:1]
        await is_sent.wait()
        yield body[1:]

    slot = slot_of(old, parse_schema(SCHEMA))
    answering = BatchAnswering(slot, Settings(), UnreadAnswers(1))
    await slot.start()
    request = BatchRequest(
        kind="predict_deterministic",
        is_raw=False,
        is_npy=False,
        wants_npy=False,
        seed=None,
        request_id="",
    )
    placed = [asyncio.create_task(answering.answer(request, late())) for _ in range(SHARE)]
    await turns()
    waiting = asyncio.create_task(answering.answer(request, late()))
    await turns()
    swapping = asyncio.create_task(slot.swap(lambda: opened(new)))
    await until(lambda: slot.current().signature is new.signature)
    is_sent.set()
    before, after = await asyncio.gather(*placed), await waiting
    await swapping
    await slot.aclose()

    assert {json.loads(answer.text)["actions"][0][0] for answer in before} == {0}
    assert json.loads(after.text)["actions"] == [[2]] * len(ROWS)


async def test_single_observations_pass_a_batch() -> None:
    backend = integer_backend()
    order: list[str] = []
    body = json.dumps([{"cat": 1, "mouse": 2}] * 20_000).encode()

    async def ask(client: httpx.AsyncClient, name: str, path: str, content: bytes) -> None:
        response = await client.post(path, content=content)
        assert response.status_code == 200
        order.append(name)

    async with serve(backend) as client:
        batch = asyncio.create_task(ask(client, "batch", "/predict/batch", body))
        await asyncio.sleep(0.005)
        for _ in range(10):
            await ask(client, "single", "/predict", b'{"cat": 1, "mouse": 2}')
        await batch

    assert order == ["single"] * 10 + ["batch"]


async def test_every_row_is_recorded_in_the_prediction_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "policy_server.predictions")
    async with serve(prediction_log_rate=1.0) as client:
        caplog.clear()
        response = await client.post("/predict_deterministic/batch", json=ROWS)

    records = [vars(record) for record in caplog.records if record.message == "prediction"]
    assert [record["observation"] for record in records] == [
        pytest.approx(list(row.values())) for row in ROWS
    ]
    assert [record["answer"] for record in records] == rows_of(response.json())
    assert {record["request_id"] for record in records} == {response.headers["x-request-id"]}


async def test_document_says_rows_columns_and_arrays() -> None:
    async with serve_shared(schema=SCHEMA) as client:
        document = (await client.get("/openapi.json")).json()

    operation = document["paths"]["/predict/batch"]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"application/json", "application/x-npy"}
    assert set(operation["responses"]["200"]["content"]) == set(content)
    columns = document["components"]["schemas"]["ObservationColumns"]
    assert columns["required"] == ["cat", "mouse"]
    assert columns["properties"]["cat"]["items"]["type"] == "integer"
    seed = operation["parameters"][0]
    assert seed["name"] == "seed"
    for kind in KINDS:
        answer = document["paths"][f"/{kind}/batch"]["post"]["responses"]["200"]
        example = answer["content"]["application/json"]["example"]
        single = document["paths"][f"/{kind}"]["post"]["responses"]["200"]
        assert rows_of(example) == [single["content"]["application/json"]["example"]]
