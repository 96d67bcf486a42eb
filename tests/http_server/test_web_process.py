"""The ports of a web process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from policy_server.errors import SettingsError
from policy_server.http_server.running_server import HttpServer
from policy_server.http_server.web_process import WebProcess
from policy_server.settings import Settings
from tests.support.servers import silent

FREE: dict[str, Any] = {"metrics_port": 0, "dashboard_port": 0}


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("name", ["metrics_port", "dashboard_port"])
def test_taken_port_is_one_line_that_names_the_setting(name: str, taken: int) -> None:
    settings = Settings(**{**FREE, name: taken})

    with pytest.raises(SettingsError) as caught:
        WebProcess(None, None).claim_ports(settings)

    assert caught.value.message == (
        f"POLICY_SERVER_{name.upper()}: port {taken} can't be used: Address already in use; "
        "set another one, or 0"
    )


def test_metrics_port_is_claimed_on_its_own_host(taken: int) -> None:
    others = Settings(**{**FREE, "metrics_port": taken, "metrics_host": "127.0.0.2"})

    WebProcess(None, None).claim_ports(others)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (":::", "Name or service not known"),
        ("192.0.2.7", "Cannot assign requested address"),
    ],
)
def test_metrics_host_that_is_none_is_one_line(host: str, reason: str) -> None:
    settings = Settings(**{**FREE, "metrics_port": 8080, "metrics_host": host})

    with pytest.raises(SettingsError) as caught:
        WebProcess(None, None).claim_ports(settings)

    assert caught.value.message == (
        f"POLICY_SERVER_METRICS_HOST: can't listen on {host!r}: {reason}; expected an address of "
        "this machine"
    )


def test_dashboards_port_counts_where_the_clusters_address_is_empty(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")

    with pytest.raises(SettingsError, match=f"DASHBOARD_PORT: port {taken}"):
        WebProcess(None, None).claim_ports(Settings(**{**FREE, "dashboard_port": taken}))


def test_dashboards_port_counts_only_where_this_server_starts_ray(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = {**FREE, "dashboard_port": taken}
    WebProcess(None, None).claim_ports(Settings(backend="local", **ports))
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.7:6379")

    WebProcess(None, None).claim_ports(Settings(**ports))


def test_port_that_is_given_twice_is_refused() -> None:
    config = uvicorn.Config(silent, log_config=None, port=0)
    process = WebProcess(HttpServer(config), None)
    process.claim_ports(Settings(**FREE))

    with pytest.raises(SettingsError, match=f"METRICS_PORT: port {config.port} is uvicorn's"):
        process.claim_ports(Settings(**{**FREE, "metrics_port": config.port}))
