"""traefik.toml and routes.toml, and the nginx configuration of docs/proxy.md in a real nginx."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import ssl
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.sync.client import connect as sync_connect

from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.settings import Settings
from tests.support import asking
from tests.support.certificates import write_certificate
from tests.support.folders import ROOT
from tests.support.processes import child, program
from tests.support.server_processes import KEY, running_server
from tests.support.servers import free_port, served_app
from tests.support.web import KEY as APP_KEY
from tests.support.web import OBSERVATION as APP_OBSERVATION
from tests.support.web import build

PREFIX = "/app/v1"
OBSERVATION = {
    "mouse_row": 5,
    "mouse_column": 0,
    "cheese_row": 1,
    "cheese_column": 4,
    "cat_row": 3,
    "cat_column": 2,
}


def load(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path).read_text())


def test_traefik_listens_on_9999_and_reads_the_routes_beside_it() -> None:
    static = load("traefik.toml")

    assert static["entryPoints"]["http"]["address"] == ":9999"
    assert (ROOT / static["providers"]["file"]["filename"]).is_file()
    assert static["ping"]["entryPoint"] in static["entryPoints"]


def test_traefik_gives_idle_connections_up_before_the_server_does() -> None:
    timeouts = load("traefik.toml")["serversTransport"]["forwardingTimeouts"]

    seconds = float(timeouts["idleConnTimeout"].removesuffix("s"))
    assert seconds < Settings.model_fields["keep_alive_s"].default


def test_routes_strip_the_prefix_and_forward_to_the_server() -> None:
    routes = load("routes.toml")["http"]

    [router] = routes["routers"].values()
    assert router["rule"] == f"Path(`{PREFIX}`) || PathPrefix(`{PREFIX}/`)"
    assert router["entryPoints"] == ["http"]
    [middleware] = router["middlewares"]
    assert routes["middlewares"][middleware] == {"stripPrefix": {"prefixes": [PREFIX]}}
    balancer = routes["services"][router["service"]]["loadBalancer"]
    assert balancer["servers"] == [{"url": "http://127.0.0.1:8000"}]
    assert balancer["healthCheck"]["path"] == "/readyz"


def test_composes_routes_differ_in_the_address_only() -> None:
    text = (ROOT / "deploy/compose/routes.toml").read_text()

    same = tomllib.loads(text.replace("http://policy_server:8000", "http://127.0.0.1:8000"))
    assert same == load("routes.toml")


def nginx_configuration(
    folder: Path, *, listen: int, upstream: int, certificate: Path | None = None
) -> Path:
    """Write the documentation's block into a whole configuration, on other ports."""
    text = (ROOT / "docs/proxy.md").read_text()
    block, tls = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    if certificate is not None:
        tls, certificates = re.subn(r"/etc/nginx/server\.(?:pem|key)", str(certificate), tls)
        block, replaced = re.subn(r"    listen 9999;\n", tls, block)
        assert (certificates, replaced) == (2, 1)
    block, listens = re.subn(r"listen 9999", f"listen 127.0.0.1:{listen}", block)
    block, servers = re.subn(r"server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};", block)
    assert (listens, servers) == (1, 1)
    temporary = "\n".join(
        f"    {kind}_temp_path {folder / kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"pid {folder / 'nginx.pid'};\nerror_log stderr;\nworker_processes 1;\ndaemon off;\n"
        f"events {{}}\nhttp {{\n    access_log off;\n{temporary}\n{block}}}\n"
    )
    return path


@contextmanager
def nginx(folder: Path, *, upstream: int, certificate: Path | None = None) -> Iterator[str]:
    listen = free_port()
    configuration = nginx_configuration(
        folder, listen=listen, upstream=upstream, certificate=certificate
    )

    def is_listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", listen)) == 0

    command = (program("nginx", package="nginx-light"), "-c", configuration, "-p", folder)
    with child(*command, "-e", "stderr", log=folder / "nginx.log") as started:
        started.wait_until(is_listening)
        yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{listen}"


@pytest.fixture(scope="module")
def through_nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of nginx, in front of a server whose schema names the prefix."""
    home = tmp_path_factory.mktemp("home")
    example = ROOT / "examples" / "mouse_and_cheese"
    shutil.copy(example / "saved_model.zip", home)
    schema = yaml.safe_load((example / "schema.yaml").read_text())
    schema["parameters"]["url_path"] = PREFIX.strip("/")
    (home / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False))
    local = {"POLICY_SERVER_BACKEND": "local"}
    with (
        running_server(home, environment=local) as server,
        nginx(tmp_path_factory.mktemp("nginx"), upstream=int(server.url.rpartition(":")[2])) as url,
        asking.client(base_url=url, headers={"access-token": KEY}, timeout=30) as client,
    ):
        yield client


@pytest.mark.service
@pytest.mark.parametrize("path", ["/predict", "/predict/", "/predict_deterministic"])
def test_predictions_work_behind_the_prefix(through_nginx: httpx.Client, path: str) -> None:
    answer = through_nginx.post(PREFIX + path, json=OBSERVATION)

    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["actions"][0] in range(4)
    assert not answer.history


@pytest.mark.service
async def test_stream_works_behind_the_prefix(through_nginx: httpx.Client) -> None:
    address = str(through_nginx.base_url).replace("http", "ws").rstrip("/")
    expected = through_nginx.post(f"{PREFIX}/predict_deterministic", json=OBSERVATION).json()

    async with connect(
        f"{address}{PREFIX}/predict_deterministic/stream",
        additional_headers={"access-token": KEY},
    ) as stream:
        await stream.send(json.dumps(OBSERVATION))
        answer = json.loads(await stream.recv())

    assert answer == expected


@pytest.mark.service
def test_key_is_asked_for_behind_the_prefix(through_nginx: httpx.Client) -> None:
    answer = through_nginx.post(
        f"{PREFIX}/predict", json=OBSERVATION, headers={"access-token": "wrong"}
    )

    assert answer.status_code == httpx.codes.UNAUTHORIZED


@pytest.mark.service
@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_documentation_loads_its_files_behind_the_prefix(
    through_nginx: httpx.Client, page: str
) -> None:
    text = through_nginx.get(PREFIX + page).text

    files = re.findall(r"""(?:src|href)=["'](/[^"']+)""", text)
    documents = re.findall(r"""(?:url|spec-url)\s*[:=]\s*["'](/[^"']+)""", text)
    assert len(files) > 1
    assert documents == [f"{PREFIX}/openapi.json"]
    for path in files + documents:
        assert path.startswith(f"{PREFIX}/")
        assert through_nginx.get(path).status_code == httpx.codes.OK, path


@pytest.mark.service
def test_openapi_sends_try_it_out_and_clients_through_the_proxy(
    through_nginx: httpx.Client,
) -> None:
    document = through_nginx.get(f"{PREFIX}/openapi.json").json()

    assert document["servers"] == [{"url": PREFIX}]
    assert "/predict" in document["paths"]


@pytest.mark.service
def test_nothing_but_the_prefix_is_forwarded(through_nginx: httpx.Client) -> None:
    for path in ("/predict", "/readyz", "/app/v10/readyz"):
        answer = through_nginx.get(path)

        # Every answer of the server carries the header.
        assert answer.is_client_error, path
        assert "x-request-id" not in answer.headers, path


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what arrived: ASGI, over HTTP and web sockets."""
    if scope["type"] == "lifespan":
        return
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    body = {"path": scope["path"], "headers": headers, "client": scope["client"][0]}
    seen = json.dumps(body | {"scheme": scope["scheme"]})
    if scope["type"] == "http":
        # As the server gives a state token back, which the proxy has to let pass on both ways.
        tokens = [pair for pair in scope["headers"] if pair[0] == b"x-state"]
        await send({"type": "http.response.start", "status": 200, "headers": tokens})
        await send({"type": "http.response.body", "body": seen.encode()})
        return
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": seen})
    message = await receive()
    await send({"type": "websocket.send", "text": message["text"] * 2})
    await send({"type": "websocket.close"})


@pytest.fixture(scope="module")
def echo_through_nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        served_app(echo, lifespan="off", ws="websockets-sansio") as port,
        nginx(tmp_path_factory.mktemp("echo"), upstream=port) as url,
    ):
        yield url


def test_proxy_strips_the_prefix_and_says_who_asked(echo_through_nginx: str) -> None:
    headers = {"x-forwarded-for": "203.0.113.9", "x-request-id": "abc"}
    seen = asking.get(f"{echo_through_nginx}{PREFIX}/predict?seed=1", headers=headers).json()

    host = echo_through_nginx.removeprefix("http://")
    assert seen["path"] == "/predict"
    assert seen["headers"]["host"] == host
    assert seen["headers"]["x-forwarded-host"] == host
    assert seen["headers"]["x-forwarded-for"] == "203.0.113.9, 127.0.0.1"
    assert seen["headers"]["x-forwarded-proto"] == "http"
    assert seen["headers"]["x-request-id"] == "abc"
    # uvicorn believes the proxy, which runs on this machine.
    assert seen["client"] == "203.0.113.9"


def test_state_tokens_up_to_the_documented_limit_pass_the_proxy_both_ways(
    echo_through_nginx: str,
) -> None:
    [kilobytes] = re.findall(r"nginx\nto (\d+) KB", (ROOT / "docs/memory.md").read_text())
    token = "a" * (int(kilobytes) * 1024 - 64)

    answer, refused = (
        asking.get(f"{echo_through_nginx}{PREFIX}/predict", headers={"x-state": text})
        for text in (token, token + "a" * 128)
    )

    assert (answer.status_code, answer.headers.get("x-state")) == (200, token), answer.text
    assert (refused.status_code, "x-state" in refused.headers) == (400, False)


def test_web_sockets_pass_the_proxy(echo_through_nginx: str) -> None:
    async def talk() -> tuple[dict[str, Any], str]:
        url = f"{echo_through_nginx.replace('http', 'ws', 1)}{PREFIX}/predict/stream"
        async with connect(url) as socket_:
            seen = json.loads(await socket_.recv())
            await socket_.send("ab")
            answer = await socket_.recv()
            assert isinstance(answer, str)
            return seen, answer

    seen, answer = asyncio.run(talk())

    assert seen["path"] == "/predict/stream"
    assert answer == "abab"


@dataclass(frozen=True)
class Secured:
    """A server behind an nginx that ends TLS.

    Attributes:
        url: nginx's address, `https://...`.
        trusting: trusts its certificate.
    """

    url: str
    trusting: ssl.SSLContext

    def ask(self, client: str) -> httpx.Response:
        """Ask as a client for which a proxy in front of nginx forwards."""
        headers = {"access-token": APP_KEY, "x-forwarded-for": client}
        with httpx.Client(verify=self.trusting, base_url=self.url, headers=headers) as sender:
            return sender.post(f"{PREFIX}/predict", json=APP_OBSERVATION)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """The server of the tests, which lets an address ask once."""
    folder = tmp_path_factory.mktemp("tls")
    certificate = folder / "server.pem"
    write_certificate(certificate)
    app = build(max_address_rate=0.001)
    with (
        served_app(app, ws=WebSocketProtocol) as port,
        nginx(folder, upstream=port, certificate=certificate) as url,
    ):
        yield Secured(url, ssl.create_default_context(cafile=str(certificate)))


def test_proxy_ends_tls_and_its_clients_have_limits_of_their_own(secured: Secured) -> None:
    statuses = [
        secured.ask(client).status_code for client in ("192.0.2.1", "192.0.2.2", "192.0.2.1")
    ]

    assert statuses == [200, 200, 429]


def test_streams_pass_the_proxy_by_tls(secured: Secured) -> None:
    url = f"{secured.url.replace('https', 'wss')}{PREFIX}/predict/stream"
    headers = {"access-token": APP_KEY, "x-forwarded-for": "192.0.2.3"}

    with sync_connect(url, ssl=secured.trusting, additional_headers=headers) as stream:
        stream.send(json.dumps(APP_OBSERVATION))
        answer = json.loads(stream.recv())

    # The handshake was the one request of its address.
    assert answer["status"] == 429


def test_client_that_does_not_trust_the_proxy_sends_no_key(secured: Secured) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        asking.post(f"{secured.url}{PREFIX}/predict", headers={"access-token": APP_KEY})


def test_client_without_tls_is_refused_by_the_proxy(secured: Secured) -> None:
    answer = asking.get(f"{secured.url.replace('https', 'http')}{PREFIX}/livez")

    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert "x-request-id" not in answer.headers


def test_server_behind_tls_hears_of_it(tmp_path: Path) -> None:
    certificate = tmp_path / "server.pem"
    write_certificate(certificate)
    with (
        served_app(echo, lifespan="off", ws="websockets-sansio") as port,
        nginx(tmp_path, upstream=port, certificate=certificate) as url,
    ):
        trusting = ssl.create_default_context(cafile=str(certificate))
        seen = httpx.get(f"{url}{PREFIX}/docs", verify=trusting).json()

    assert (seen["scheme"], seen["headers"]["x-forwarded-proto"]) == ("https", "https")


def test_traefik_takes_the_lines_for_tls_beside_its_own() -> None:
    text = (ROOT / "docs/proxy.md").read_text()
    [lines] = re.findall(r"```toml\n(# traefik.toml.*?)```", text, re.DOTALL)
    static, dynamic = lines.split("# routes.toml")
    added = tomllib.loads(static)["entryPoints"]["http"]

    assert added.pop("http") == {"tls": {}}
    assert added == load("traefik.toml")["entryPoints"]["http"]
    [pair] = tomllib.loads(dynamic)["tls"]["certificates"]
    assert pair.keys() == {"certFile", "keyFile"}
    assert tomllib.loads((ROOT / "routes.toml").read_text() + dynamic)["http"]["routers"]
