"""The application: gate, routes, documentation and lifespan around the registry of policies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import fastapi_standalone_docs
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policy_server import __version__
from policy_server.access_keys import AccessKey, KeyRing
from policy_server.client_limits import ClientLimit, ClientLimits
from policy_server.errors import PolicyServerError
from policy_server.http_server import HotRoutes, RefusedRequest
from policy_server.lean_imports import without_packages
from policy_server.metrics import Metrics
from policy_server.request_log import RequestLog
from policy_server.sdk import SdkStore
from policy_server.serving import BodyQueue, PolicyRegistry
from policy_server.serving.administration import Administration
from policy_server.serving.state_tokens import StateTokens
from policy_server.serving.team import Team
from policy_server.serving.team_record import TEAM
from policy_server.serving.team_sessions import TeamSessions
from policy_server.settings import Settings
from policy_server.web.admin_routes import admin_routes
from policy_server.web.answering import PolicyAnswering
from policy_server.web.cross_origin import CrossOrigin
from policy_server.web.fast_path import FastPath
from policy_server.web.gate import Gate
from policy_server.web.health import health_checks, health_routes
from policy_server.web.hot_path import HotAnswers
from policy_server.web.openapi import build_openapi, refuse_shared_type_names
from policy_server.web.policy_list import policy_list_routes
from policy_server.web.problems import install_error_handlers
from policy_server.web.route_table import RouteTable
from policy_server.web.routes import policy_routes
from policy_server.web.sdk_routes import client_routes
from policy_server.web.session_answering import SessionAnswering
from policy_server.web.session_routes import session_routes
from policy_server.web.stored_pages import DocumentPage, StoredFiles
from policy_server.web.stream import Streams, stream_hints
from policy_server.web.team_answering import TeamAnswering
from policy_server.web.team_routes import team_routes
from policy_server.web.team_session_answering import TeamSessionAnswering
from policy_server.web.unread_answers import UnreadAnswers

__all__ = ["Application", "create_app"]

logger = logging.getLogger(__name__)

_TITLE = "Policy Server"
# The bytes of answers to batches that may wait to be read: as many as of so many largest bodies.
_UNREAD_BATCHES = 4


# FastAPI asks of each type whether it is of pydantic 1, and brings that along.
@without_packages("pydantic.v1")
def create_app(
    registry: PolicyRegistry,
    settings: Settings,
    *,
    api_key: str | None,
    keys: KeyRing | None = None,
    root_path: str = "",
    has_fast_path: bool = True,
    metrics: Metrics | None = None,
    running: Callable[[], AbstractAsyncContextManager[object]] | None = None,
    administration: Administration | None = None,
) -> Application:
    """Build the application; nothing starts before its lifespan does.

    Args:
        registry: the policies; the routes' types come from their schemas.
        settings: limits, and allowed origins.
        api_key: the access key that stands alone, from which the key of state tokens is derived;
            None for none.
        keys: all keys that are valid; None takes `api_key` alone.
        root_path: the prefix of all addresses; empty takes the server's own.
        has_fast_path: answer observations in front of FastAPI's routing; False leaves all to it.
        metrics: counts requests; None makes counts that are not shown.
        running: runs the registry and its backends for as long as the application runs; None runs
            the registry alone.
        administration: changes versions; None leaves the routes for that out.

    Returns:
        The ASGI application.

    Raises:
        SettingsError: if types of two policies would have one name in OpenAPI.
        SchemaError: if the prefix would hide a route.
    """
    counted = metrics or Metrics()
    table = RouteTable(registry, has_admin=administration is not None)
    refuse_shared_type_names(table, registry)
    policies = {slot.name: PolicyAnswering(slot) for slot in registry}
    sessions = {name: SessionAnswering(policy) for name, policy in policies.items()}
    team = team_sessions = None
    if registry.agents is not None:
        agents = Team(registry, registry.agents)
        team = TeamAnswering(agents, policies, settings)
        team_sessions = TeamSessionAnswering(team, TeamSessions(agents, counted.of(TEAM)))
    sdks = SdkStore(settings.sdks_path)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with (running or registry.running)(), aclosing(sdks):
            app.openapi_schema = None
            yield

    app = Application(
        title=_TITLE,
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    table.check_prefix(root_path)
    checks = health_checks(registry)
    valid = keys or KeyRing(() if api_key is None else [AccessKey.of("api_key", api_key)])
    gate = Gate(
        FastPath(app.answer_http, table, policies, team=team, checks=checks)
        if has_fast_path
        else app.answer_http,
        table=table,
        streams=Streams(
            table,
            policies,
            team=team,
            max_frame_bytes=settings.max_body_bytes,
            metrics=counted,
        ),
        keys=valid,
        bodies=BodyQueue(max_waiting=settings.max_queue_size, max_wait_s=settings.max_wait_s),
        root_path=root_path,
        max_body_bytes=settings.max_body_bytes,
        max_batch_body_bytes=settings.max_batch_body_bytes,
        max_upload_bytes=settings.max_unpacked_bytes,
        metrics=counted,
        request_log=RequestLog(rate=settings.access_log_rate),
        cross_origin=CrossOrigin(settings.cors_origins) if settings.cors_origins else None,
        client_limits=ClientLimits(
            valid,
            of_key=ClientLimit(settings.max_key_rate, settings.max_key_in_flight),
            of_address=ClientLimit(settings.max_address_rate, settings.max_address_in_flight),
        ),
    )
    app.answer_http = gate
    app.log_refused = gate.log_refused
    hot = HotAnswers(gate, policies, sessions, team=team, team_sessions=team_sessions)
    app.hot_routes = hot if has_fast_path else None
    tokens = StateTokens(
        state_key=_secret(settings.state_key),
        access_key=api_key,
        most_bytes=settings.max_header_bytes,
    )
    unread = UnreadAnswers(_UNREAD_BATCHES * settings.max_batch_body_bytes)
    routers = [
        health_routes(checks),
        policy_list_routes(registry),
        policy_routes(table, policies, settings, tokens, unread),
        session_routes(table, sessions),
    ]
    if team is not None and team_sessions is not None:
        routers.append(team_routes(table, team, team_sessions))
    routers += [stream_hints(table), client_routes(sdks, lambda: app.openapi())]
    if administration is not None:
        routers.append(admin_routes(administration, default=registry.default.name))
    for router in routers:
        app.include_router(router)
    _add_documentation(app)
    install_error_handlers(
        app, [*app.routes, *(route for router in routers for route in router.routes)]
    )

    documented: list[str | bool | None] = []

    def openapi() -> dict[str, Any]:
        # A policy that could not be loaded at the start has no types until a version is deployed.
        live = [None if slot.live is None else slot.live.digest for slot in registry]
        # A server without a key asks for one from the moment it gets one.
        is_open = valid.holds(None, "predict")
        if app.openapi_schema is None or [*live, is_open] != documented:
            documented[:] = [*live, is_open]
            app.openapi_schema = build_openapi(
                app,
                table,
                registry,
                root_path=root_path,
                max_agents=settings.max_agents,
                is_open=is_open,
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


class Application(FastAPI):
    """FastAPI behind a gate.

    A policy which can't be served ends the start with one line and not with a traceback.

    Attributes:
        answer_http: the ASGI application behind the gate: FastAPI, or the fast path in front of it.
        hot_routes: the routes that a protocol of `http_server` answers without ASGI.
        log_refused: logs a request that such a protocol has refused; None logs none.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 -- FastAPI's own
        """Own the routes; policies belong to the lifespan."""
        super().__init__(**options)
        self.answer_http: ASGIApp = super().__call__
        self.hot_routes: HotRoutes | None = None
        self.log_refused: Callable[[RefusedRequest], None] | None = None

    @asynccontextmanager
    async def lifespan(self, _host: object = None) -> AsyncIterator[None]:
        """Load the policies, and unload them at the end: the lifespan, for a host to run.

        Example:
            `FastAPI(lifespan=policy.lifespan)`, or `async with policy.lifespan():` inside a
            lifespan of the host's own.

        Args:
            _host: the application that this one is mounted in, which FastAPI hands over.
        """
        async with self.router.lifespan_context(self):
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by ASGI."""
        if scope["type"] != "lifespan":
            await self.answer_http(scope, receive, send)
            return
        await _run_lifespan(super().__call__, scope, receive, send)


async def _run_lifespan(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    failure: Message | None = None

    async def hold_failure(message: Message) -> None:
        nonlocal failure
        if message["type"] in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            failure = message
        else:
            await send(message)

    try:
        await app(scope, receive, hold_failure)
    except BaseException as error:
        if failure is None:
            raise
        await send({**failure, "message": _reason_of(error, failure)})
        if not isinstance(error, PolicyServerError):
            raise


def _reason_of(error: BaseException, failure: Message) -> str:
    """Return the reason that a server logs for a lifespan that failed."""
    if isinstance(error, PolicyServerError):
        return error.message
    # A second signal has ended the server at once: a traceback would tell nothing.
    return "" if isinstance(error, asyncio.CancelledError) else str(failure["message"])


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()


def _add_documentation(app: FastAPI) -> None:
    """Serve Swagger UI and ReDoc from our own files: they work offline and behind a prefix."""
    static = Path(fastapi_standalone_docs.__file__).parent / "static"
    # By the application's own name, which a document that changes is asked by.
    document = DocumentPage(lambda: app.openapi())
    app.add_route("/openapi.json", document.answer, include_in_schema=False)
    app.add_route("/static/{path:path}", StoredFiles(static).answer, include_in_schema=False)

    # The gate has set the prefix: schema.yaml's, else the path that a host mounts us at.
    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        prefix = request.scope["root_path"]
        return get_swagger_ui_html(
            openapi_url=f"{prefix}/openapi.json",
            title=_TITLE,
            swagger_js_url=f"{prefix}/static/swagger/swagger-ui-bundle.js",
            swagger_css_url=f"{prefix}/static/swagger/swagger-ui.css",
            swagger_favicon_url=f"{prefix}/static/fastapi/favicon.png",
            swagger_ui_parameters={"persistAuthorization": True, "tryItOutEnabled": True},
        )

    @app.get("/redoc/logo-mini.svg", include_in_schema=False)
    async def logo() -> FileResponse:
        return FileResponse(static / "redoc" / "logo-mini.svg")

    @app.get("/redoc", include_in_schema=False)
    async def redoc(request: Request) -> HTMLResponse:
        prefix = request.scope["root_path"]
        return get_redoc_html(
            openapi_url=f"{prefix}/openapi.json",
            title=_TITLE,
            redoc_js_url=f"{prefix}/static/redoc/redoc.standalone.js",
            redoc_favicon_url=f"{prefix}/static/fastapi/favicon.png",
            with_google_fonts=False,
        )
