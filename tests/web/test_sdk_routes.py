"""The routes that give client libraries."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import httpx
import pytest
from fastapi import FastAPI

from policy_server.access_keys import KeyRing
from policy_server.client_limits import ClientLimits
from policy_server.errors import SdkError
from policy_server.metrics import Metrics
from policy_server.schema import ServerSchema
from policy_server.sdk import BUNDLE, Document, LanguageName, SdkStore, files_of
from policy_server.sdk.generator import Files
from policy_server.sdk.languages import Language
from policy_server.serving import BodyQueue
from policy_server.web.gate import Gate
from policy_server.web.problems import install_error_handlers
from policy_server.web.route_table import RouteTable
from policy_server.web.sdk_routes import client_routes
from tests.support.fakes import integer_backend, registry_of
from tests.support.waiting import until
from tests.support.web import assert_error, assert_invalid, serve

DOCUMENT: Document = {"info": {"title": "a", "version": "1"}, "paths": {}, "components": {}}


class Generator:
    """Writes the address that an SDK calls, when the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: SdkError | None = None

    async def __call__(
        self, document: Document, languages: Sequence[Language]
    ) -> Mapping[LanguageName, Files]:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        address = document["servers"][0]["url"].encode()
        return {
            language.name: {
                PurePosixPath("address"): address,
                PurePosixPath("language"): language.name.encode(),
            }
            for language in languages
        }


def gate_of(folder: Path, generator: Generator, *, wait_s: float = 30, root_path: str = "") -> Gate:
    app = FastAPI()
    store = SdkStore(folder, generate=generator)
    app.include_router(client_routes(store, lambda: DOCUMENT, wait_s=wait_s))
    install_error_handlers(app, app.routes)
    table = RouteTable(registry_of(integer_backend(), ServerSchema()))
    keys = KeyRing()
    return Gate(
        app,
        table=table,
        streams=app,
        keys=keys,
        client_limits=ClientLimits(keys),
        bodies=BodyQueue(max_waiting=1, max_wait_s=1.0),
        root_path=root_path,
        max_batch_body_bytes=1024,
        max_body_bytes=1,
        metrics=Metrics(),
    )


def client_of(folder: Path, generator: Generator, *, wait_s: float = 30) -> httpx.AsyncClient:
    gate = gate_of(folder, generator, wait_s=wait_s)
    transport = httpx.ASGITransport(gate, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://somewhere")


async def test_clients_of_one_language_are_a_zip_of_its_files(tmp_path: Path) -> None:
    async with client_of(tmp_path, Generator()) as client:
        response = await client.get("/clients/typescript")

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["content-disposition"] == (
        'attachment; filename="policy-client-typescript.zip"'
    )
    assert files_of(response.content)[PurePosixPath("typescript/language")] == b"typescript"


@pytest.mark.parametrize("proxys_prefix", ["", "/app/v1"])
async def test_clients_of_a_mounted_application_call_the_path_of_the_mount(
    tmp_path: Path, proxys_prefix: str
) -> None:
    host = FastAPI()
    host.mount("/policies/mouse", gate_of(tmp_path, Generator(), root_path=proxys_prefix))
    transport = httpx.ASGITransport(host)

    async with httpx.AsyncClient(transport=transport, base_url="http://somewhere:81") as client:
        response = await client.get("/policies/mouse/clients/go")

    address = files_of(response.content)[PurePosixPath("go/address")]
    assert address == b"http://localhost:81/policies/mouse"


async def test_clients_are_one_zip_with_four_languages(tmp_path: Path) -> None:
    async with client_of(tmp_path, Generator()) as client:
        response = await client.get("/clients/")

    assert response.headers["content-disposition"] == 'attachment; filename="policy-clients.zip"'
    assert {path.parts[0] for path in files_of(response.content)} == set(BUNDLE)


async def test_sdk_calls_this_machine_whatever_name_the_client_used(tmp_path: Path) -> None:
    async with client_of(tmp_path, Generator()) as client:
        response = await client.get("/clients/go", headers={"host": "evil.example"})

    assert files_of(response.content)[PurePosixPath("go/address")] == b"http://localhost:8000"


async def test_zip_that_the_client_has_is_not_sent_again(tmp_path: Path) -> None:
    async with client_of(tmp_path, Generator()) as client:
        first = await client.get("/clients/r")
        etag = first.headers["etag"]
        second = await client.get("/clients/r", headers={"if-none-match": f'"old", W/{etag}'})
        other = await client.get("/clients/java", headers={"if-none-match": etag})

    assert (second.status_code, second.content) == (304, b"")
    assert second.headers["etag"] == etag
    assert other.status_code == 200


async def test_who_asks_while_it_is_generated_is_told_to_ask_again(tmp_path: Path) -> None:
    generator = Generator()
    generator.gate.clear()
    async with client_of(tmp_path, generator, wait_s=0.01) as client:
        early = await client.get("/clients/python")
        generator.gate.set()
        await until(lambda: list(tmp_path.rglob("*.zip")))
        late = await client.get("/clients/python")

    assert_error(early, 503, "being generated", "try again")
    assert early.headers["retry-after"] == "5"
    assert files_of(late.content)


async def test_generator_that_fails_is_a_500_in_words(tmp_path: Path) -> None:
    generator = Generator()
    generator.error = SdkError("the generator failed; the log has its output")
    async with client_of(tmp_path, generator) as client:
        assert_error(await client.get("/clients/python"), 500, "the generator failed")


@pytest.mark.parametrize("route", ["/clients", "/clients/", "/clients/python"])
async def test_clients_need_the_key(route: str) -> None:
    async with serve(key=None) as client:
        assert_error(await client.get(route), 401, "no access key")


async def test_unknown_language_is_invalid_and_names_the_known_ones() -> None:
    async with serve() as client:
        response = await client.get("/clients/rust")

    assert_invalid(response, "path.language")
    assert "kotlin" in response.json()["detail"][0]["msg"]
