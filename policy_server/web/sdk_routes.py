"""The routes that give client libraries for exactly this server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response

from policy_server.sdk import (
    BUNDLE,
    CLIENTS_TAG,
    LANGUAGES,
    Document,
    LanguageName,
    Sdk,
    SdkStore,
    prepare_document,
)
from policy_server.web.parts import PartedResponse
from policy_server.web.stored_pages import is_known

__all__ = ["client_routes"]

# Shorter than the wait of proxies and client libraries for an answer.
_WAIT_S = 15.0
_PORT = 8000
_PROBLEM = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A zip with source code and a README",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "The zip of this `etag` is still the right one"},
    500: {"description": "The generator failed", "content": _PROBLEM},
    501: {"description": "The server has no generator", "content": _PROBLEM},
    503: {
        "description": "Being generated, or the server's system is short of room, files or memory; "
        "ask again after `retry-after`",
        "content": _PROBLEM,
    },
}


def client_routes(
    store: SdkStore, document: Callable[[], Document], *, wait_s: float = _WAIT_S
) -> APIRouter:
    """Return the routes below `/clients`.

    Args:
        store: keeps and makes the zips.
        document: gives the OpenAPI document as it is served.
        wait_s: the longest that a client waits for a zip to be generated, in seconds.
    """
    router = APIRouter(tags=[CLIENTS_TAG], default_response_class=Response)
    names = [LANGUAGES[name].title for name in BUNDLE]

    async def answer(request: Request, languages: Sequence[LanguageName]) -> Response:
        prepared = prepare_document(document(), url=_own_url(request))
        # Its key has the version of the generator, which stands in a file.
        sdk = await asyncio.to_thread(Sdk.of, prepared, languages)
        etag = f'"{sdk.key}"'
        headers = {"etag": etag, "cache-control": "private, no-cache"}
        if is_known(request, etag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        content = await store.fetch(sdk, wait_s=wait_s)
        headers["content-disposition"] = f'attachment; filename="{sdk.file_name}"'
        return PartedResponse(content, headers=headers, media_type="application/zip")

    @router.get(
        "/clients",
        operation_id="get_clients",
        summary="Give the client libraries for " + ", ".join(names),
        description="One zip with a folder for each language. The libraries are generated once.",
        responses=_RESPONSES,
    )
    async def get_clients(request: Request) -> Response:
        return await answer(request, BUNDLE)

    @router.get(
        "/clients/{language}",
        operation_id="get_client",
        summary="Give the client library for a language",
        description="A zip with a folder of source code, with this server's types, and a README.",
        responses=_RESPONSES,
    )
    async def get_client(request: Request, language: LanguageName) -> Response:
        return await answer(request, [language])

    return router


def _own_url(request: Request) -> str:
    """Return the server's address on its own machine: clients may call it by any other.

    A host that mounts the application has left its own prefix beside the mount's.
    """
    _, port = request.scope.get("server") or (None, None)
    own, above = request.scope["mount_path"], request.scope.get("app_root_path")
    mount = "" if above is None else own.removeprefix(above)
    return f"http://localhost:{port or _PORT}{mount}"
