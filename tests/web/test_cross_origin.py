"""Web pages of other origins: what a browser is told, on every route and in every error."""

from __future__ import annotations

import httpx
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.support.web import (
    KEY,
    OBSERVATION,
    assert_error,
    serve_shared,
    shared_app,
)

PAGE = "https://app.example.com"
LOCAL = "http://localhost:3000"
ORIGINS = f"{PAGE},{LOCAL}"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "access-token,content-type",
}
REQUESTS = {
    "fast path": ("POST", "/predict", 200),
    "with a query": ("POST", "/predict?seed=1", 200),
    "raw": ("POST", "/predict_raw", 422),
    "batch": ("POST", "/predict/batch", 422),
    "schema": ("GET", "/schema", 200),
    "health": ("GET", "/", 200),
    "head": ("HEAD", "/livez", 200),
    "readiness": ("GET", "/readyz", 200),
    "documentation": ("GET", "/docs", 200),
    "document": ("GET", "/openapi.json", 200),
    "file": ("GET", "/static/swagger/swagger-ui.css", 200),
    "no route": ("GET", "/nowhere", 404),
    "no method": ("GET", "/predict", 405),
    "stream without a web socket": ("GET", "/predict/stream", 426),
    "with a gateway's query": ("POST", "/predict_deterministic?utm_source=x", 200),
}


# These ask for no key.
OPEN = {"/", "/livez", "/readyz", "/docs", "/openapi.json", "/static/swagger/swagger-ui.css"}


def exposed(response: httpx.Response) -> set[str]:
    """Return the headers that a script may read."""
    return set(response.headers["access-control-expose-headers"].split(", "))


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("key", [KEY, "wrong", None], ids=["key", "wrong key", "no key"])
async def test_page_of_an_allowed_origin_may_read_every_answer(
    method: str, path: str, status: int, key: str | None
) -> None:
    async with serve_shared(cors_origins=ORIGINS, key=key) as client:
        response = await client.request(method, path, json=OBSERVATION, headers={"origin": PAGE})

    assert response.status_code == (status if key == KEY or path in OPEN else 401)
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in exposed(response)
    assert response.headers["x-request-id"]
    assert response.headers["vary"] == "origin"
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS.values(), ids=REQUESTS)
async def test_browsers_are_told_nothing_by_default(method: str, path: str, status: int) -> None:
    async with serve_shared() as client:
        response = await client.request(method, path, json=OBSERVATION, headers={"origin": PAGE})

    assert response.status_code == status
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_other_origin_is_answered_without_leave() -> None:
    async with serve_shared(cors_origins=ORIGINS) as client:
        for origin in ("https://evil.example", f"{PAGE}.evil.example", "null", "http://localhost"):
            response = await client.post("/predict", json=OBSERVATION, headers={"origin": origin})
            assert response.status_code == 200
            assert "access-control-allow-origin" not in response.headers
            assert response.headers["vary"] == "origin"


async def test_star_allows_every_origin() -> None:
    async with serve_shared(cors_origins="*") as client:
        for headers in ({"origin": "https://any.example"}, {"origin": "null"}, {}):
            response = await client.post("/predict", json=OBSERVATION, headers=headers)
            assert response.headers["access-control-allow-origin"] == "*"
            assert "vary" not in response.headers
        preflight = await client.options("/predict", headers={**PREFLIGHT, "origin": "null"})

    assert preflight.status_code == 204


@pytest.mark.parametrize("origins", [ORIGINS, "*"])
@pytest.mark.parametrize(
    "path", ["/predict", "/predict/", "/predict_raw/batch", "/schema", "/clients/python", "/livez"]
)
async def test_preflight_is_answered_without_a_key(path: str, origins: str) -> None:
    async with serve_shared(cors_origins=origins, key=None) as client:
        response = await client.options(path, headers=PREFLIGHT)

    assert response.status_code == 204
    assert response.content == b""
    assert response.headers["access-control-allow-origin"] in (PAGE, "*")
    allowed = response.headers["access-control-allow-headers"].split(", ")
    assert {"access-token", "authorization", "content-type", "x-request-id"} <= set(allowed)
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-max-age"] == "600"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/predict", "POST"),
        ("/predict/", "POST"),
        ("/predict_raw/batch", "POST"),
        ("/schema", "GET"),
        ("/clients/python", "GET"),
        ("/predict/stream", "GET"),
        ("/docs", "GET"),
        ("/openapi.json", "GET"),
        ("/livez", "GET"),
    ],
)
@pytest.mark.parametrize("origins", [None, ORIGINS], ids=["off", "on"])
async def test_options_is_405_with_the_right_methods(
    path: str, methods: str, origins: str | None
) -> None:
    async with serve_shared(cors_origins=origins) as client:
        plain = await client.options(path)
        foreign = await client.options(
            path, headers={**PREFLIGHT, "origin": "https://evil.example"}
        )

    for response in (plain, foreign):
        assert_error(response, 405, "method not allowed")
        assert set(methods.split(", ")) <= set(response.headers["allow"].split(", "))
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("origins", [None, ORIGINS], ids=["off", "on"])
@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/livez"])
async def test_options_on_an_open_path_needs_no_key(path: str, origins: str | None) -> None:
    async with serve_shared(cors_origins=origins, key=None) as client:
        assert_error(await client.options(path), 405, "method not allowed")


@pytest.mark.parametrize("origins", [None, ORIGINS], ids=["off", "on"])
async def test_options_without_a_key_tells_no_path_from_another(origins: str | None) -> None:
    paths = ["/predict", "/schema", "/predict/stream", "/admin/policies", "/nowhere"]
    foreign = {**PREFLIGHT, "origin": "https://evil.example"}
    async with serve_shared(cors_origins=origins, key=None) as client:
        answers = [
            await client.options(path, headers=headers)
            for path in paths
            for headers in ({}, foreign, {"access-token": "a guess"})
        ]

    for answer in answers:
        assert_error(answer, 401)
        assert "allow" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "is_open"),
    [
        (None, True),
        (PAGE, True),
        (PAGE.upper(), True),
        ("http://testserver", True),
        ("https://evil.example", False),
        ("null", False),
    ],
)
def test_stream_takes_pages_of_its_own_and_of_allowed_origins(
    origin: str | None, *, is_open: bool
) -> None:
    app = shared_app(cors_origins=ORIGINS)
    headers = {"access-token": KEY} | ({} if origin is None else {"origin": origin})
    with TestClient(app, headers=headers) as client:
        if is_open:
            with client.websocket_connect("/predict/stream") as stream:
                stream.send_json(OBSERVATION)
                assert "actions" in stream.receive_json()
            return
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/predict/stream"):
            pass


def test_stream_looks_at_no_origin_by_default() -> None:
    headers = {"access-token": KEY, "origin": "https://any.example"}
    with (
        TestClient(shared_app(), headers=headers) as client,
        client.websocket_connect("/predict/stream") as stream,
    ):
        stream.send_json(OBSERVATION)
        assert "actions" in stream.receive_json()
