"""One address holds as many connections as it may, web sockets among them, and others the rest."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from policy_server.http_server.address_connections import AddressConnections
from policy_server.http_server.connection_limits import ConnectionLimits, ConnectionWatch
from policy_server.http_server.limited_protocol import LimitedHttpProtocol
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.settings import Settings
from tests.support.connections import LIMITS, Server, answers_in
from tests.support.servers import app_in_loop
from tests.support.streams import KEY_HEADER
from tests.support.waiting import until
from tests.support.web import build, running


def test_addresses_are_counted_apart_and_a_network_of_ipv6_is_one() -> None:
    addresses = AddressConnections(2)
    ends = ["10.0.0.1", "10.0.0.1", "2001:db8::1", "2001:db8::2", "2001:db8::3", "10.0.0.2"]

    entered = [addresses.enter((host, 1)) for host in ends]

    assert [addresses.is_beyond(address) for address in entered] == [False] * 2 + [True] * 3 + [
        False
    ]
    for address in entered:
        addresses.leave(address)
    assert len(addresses) == 0


def test_nothing_is_counted_without_a_limit_or_without_an_address() -> None:
    off, on = AddressConnections(0), AddressConnections(1)

    assert [off.enter(("10.0.0.1", 1)), on.enter(None)] == ["", ""]
    assert not on.is_beyond("")
    assert (len(off), len(on)) == (0, 0)


def test_setting_is_the_limit() -> None:
    assert ConnectionLimits.of(Settings(max_address_connections=3)).max_address_connections == 3
    assert LIMITS.max_address_connections == 0


@pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])
async def test_connection_too_many_is_refused_until_another_is_closed(*, is_hot: bool) -> None:
    app = build()
    async with running(app):
        limits = replace(LIMITS, max_address_connections=2)
        server = Server(app, is_hot=is_hot, limits=limits)
        first, _ = server.connect()
        server.connect()
        refused, transport = server.connect()
        refused.connection_lost(None)
        first.connection_lost(None)
        _, again = server.connect()

    (answer,) = answers_in(transport.written)
    assert answer.status == 429
    assert b"this address has 2 connections open already" in answer.body
    assert transport.is_ended
    assert again.written == b""
    assert len(server.watch.addresses) == 1


async def test_web_socket_counts_until_it_has_gone() -> None:
    watch = ConnectionWatch(replace(LIMITS, max_address_connections=2))
    protocol: Any = partial(LimitedHttpProtocol, watch=watch)
    async with app_in_loop(build(), http=protocol, ws=WebSocketProtocol) as (url, _):
        address = f"{url.replace('http', 'ws')}/predict/stream"
        options: dict[str, Any] = {"additional_headers": KEY_HEADER, "proxy": None}
        async with connect(address, **options), connect(address, **options):
            with pytest.raises(InvalidStatus) as refused:
                await connect(address, **options)
        await until(lambda: len(watch.addresses) == 0)
        async with connect(address, **options):
            held = len(watch.addresses)

    assert refused.value.response.status_code == 429
    assert held == 1
