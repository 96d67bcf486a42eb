"""The headers of pages, which answers to programs lack."""

from __future__ import annotations

import re

import pytest

from tests.support.web import OBSERVATION, serve_shared

PAGES = ["/docs", "/redoc", "/openapi.json", "/static/swagger/swagger-ui.css"]
HEADERS = ["content-security-policy", "referrer-policy", "x-content-type-options"]


@pytest.mark.parametrize("path", PAGES)
async def test_page_says_what_it_may_do(path: str) -> None:
    async with serve_shared(key=None) as client:
        answer = await client.get(path)

    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_all_that_a_page_loads_is_allowed_by_its_policy(path: str) -> None:
    async with serve_shared(key=None) as client:
        page = await client.get(path)
        loaded = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
        statuses = [(await client.get(address)).status_code for address in loaded]

    assert len(loaded) >= 2
    assert all(address.startswith("/") for address in loaded), loaded
    assert set(statuses) == {200}


async def test_picture_that_redoc_looks_for_beside_itself_is_there() -> None:
    async with serve_shared(key=None) as client:
        picture = await client.get("/redoc/logo-mini.svg")

    assert picture.status_code == 200
    assert picture.headers["content-type"] == "image/svg+xml"
    assert picture.headers["x-content-type-options"] == "nosniff"


async def test_answers_to_programs_have_none_of_them() -> None:
    async with serve_shared() as client:
        answers = [await client.post("/predict", json=OBSERVATION), await client.get("/schema")]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert not [name for answer in answers for name in HEADERS if name in answer.headers]
