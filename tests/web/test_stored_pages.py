"""Pages whose bytes are made once, and not sent again to a client that has them."""

from __future__ import annotations

from typing import Any

import pytest

from policy_server.web.stored_pages import DocumentPage
from tests.support.web import serve_shared

PATHS = [
    "/openapi.json",
    "/static/swagger/swagger-ui-bundle.js",
    "/static/redoc/redoc.standalone.js",
]


@pytest.mark.parametrize("path", PATHS)
async def test_page_is_not_sent_again_to_a_client_that_has_it(path: str) -> None:
    async with serve_shared(key=None) as client:
        first = await client.get(path)
        tag = first.headers["etag"]
        known = [
            await client.get(path, headers={"if-none-match": given})
            for given in (tag, f"W/{tag}", f'"other", {tag}', "*")
        ]
        other = await client.get(path, headers={"if-none-match": '"other", "a,*,b"'})
        head = await client.head(path)

    assert (first.status_code, other.status_code, head.status_code) == (200, 200, 200)
    assert int(first.headers["content-length"]) == len(first.content) > 10_000
    assert head.headers["content-length"] == first.headers["content-length"]
    assert tag.startswith('"')
    assert first.headers["cache-control"] == "no-cache"
    assert [(answer.status_code, answer.content) for answer in known] == [(304, b"")] * 4
    assert {answer.headers["etag"] for answer in [*known, other, head]} == {tag}
    assert other.content == first.content


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/openapi.json", "application/json"),
        ("/static/swagger/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("/static/swagger/swagger-ui.css", "text/css; charset=utf-8"),
        ("/static/fastapi/favicon.png", "image/png"),
        ("/static/swagger/LICENSE", "text/plain; charset=utf-8"),
    ],
)
async def test_page_has_its_media_type(path: str, media_type: str) -> None:
    async with serve_shared(key=None) as client:
        answer = await client.get(path)

    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)


def test_document_is_rendered_once_until_it_changes() -> None:
    documents: list[dict[str, Any]] = [{"paths": {}}]
    page = DocumentPage(lambda: documents[-1])

    first = page.page("")
    again = page.page("")
    documents.append({"paths": {"/new": {}}})
    changed = page.page("")

    assert first is again
    assert changed is not first
    assert changed.body == b'{"paths":{"/new":{}}}'
    assert changed.tag != first.tag


def test_document_names_the_prefix_that_it_is_asked_at() -> None:
    document = {"servers": [{"url": "/app"}]}
    page = DocumentPage(lambda: document)

    assert page.page("/app").body == b'{"servers":[{"url":"/app"}]}'
    assert page.page("/host/app").body == b'{"servers":[{"url":"/host/app"},{"url":"/app"}]}'
    assert document == {"servers": [{"url": "/app"}]}


def test_prefixes_that_clients_invent_are_not_kept() -> None:
    document: dict[str, Any] = {"paths": {}}
    page = DocumentPage(lambda: document)
    first = page.page("/t/0")

    for number in range(1, 100):
        page.page(f"/t/{number}")

    assert page.page("/t/99") is page.page("/t/99")
    assert page.page("/t/0") is not first
