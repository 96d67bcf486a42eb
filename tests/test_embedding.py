"""A policy in somebody's own application: mounted, beside another one, and without traces."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import policy_server
from policy_server import create_app
from policy_server.errors import SchemaError, SettingsError
from policy_server.web import Application
from tests.support import asking
from tests.support.folders import ROOT
from tests.support.processes import run
from tests.support.servers import free_port
from tests.support.web import assert_error

KEY = "1234567asdfgh"
MOUSE = {"obs": [5, 0, 1, 4, 3, 2]}
LPOC = {"obs": [1] * 11}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give the homes of two policies, compiled once for all tests."""
    folder = tmp_path_factory.mktemp("homes")
    for name in ("mouse_and_cheese", "lpoc"):
        (folder / name).mkdir()
        for file in ("schema.yaml", "saved_model.zip"):
            shutil.copy(ROOT / "examples" / name / file, folder / name)
    return {"mouse": folder / "mouse_and_cheese", "lpoc": folder / "lpoc"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("POLICY_SERVER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def host_of(**policies: Application) -> FastAPI:
    """Return an application of somebody's own, with policies mounted by their names."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with policies["mouse"].lifespan():
            if "lpoc" in policies:
                async with policies["lpoc"].lifespan():
                    yield
            else:
                yield

    host = FastAPI(lifespan=lifespan)
    for name, policy in policies.items():
        host.mount(f"/{name}", policy)

    @host.get("/own")
    async def own() -> str:
        return "the host's"

    return host


@asynccontextmanager
async def asked(host: FastAPI, *, key: str | None = KEY) -> AsyncIterator[httpx.AsyncClient]:
    """Run a host's lifespan, and give a client of it."""
    headers = {} if key is None else {"access-token": key}
    transport = httpx.ASGITransport(host)
    async with (
        host.router.lifespan_context(host),
        httpx.AsyncClient(transport=transport, base_url="http://host", headers=headers) as client,
    ):
        yield client


async def test_mounted_policy_answers_below_its_path(homes: dict[str, Path]) -> None:
    async with asked(host_of(mouse=create_app(homes["mouse"]))) as client:
        answer = await client.post("/mouse/predict_deterministic_raw", json=MOUSE)
        seeded = await client.post("/mouse/predict_raw?seed=7", json=MOUSE)
        ready = await client.get("/mouse/readyz")
        own = await client.get("/own")
        elsewhere = await client.post("/predict_raw", json=MOUSE)

    assert answer.json()["actions"] == [0]
    assert seeded.status_code == ready.status_code == 200
    assert own.json() == "the host's"
    assert elsewhere.status_code == 404


async def test_policy_is_its_hosts_whole_lifespan_where_it_has_no_other(
    homes: dict[str, Path],
) -> None:
    policy = create_app(str(homes["mouse"]))
    host = FastAPI(lifespan=policy.lifespan)
    host.mount("/mouse", policy)

    async with asked(host) as client:
        answer = await client.get("/mouse/readyz")

    assert answer.json() == "ok"


async def test_documentation_names_the_path_of_the_mount(homes: dict[str, Path]) -> None:
    async with asked(host_of(mouse=create_app(homes["mouse"])), key=None) as client:
        page = await client.get("/mouse/docs")
        redoc = await client.get("/mouse/redoc")
        document = await client.get("/mouse/openapi.json")
        script = await client.get("/mouse/static/swagger/swagger-ui-bundle.js")

    assert "'/mouse/openapi.json'" in page.text
    assert '"/mouse/static/swagger/swagger-ui-bundle.js"' in page.text
    assert '"/mouse/openapi.json"' in redoc.text
    assert document.json()["servers"] == [{"url": "/mouse"}]
    assert "/predict_raw" in document.json()["paths"]
    assert script.status_code == 200


async def test_prefix_of_a_proxy_and_path_of_a_mount_go_together(
    homes: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "behind"
    shutil.copytree(homes["mouse"], home)
    text = (home / "schema.yaml").read_text()
    schema = text.replace("parameters:", "parameters:\n  url_path: app/v1/mouse", 1)
    assert schema != text
    (home / "schema.yaml").write_text(schema)

    async with asked(host_of(mouse=create_app(home))) as client:
        answer = await client.post("/mouse/predict_raw", json=MOUSE)
        page = await client.get("/mouse/docs")

    assert answer.status_code == 200
    assert "'/app/v1/mouse/openapi.json'" in page.text


async def test_two_policies_answer_side_by_side(homes: dict[str, Path]) -> None:
    mouse = create_app(homes["mouse"])
    lpoc = create_app(homes["lpoc"], api_key="another")

    async with asked(host_of(mouse=mouse, lpoc=lpoc), key=None) as client:
        one = await client.post("/mouse/predict_raw", json=MOUSE, headers={"access-token": KEY})
        other = await client.post(
            "/lpoc/predict_raw", json=LPOC, headers={"access-token": "another"}
        )
        wrong = await client.post("/lpoc/predict_raw", json=LPOC, headers={"access-token": KEY})
        schemas = [
            await client.get(f"/{name}/schema", headers={"access-token": key})
            for name, key in (("mouse", KEY), ("lpoc", "another"))
        ]

    assert (one.status_code, other.status_code) == (200, 200)
    assert_error(wrong, 401, "wrong access key")
    assert [len(schema.json()["observations"]) for schema in schemas] == [6, 11]


async def test_two_applications_of_one_home_answer_too(homes: dict[str, Path]) -> None:
    host = host_of(mouse=create_app(homes["mouse"]), lpoc=create_app(homes["mouse"]))

    async with asked(host) as client:
        answers = [
            await client.post(f"/{name}/predict_deterministic_raw", json=MOUSE)
            for name in ("mouse", "lpoc")
        ]

    assert answers[0].json()["actions"] == answers[1].json()["actions"] == [0]


async def test_application_can_be_started_again(homes: dict[str, Path]) -> None:
    host = host_of(mouse=create_app(homes["mouse"]))

    for _ in range(2):
        async with asked(host) as client:
            assert (await client.get("/mouse/readyz")).json() == "ok"


async def test_policy_whose_lifespan_nobody_runs_is_not_ready(homes: dict[str, Path]) -> None:
    host = FastAPI()
    host.mount("/mouse", create_app(homes["mouse"]))

    async with asked(host) as client:
        answer = await client.post("/mouse/predict_raw", json=MOUSE)

    assert_error(answer, 503, "the policy is not loaded yet; try again in a few seconds")


async def test_schema_that_does_not_fit_ends_the_hosts_start(
    homes: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "misfit"
    shutil.copytree(homes["mouse"], home)
    shutil.copy(ROOT / "examples" / "lpoc" / "schema.yaml", home)
    host = host_of(mouse=create_app(home))

    with pytest.raises(SchemaError, match=r"gives 11 values, .* the example's \(lpoc\)"):
        async with asked(host):
            pass


# Settings


def test_settings_that_are_given_win_over_the_environment(
    homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICY_SERVER_HOME", "nowhere")
    monkeypatch.setenv("POLICY_SERVER_BACKEND", "ray")

    assert isinstance(create_app(homes["mouse"]), Application)


def test_home_may_come_from_the_environment(
    homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICY_SERVER_HOME", str(homes["lpoc"]))

    assert "/predict" in create_app().openapi()["paths"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batchsize": 3}, "max_batchsize: is no setting; did you mean max_batch_size?"),
        ({"zebra": 3}, "zebra: is no setting; docs/settings.md lists them"),
        (
            {"max_batch_size": 0},
            "max_batch_size: expected greater than or equal to 1, got 0",
        ),
    ],
    ids=["slip", "unknown", "value"],
)
def test_setting_that_cannot_be_used_is_named_as_it_was_given(
    settings: dict[str, Any],
    message: str,
    homes: dict[str, Path],
) -> None:
    with pytest.raises(SettingsError) as caught:
        create_app(homes["mouse"], **settings)

    assert caught.value.message == message


def test_home_without_a_schema_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"schema\.yaml: not found"):
        create_app(tmp_path)


async def test_metrics_are_shown_on_a_port_where_one_is_given(homes: dict[str, Path]) -> None:
    port = free_port()
    host = host_of(mouse=create_app(homes["mouse"], metrics_port=port))

    async with asked(host) as client, asking.async_client() as scraper:
        await client.post("/mouse/predict_raw", json=MOUSE)
        page = await scraper.get(f"http://127.0.0.1:{port}/metrics")

    assert "policy_server_requests_total{" in page.text


def test_package_has_no_other_names_to_look_up() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'build_app'"):
        policy_server.build_app  # noqa: B018 -- looking it up is what is tested


# What is the host's


UNTOUCHED = """
import asyncio, gc, logging, os, signal, sys, threading
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from policy_server import create_app

def state():
    loggers = [logging.root, *(logging.getLogger(name) for name in ("policy_server", "uvicorn"))]
    return {
        "loggers": [(one.level, list(one.handlers), one.propagate) for one in loggers],
        "signals": [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)],
        "gc": (gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()),
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr),
        "uvicorn": [dict(vars(one)) for one in (HttpToolsProtocol, WebSocketsSansIOProtocol)],
        "environment": dict(os.environ),
    }

async def main():
    policy = create_app(sys.argv[1])
    async with policy.lifespan():
        during = state()
    return during

async def compared():
    before = state()
    during = await main()
    after = state()
    for name in before:
        assert before[name] == during[name], name
        assert before[name] == after[name], name

asyncio.run(compared())
print(len(threading.enumerate()), "ray" in sys.modules, "tensorflow" in sys.modules)
"""


def test_host_keeps_its_logs_signals_collector_and_http_server(homes: dict[str, Path]) -> None:
    ended = run(sys.executable, "-c", UNTOUCHED, homes["mouse"])

    assert (ended.stdout.strip(), ended.stderr) == ("1 False False", "")
