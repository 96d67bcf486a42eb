"""Pages whose bytes are made once: the OpenAPI document, and the files of the documentation.

A client that has a page already, by its entity tag, is told so in place of the bytes (RFC 9110,
section 13.1.2).
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from policy_server.web.parts import PartedResponse

__all__ = ["DocumentPage", "StoredFiles", "StoredPage", "is_known"]

# What a list of entity tags has between its commas; a tag in quotes may have commas of its own.
_TAGS = re.compile(r'"[^"]*"|[^\s,"]+')
# A client of an application that is mounted at `/{name}` chooses the prefix.
_MOST_PREFIXES = 16


class StoredPage:
    """A page, with the entity tag of its bytes.

    Attributes:
        body: its bytes.
        tag: its entity tag, in quotes.
    """

    def __init__(self, body: bytes, media_type: str) -> None:
        """Own the bytes.

        Args:
            body: the page.
            media_type: its header `content-type`.
        """
        self.body = body
        self._media_type = media_type
        self.tag = f'"{sha256(body).hexdigest()}"'

    def answer(self, request: Request) -> Response:
        """Return the page, or 304 for a client that has it.

        Args:
            request: a GET or HEAD.
        """
        headers = {"etag": self.tag, "cache-control": "no-cache"}
        if is_known(request, self.tag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return PartedResponse(self.body, media_type=self._media_type, headers=headers)


class DocumentPage:
    """The page of the OpenAPI document, made anew where the document has changed."""

    def __init__(self, document: Callable[[], dict[str, Any]]) -> None:
        """Own the pages of the document, for each prefix.

        Args:
            document: gives the document; the same object for as long as it has not changed.
        """
        self._document = document
        self._known: dict[str, Any] | None = None
        self._pages: dict[str, StoredPage] = {}

    async def answer(self, request: Request) -> Response:
        """Return the document, with the prefix that the server is asked at."""
        return self.page(request.scope["root_path"]).answer(request)

    def page(self, prefix: str) -> StoredPage:
        """Return the page of the document as it is now.

        Args:
            prefix: that the server is asked at, which the document names as its address.
        """
        document = self._document()
        if document is not self._known:
            self._known = document
            self._pages.clear()
        page = self._pages.get(prefix)
        if page is None:
            servers = document.get("servers", [])
            if prefix and all(server["url"] != prefix for server in servers):
                document = {**document, "servers": [{"url": prefix}, *servers]}
            page = StoredPage(bytes(JSONResponse(document).body), "application/json")
            if len(self._pages) >= _MOST_PREFIXES:
                del self._pages[next(iter(self._pages))]
            self._pages[prefix] = page
        return page


class StoredFiles:
    """The files of a folder, each read when it is asked for the first time."""

    def __init__(self, folder: Path) -> None:
        """Own the files' bytes.

        Args:
            folder: of files that don't change.
        """
        self._files = {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.is_file()
        }
        self._pages: dict[str, StoredPage] = {}

    async def answer(self, request: Request) -> Response:
        """Return the file that the parameter `path` of the address names.

        Raises:
            HTTPException: if there is none.
        """
        name = request.path_params["path"]
        page = self._pages.get(name)
        if page is None:
            if name not in self._files:
                raise HTTPException(HTTPStatus.NOT_FOUND)
            path = self._files[name]
            media_type = mimetypes.guess_type(path)[0] or "text/plain"
            page = self._pages[name] = StoredPage(path.read_bytes(), media_type)
        return page.answer(request)


def is_known(request: Request, tag: str) -> bool:
    """Return whether a client has the bytes that an entity tag stands for.

    Args:
        request: its header `if-none-match` lists the tags that the client has, or has `*` for any.
        tag: in quotes.
    """
    known = _TAGS.findall(",".join(request.headers.getlist("if-none-match")))
    return tag in known or "*" in known
