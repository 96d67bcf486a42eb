"""What the tests of the HTTP interface share: a served app, and the one shape of errors."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]  # its types are a package of their own

from policy_server.access_keys import KeyRing
from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import PolicyOpener
from policy_server.settings import Settings
from policy_server.web import Application, create_app
from tests.support.fakes import FakeBackend, integer_backend, registry_of

KEY = "1234567asdfgh"
SCHEMA = """
observations:
  cat: {type: int}
  mouse: {type: float, maximum: 10}
parameters:
  discrete: True
  api_key: "1234567asdfgh"
"""
OBSERVATION = {"cat": 0, "mouse": 1.5}


class EndFailedError(Exception):
    """The lifespan told that its end failed; the message is what uvicorn logs."""


class StartFailedError(Exception):
    """The server said that it can't start."""


def build(
    backend: FakeBackend | None = None,
    *,
    schema: str = SCHEMA,
    api_key: str | None = KEY,
    open_policy: PolicyOpener | None = None,
    has_fast_path: bool = True,
    metrics: Metrics | None = None,
    keys: KeyRing | None = None,
    **settings: Any,  # noqa: ANN401 -- the settings' own types
) -> Application:
    """Build an app over a fake backend."""
    used = integer_backend() if backend is None else backend
    parsed, known, counted = parse_schema(schema), Settings(**settings), metrics or Metrics()
    return create_app(
        registry_of(open_policy or used, parsed, settings=known, metrics=counted),
        known,
        api_key=api_key,
        keys=keys,
        root_path=parsed.root_path,
        has_fast_path=has_fast_path,
        metrics=counted,
    )


@asynccontextmanager
async def running(app: Application) -> AsyncIterator[None]:
    """Run an app's lifespan by the ASGI protocol, as uvicorn does."""
    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.ensure_future(_quiet(app(scope, to_app.get, from_app.put)))
    await to_app.put({"type": "lifespan.startup"})
    message = await from_app.get()
    if message["type"] == "lifespan.startup.failed":
        await task
        raise StartFailedError(message["message"])
    try:
        yield
    finally:
        await to_app.put({"type": "lifespan.shutdown"})
        await task
        message = await from_app.get()
        if message["type"] == "lifespan.shutdown.failed":
            raise EndFailedError(message["message"])


async def _quiet(call: Awaitable[None]) -> None:
    try:
        await call
    except RuntimeError:
        """uvicorn logs it; the message says the rest."""


def client_of(app: Application, *, key: str | None = KEY) -> httpx.AsyncClient:
    """Return a client that sends the key, and sees a 500 as a real client does."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://server",
        headers={} if key is None else {"access-token": key},
    )


@asynccontextmanager
async def serve(
    backend: FakeBackend | None = None,
    *,
    key: str | None = KEY,
    **options: Any,  # noqa: ANN401 -- what `build` takes
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve a policy and give a client of it."""
    app = build(backend, **options)
    async with running(app), client_of(app, key=key) as client:
        yield client


@functools.cache
def shared_app(
    make_backend: Callable[[], FakeBackend] = integer_backend,
    **options: Any,  # noqa: ANN401 -- what `build` takes
) -> Application:
    """Build an app over a fake policy once in a run; each test runs its lifespan anew.

    Building one, and its first request, take most of the time of a test that asks a few questions.
    For tests alone that leave the app as it was: without limits that are used up, without routes
    or patches of their own, and without a look at its counts.
    """
    return build(make_backend(), **options)


@asynccontextmanager
async def serve_shared(
    make_backend: Callable[[], FakeBackend] = integer_backend,
    *,
    key: str | None = KEY,
    **options: Any,  # noqa: ANN401 -- what `build` takes
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve a fake policy by an app that other tests use too, and give a client of it."""
    app = shared_app(make_backend, **options)
    async with running(app), client_of(app, key=key) as client:
        yield client


async def document_of(schema: str = SCHEMA) -> dict[str, Any]:
    """Return the OpenAPI document of a server."""
    async with serve_shared(key=None, schema=schema) as client:
        return dict((await client.get("/openapi.json")).json())


def validator_of(document: dict[str, Any], name: str) -> jsonschema.Draft202012Validator:
    """Return what checks an instance of a schema of the document."""
    reference = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema.Draft202012Validator(reference)


def assert_error(response: httpx.Response, status: int, *says: str) -> None:
    """Hold an answer against the one shape of errors: a sentence that says this."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert list(response.json()) == ["detail"]
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    assert detail[0] == detail[0].lower()
    assert not detail.endswith(".")
    assert "Traceback" not in detail
    for words in says:
        assert words in detail


def assert_invalid(response: httpx.Response, *places: str) -> None:
    """Hold a 422 against FastAPI's shape, and its mistakes against the places expected."""
    assert response.status_code == 422, response.text
    assert response.headers["x-request-id"]
    assert list(response.json()) == ["detail"]
    problems = response.json()["detail"]
    assert all(set(problem) == {"type", "loc", "msg"} for problem in problems)
    assert [".".join(map(str, problem["loc"])) for problem in problems] == list(places)
