"""The gate: keys, request ids, slashes, prefixes and the size of bodies."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from policy_server.errors import SchemaError
from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.support.fakes import integer_backend, registry_of
from tests.support.web import (
    KEY,
    OBSERVATION,
    SCHEMA,
    assert_error,
    assert_invalid,
    build,
    client_of,
    running,
    serve,
    serve_shared,
)

OPEN = ["/", "/livez", "/readyz", "/docs", "/redoc", "/openapi.json"]
CLOSED = ["/schema", "/predict", "/predict_raw", "/nowhere", "/static", "/docs/x", "//predict"]
PREFIXED = SCHEMA + "  url_path: app/v1\n"


@pytest.mark.parametrize(
    "headers",
    [
        {"access-token": KEY},
        {"Access-Token": KEY},
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"access-token": KEY, "authorization": "Basic abc"},
    ],
    ids=["access-token", "capitals", "bearer", "small bearer", "both"],
)
async def test_key_opens_in_either_header(headers: dict[str, str]) -> None:
    async with serve_shared(key=None) as client:
        response = await client.post("/predict", json=OBSERVATION, headers=headers)

    assert response.status_code == 200


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (
            {},
            "no access key; send it in the header 'access-token' or as 'Authorization: Bearer'",
        ),
        ({"access-token": ""}, "wrong access key"),
        ({"access-token": KEY + "x"}, "wrong access key"),
        ({"access-token": KEY[:-1]}, "wrong access key"),
        ({"access-token": KEY.upper()}, "wrong access key"),
        ({"access-token": "schlüssel".encode("latin-1")}, "wrong access key"),
        ({"authorization": f"Basic {KEY}"}, "no access key"),
        ({"authorization": KEY}, "no access key"),
        ({"authorization": "Bearer"}, "wrong access key"),
        ({"access-token": "x", "authorization": f"Bearer {KEY}"}, "wrong access key"),
        ({"cookie": f"access-token={KEY}"}, "no access key"),
    ],
    ids=[
        "none",
        "empty",
        "longer",
        "shorter",
        "capitals",
        "no ASCII",
        "basic",
        "no scheme",
        "no token",
        "wrong before right",
        "cookie",
    ],
)
async def test_other_keys_are_refused_with_the_way_to_ask(
    headers: dict[str, str], message: str
) -> None:
    async with serve_shared(key=None) as client:
        response = await client.post("/predict", json=OBSERVATION, headers=headers)

    assert_error(response, 401, message)
    assert response.headers["www-authenticate"] == "Bearer"
    assert KEY not in response.text


async def test_key_in_the_query_opens_nothing() -> None:
    async with serve_shared(key=None) as client:
        response = await client.post(f"/predict?access-token={KEY}", json=OBSERVATION)

    assert_error(response, 401)


@pytest.mark.parametrize("path", OPEN)
async def test_open_route_needs_no_key(path: str) -> None:
    async with serve_shared(key=None) as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_any_other_path_needs_the_key_before_it_says_anything(path: str, method: str) -> None:
    async with serve_shared(key=None) as client:
        url = httpx.URL("http://server", raw_path=path.encode())
        assert_error(await client.request(method, url), 401)


async def test_without_a_key_everybody_is_let_in() -> None:
    async with serve_shared(key=None, api_key=None) as client:
        assert (await client.post("/predict", json=OBSERVATION)).status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/predict/", "/predict//"])
async def test_trailing_slash_is_answered_without_a_redirect(path: str) -> None:
    async with serve_shared() as client:
        assert (await client.post(path, json=OBSERVATION)).status_code == 200


@pytest.mark.parametrize("path", ["/docs/", "/readyz/", "/openapi.json/"])
async def test_open_route_is_open_with_a_trailing_slash(path: str) -> None:
    async with serve_shared(key=None) as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("prefix", ["", "/app/v1"], ids=["stripped", "not stripped"])
@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/livez", "/static/swagger/swagger-ui.css"]
)
async def test_open_route_is_found_behind_a_proxy(prefix: str, path: str) -> None:
    async with serve_shared(key=None, schema=PREFIXED) as client:
        assert (await client.get(prefix + path)).status_code == 200


@pytest.mark.parametrize("path", ["/app/v1/predict/", "/app/v1/predict", "/predict"])
async def test_closed_route_is_found_behind_a_proxy_and_stays_closed(path: str) -> None:
    async with serve_shared(schema=PREFIXED) as client:
        answered = await client.post(path, json=OBSERVATION)
        client.headers.pop("access-token")
        refused = await client.post(path, json=OBSERVATION)

    assert answered.status_code == 200
    assert_error(refused, 401)


@pytest.mark.parametrize("path", ["/app/v1", "/app/v1/"])
async def test_prefix_alone_is_the_root(path: str) -> None:
    async with serve_shared(key=None, schema=PREFIXED) as client:
        assert (await client.get(path)).json() == "ok"


@pytest.mark.parametrize("prefix", ["static", "docs", "livez"])
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_prefix_named_as_an_open_route_opens_no_other(prefix: str, times: int) -> None:
    async with serve_shared(key=None, schema=f"{SCHEMA}  url_path: {prefix}\n") as client:
        response = await client.post(f"/{prefix}" * times + "/predict", json=OBSERVATION)

    assert response.status_code in (401, 404, 405)
    assert "actions" not in response.text


@pytest.mark.parametrize(
    "path",
    [
        "/static/../predict",
        "/static/%2e%2e/predict",
        "/static/..%2fpredict",
        "/static//predict",
        "/docs/../predict",
        "/%2e/predict",
    ],
)
async def test_detour_over_an_open_route_opens_nothing(path: str) -> None:
    async with serve_shared(key=None) as client:
        url = httpx.URL("http://server", raw_path=path.encode())
        response = await client.post(url, json=OBSERVATION)

    assert response.status_code in (401, 404, 405)
    assert "actions" not in response.text


async def test_static_files_show_nothing_beside_them() -> None:
    async with serve_shared() as client:
        for path in ("/static/../__init__.py", "/static/..%2f__init__.py", "/static//etc/passwd"):
            response = await client.get(httpx.URL("http://server", raw_path=path.encode()))
            assert_error(response, 404)


async def test_prefix_that_uvicorn_was_given_is_understood() -> None:
    app = build()
    transport = httpx.ASGITransport(app, root_path="/outer")
    async with running(app), httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        docs = await client.get("/outer/docs")
        answer = await client.post(
            "/outer/predict", json=OBSERVATION, headers={"access-token": KEY}
        )

    assert (docs.status_code, answer.status_code) == (200, 200)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("POST", "/predict", 200),
        ("GET", "/schema", 200),
        ("GET", "/predict", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/static/nothing.js", 404),
        ("POST", "/predict_raw", 422),
        ("POST", "/predict?seed=x", 422),
    ],
)
async def test_every_answer_has_a_request_id(method: str, path: str, status: int) -> None:
    async with serve_shared() as client:
        first = await client.request(method, path, json=OBSERVATION)
        second = await client.request(method, path, json=OBSERVATION)

    assert first.status_code == status
    assert re.fullmatch(r"[0-9a-f]{32}", first.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize("given", ["abc-1", "0" * 128, "a.b_c:d"])
async def test_sensible_request_id_comes_back(given: str) -> None:
    async with serve_shared() as client:
        for path in ("/", "/nowhere"):
            response = await client.get(path, headers={"x-request-id": given})
            assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "0" * 129, "a b", "<script>", "ü".encode("latin-1")])
async def test_other_request_id_is_replaced(given: str) -> None:
    async with serve_shared() as client:
        response = await client.get("/", headers={"x-request-id": given})

    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


BODY = b'{"obs": [0, 1.5]}'


@pytest.mark.parametrize("length", [0, 1, 99], ids=["at the limit", "over it", "far over it"])
async def test_body_over_the_limit_is_refused_by_its_stated_length(length: int) -> None:
    backend = integer_backend()
    async with serve(backend, max_body_bytes=len(BODY)) as client:
        before = len(backend.batches)
        response = await client.post("/predict_raw", content=BODY + b" " * length)

    if length == 0:
        assert response.status_code == 200
    else:
        assert_error(response, 413, "the body is larger than 17 bytes")
        assert len(backend.batches) == before


@pytest.mark.parametrize("piece", [1, 16, 1000], ids=["bytes", "pieces", "one piece"])
async def test_body_over_the_limit_is_refused_while_it_is_read(piece: int) -> None:
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(0, 1000, piece):
            read += piece
            yield b" " * piece

    async with serve_shared(max_body_bytes=100) as client:
        response = await client.post("/predict_raw", content=pieces())

    assert_error(response, 413, "the body is larger than 100 bytes (POLICY_SERVER_MAX_BODY_BYTES)")


async def test_body_in_pieces_under_the_limit_is_read() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in BODY:
            yield bytes([byte])

    async with serve_shared(max_body_bytes=100) as client:
        assert (await client.post("/predict_raw", content=pieces())).status_code == 200


async def test_unauthorised_body_is_not_read() -> None:
    app = build()
    messages = await _request(app, [(b"content-length", b"999999999")], [])

    assert messages[0]["status"] == 401


@pytest.mark.parametrize("length", [b"\xb2", b"-1", b"x", b"1" * 5000, b""])
async def test_stated_length_that_is_none_is_left_to_what_is_read(length: bytes) -> None:
    headers = [(b"access-token", KEY.encode()), (b"content-length", length)]
    app = build()
    async with running(app):
        body = {"type": "http.request", "body": BODY, "more_body": False}
        messages = await _request(app, headers, [body])

    assert messages[0]["status"] == 200


async def test_client_that_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    app = build()
    headers = [(b"access-token", KEY.encode())]
    async with running(app):
        part = {"type": "http.request", "body": b"{", "more_body": True}
        messages = await _request(app, headers, [part, {"type": "http.disconnect"}])

    assert messages == []
    assert "request_failed" not in caplog.text


async def _request(
    app: Any,  # noqa: ANN401 -- an ASGI application
    headers: list[tuple[bytes, bytes]],
    incoming: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Speak ASGI by hand, where httpx would not send such a request."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict_raw",
        "raw_path": b"/predict_raw",
        "query_string": b"",
        "headers": headers,
        "server": ("server", 80),
    }
    await app(scope, receive, send)
    return sent


async def test_websocket_is_closed() -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:  # noqa: ANN401 -- an ASGI message
        sent.append(message)

    app = build()
    scope = {"type": "websocket", "path": "/predict", "headers": [], "query_string": b""}
    async with running(app):
        await app(scope, receive, send)

    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_failure_after_the_answer_began_is_raised() -> None:
    app = build()

    async def half(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401, ARG001 -- ASGI
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("half")

    app.mount("/half", half)
    async with running(app), client_of(app) as client:
        response = await client.get("/half/x")

    assert response.status_code == 200
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("prefix", ["predict", "predict/batch", "schema", "sessions"])
def test_prefix_that_would_hide_a_route_is_refused(prefix: str) -> None:
    schema, settings = parse_schema(SCHEMA), Settings()
    policies = registry_of(integer_backend(), schema, settings=settings)

    with pytest.raises(SchemaError, match=rf"url_path: '{prefix}' would hide the route /{prefix}"):
        create_app(policies, settings, api_key=KEY, root_path=f"/{prefix}")


async def test_prefix_that_begins_as_a_route_does_hides_none() -> None:
    schema, settings = parse_schema(SCHEMA), Settings()
    policies = registry_of(integer_backend(), schema, settings=settings)
    app = create_app(policies, settings, api_key=KEY, root_path="/predictor")
    async with running(app), client_of(app) as client:
        answers = [
            await client.post(path, json=OBSERVATION) for path in ("/predict", "/predictor/predict")
        ]

    assert [answer.status_code for answer in answers] == [200, 200]


async def test_422_has_one_shape() -> None:
    async with serve_shared() as client:
        assert_invalid(await client.post("/predict", json={"cat": 0}), "body.mouse")
        assert_invalid(await client.post("/predict?seed=-1", json=OBSERVATION), "query.seed")


async def test_request_is_counted_by_route_status_and_policy() -> None:
    schema, settings, metrics = parse_schema(SCHEMA), Settings(), Metrics()
    policies = registry_of(integer_backend(), schema, settings=settings, metrics=metrics)
    app = create_app(policies, settings, api_key=KEY, root_path="", metrics=metrics)
    async with running(app), client_of(app) as client:
        await client.post("/predict", json=OBSERVATION)
        await client.post("/predict/batch", json=[OBSERVATION])
        await client.post("/predict", json={})
        await client.get("/livez")
        await client.get("/nowhere")

    assert metrics.snapshot().numbers["requests"] == {
        ("/predict", "200", "default"): 1,
        ("/predict/batch", "200", "default"): 1,
        ("/predict", "422", "default"): 1,
        ("/livez", "200", ""): 1,
        ("other", "404", ""): 1,
    }


async def test_request_is_logged_with_its_id_route_and_duration(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="policy_server.access"):
        async with serve_shared() as client:
            await client.get("/livez", headers={"x-request-id": "abc"})
            await client.post("/secret-of-a-client", content=b"{}")

    known, other = (vars(item) for item in caplog.records if item.name == "policy_server.access")
    assert (known["route"], known["status"], known["request_id"]) == ("/livez", 200, "abc")
    assert known["duration_ms"] >= 0
    assert known["client"] == "127.0.0.1"
    assert (other["route"], other["status"]) == ("other", 404)


@pytest.mark.parametrize(
    ("connected", "trusted", "forwarded", "client"),
    [
        (("10.0.0.9", 4711), "10.0.0.0/8", "203.0.113.7", "203.0.113.7"),
        # What the proxy's own client sends, where the proxy passes it on.
        (("10.0.0.9", 4711), "10.0.0.0/8", "a" * 60_000, "a" * 64),
        (("192.0.2.1", 4711), "10.0.0.0/8", "203.0.113.7", "192.0.2.1"),
        # A UNIX socket.
        (None, "10.0.0.0/8", "203.0.113.7", None),
    ],
    ids=["trusted proxy", "long name", "stranger", "socket"],
)
async def test_log_names_the_client_behind_a_trusted_proxy(
    connected: tuple[str, int] | None,
    trusted: str,
    forwarded: str,
    client: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = build()
    # What uvicorn puts around an application.
    proxied = ProxyHeadersMiddleware(app, trusted_hosts=trusted)  # type: ignore[arg-type]  # ASGI
    transport = httpx.ASGITransport(
        proxied,  # type: ignore[arg-type]  # ASGI
        client=connected,  # type: ignore[arg-type]  # None is what uvicorn gives too
    )
    with caplog.at_level(logging.INFO, logger="policy_server.access"):
        async with (
            running(app),
            httpx.AsyncClient(transport=transport, base_url="http://s") as asked,
        ):
            await asked.get("/livez", headers={"x-forwarded-for": forwarded})

    (line,) = (vars(item) for item in caplog.records if item.name == "policy_server.access")
    assert line["client"] == client
