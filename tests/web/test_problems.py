"""Errors over HTTP: one shape, the right status, and nothing that a client should not see."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os

import pytest

from policy_server.errors import (
    DistributionError,
    ExportError,
    ModelError,
    PolicyFailedError,
    PolicyServerError,
    SchemaError,
    SettingsError,
)
from policy_server.policy import ActionOutput
from policy_server.web.problems import describe_error
from tests.support.fakes import FakeBackend, integer_backend, signature_of
from tests.support.waiting import until
from tests.support.web import (
    OBSERVATION,
    assert_error,
    assert_invalid,
    build,
    client_of,
    serve,
    serve_shared,
)

POISON = {"cat": 666, "mouse": 1.5}


@pytest.mark.parametrize("path", ["/nowhere", "/predict/batch/x", "/static/none.js", "/docs/x"])
async def test_unknown_route_is_404_that_points_to_the_docs(path: str) -> None:
    async with serve_shared() as client:
        assert_error(await client.get(path), 404, "no such route; /docs lists them")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", "POST"),
        ("PUT", "/predict_raw", "POST"),
        ("DELETE", "/schema", "GET"),
        ("POST", "/", "GET"),
        ("POST", "/docs", "GET"),
        ("PUT", "/sessions/a", "DELETE, GET"),
        ("PUT", "/sessions/a/reset", "POST"),
    ],
)
async def test_wrong_method_is_405_with_the_right_one(method: str, path: str, allowed: str) -> None:
    async with serve_shared() as client:
        response = await client.request(method, path)

    assert_error(response, 405, "method not allowed")
    assert response.headers["allow"].replace(", HEAD", "") == allowed


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'{"\xff\xfe\x00', "body"),
        (b"[" * 100_000, "body"),
        (b'{"cat": 0, "mouse": NaN}', "body.mouse"),
        (b'{"cat": 0, "mouse": -Infinity}', "body.mouse"),
        (b'{"cat": 0, "mouse": -1e39}', "body.mouse"),
        (b'{"cat": 0, "mouse": 11}', "body.mouse"),
        (b'{"cat": 1' + b"0" * 400 + b', "mouse": 1}', "body.cat"),
        (b'{"cat": "0", "mouse": 1}', "body.cat"),
        (b'{"cat": true, "mouse": 1}', "body.cat"),
        (b'{"cat": 0.5, "mouse": 1}', "body.cat"),
        (b'{"cat": 0}', "body.mouse"),
        (b'{"cat": 0, "mouse": 1, "dog": 2}', "body.dog"),
        (b'{"cat": 0, "mouse": 1, "\\ud83d\\ude00<script>": 2}', "body.\U0001f600<script>"),
    ],
)
async def test_wrong_observation_is_422_that_names_the_field(body: bytes, place: str) -> None:
    async with serve_shared() as client:
        response = await client.post("/predict", content=body)

    assert_invalid(response, place)
    assert response.headers["content-type"] == "application/json"


async def test_every_wrong_field_is_named() -> None:
    async with serve_shared() as client:
        assert_invalid(await client.post("/predict", json={}), "body.cat", "body.mouse")


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0]], ids=len)
async def test_raw_observation_of_another_width_is_422(values: list[float]) -> None:
    async with serve_shared() as client:
        assert_invalid(await client.post("/predict_raw", json={"obs": values}), "body.obs")


async def test_list_of_open_length_is_held_against_the_policy() -> None:
    schema = "observations: {cat: {type: int}, links: {type: 'List[float]'}}"
    async with serve_shared(schema=schema) as client:
        right = await client.post("/predict", json={"cat": 0, "links": [1]})
        wrong = await client.post("/predict", json={"cat": 0, "links": [1, 2]})

    assert right.status_code == 200
    assert_invalid(wrong, "body.links")


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", "", str(2**63), "9" * 5000])
async def test_wrong_seed_is_422(seed: str) -> None:
    async with serve_shared() as client:
        response = await client.post("/predict", params={"seed": seed}, json=OBSERVATION)

    assert_invalid(response, "query.seed")


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ValueError("/home/secret"), "the policy failed; the server's log has the reason"),
        (PolicyFailedError("the policy failed"), "the policy failed"),
        (DistributionError("the policy's outputs hold NaN"), "the policy's outputs hold NaN"),
    ],
    ids=["foreign", "failed", "no distribution"],
)
async def test_policy_that_fails_is_500_logged_with_its_request_id(
    error: Exception, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = integer_backend()
    backend.error = error

    with caplog.at_level(logging.ERROR, "policy_server"):
        async with serve(backend) as client:
            response = await client.post("/predict", json=POISON, headers={"x-request-id": "id-7"})
            after = await client.post("/predict", json=OBSERVATION)

    assert_error(response, 500)
    assert response.json() == {"detail": detail}
    assert after.status_code == 200
    (record,) = [item for item in caplog.records if item.message == "request_failed"]
    assert record.__dict__["request_id"] == "id-7"
    assert record.exc_info is not None


@pytest.mark.parametrize("kind", [ModelError, SchemaError, SettingsError, ExportError])
async def test_error_about_the_servers_files_is_told_in_full_in_the_log_alone(
    kind: type[PolicyServerError], caplog: pytest.LogCaptureFixture
) -> None:
    backend = integer_backend()
    backend.error = kind("/srv/models/door: can't be read: no such file")

    with caplog.at_level(logging.ERROR, "policy_server"):
        async with serve(backend) as client:
            response = await client.post("/predict", json=POISON)

    assert_error(response, 500)
    told = "the policy can't be served; the server's log has the reason"
    assert response.json() == {"detail": told}
    assert "/srv/models/door: can't be read: no such file" in caplog.text


async def test_bug_of_ours_is_a_generic_500_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = build()

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("secret")

    with caplog.at_level(logging.ERROR, "policy_server"):
        async with client_of(app) as client:
            response = await client.get("/broken")

    assert_error(response, 500, "internal error; the server's log has the reason")
    assert "secret" not in response.text
    assert [item.message for item in caplog.records] == ["request_failed"]
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.mark.parametrize("action", [float("nan"), float("inf")])
async def test_action_of_the_graph_that_is_no_number_is_500(action: float) -> None:
    output = ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False)
    backend = FakeBackend(signature_of(None, outputs=(output,)), (), actions=([action], 1.0))

    async with serve(backend) as client:
        response = await client.post("/predict", json=OBSERVATION)

    assert_error(response, 500, "the policy's action holds NaN or infinity")


@pytest.mark.parametrize("path", ["/distribution", "/distribution_raw"])
async def test_unproved_family_has_no_distribution_and_says_why(path: str) -> None:
    output = ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False)
    backend = FakeBackend(signature_of(None, outputs=(output,)), (), actions=([1.0], 0.5))
    body = {"obs": [0, 1]} if path.endswith("raw") else OBSERVATION

    async with serve(backend) as client:
        refused = await client.post(path, json=body)
        drawn = await client.post("/predict", json=OBSERVATION)

    assert_error(refused, 501, "could not be proved", "/predict draws from the model")
    assert drawn.json() == {
        "actions": [1],
        "probability": 0.5,
        "log_probability": pytest.approx(math.log(0.5)),
    }


async def test_overload_is_503_with_when_to_come_back() -> None:
    backend = integer_backend()
    async with serve(backend, max_queue_size=1) as client:
        backend.gate = asyncio.Event()
        backend.batches.clear()
        first = asyncio.create_task(client.post("/predict", json=OBSERVATION))
        await until(lambda: backend.batches == [1])
        second = await client.post("/predict", json=OBSERVATION)
        backend.gate.set()
        answered = await first

    assert_error(second, 503, "1 observations are waiting already")
    assert second.headers["retry-after"] == "1"
    assert answered.status_code == 200


async def test_late_answer_is_503() -> None:
    backend = integer_backend()
    async with serve(backend, request_timeout_s=0.05) as client:
        backend.gate = asyncio.Event()
        response = await client.post("/predict", json=OBSERVATION)

    assert_error(response, 503, "no answer within 0.05 s")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/predict"), ("GET", "/schema"), ("GET", "/readyz")]
)
async def test_before_the_start_it_is_503(method: str, path: str) -> None:
    async with client_of(build()) as client:
        response = await client.request(method, path, json=OBSERVATION)

    assert_error(response, 503, "try again in a few seconds")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ENOSPC])
def test_system_that_is_short_of_something_is_one_line_and_tried_again(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    error = ImportError("a module that is imported late")
    error.__cause__ = OSError(number, os.strerror(number), "/a/path")

    status, detail, headers = describe_error(error, request_id="r")

    assert (status, headers) == (503, {"retry-after": "5"})
    assert detail == (
        f"the server's system is short of something ({os.strerror(number)}); try again later"
    )
    [record] = caplog.records
    assert record.exc_info is None
    assert record.__dict__["reason"] == os.strerror(number)
    assert record.__dict__["path"] == "/a/path"


def test_other_failure_of_the_system_is_internal(caplog: pytest.LogCaptureFixture) -> None:
    status, detail, _ = describe_error(PermissionError(errno.EACCES, "no", "/p"), request_id="r")

    assert (status, detail) == (500, "internal error; the server's log has the reason")
    assert caplog.records[0].exc_info
