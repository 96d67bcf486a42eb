"""Addresses of servers, as users type them."""

from __future__ import annotations

import pytest

from policy_server.commands.client import PolicyClient
from policy_server.commands.server_addresses import read_address
from policy_server.errors import ServerAnswerError, SettingsError


def test_address_is_shown_without_its_password_and_asks_with_it() -> None:
    address = read_address("https://me:pa%2Fss@[::1]:8443/prefix/")

    assert address.shown == "https://[::1]:8443/prefix"
    assert address.url == "https://me:pa%2Fss@[::1]:8443/prefix"
    assert (address.hostname, address.port, address.host) == ("::1", 8443, "[::1]:8443")
    assert (address.path, address.is_secure) == ("/prefix", True)
    assert address.headers == {"authorization": "Basic bWU6cGEvc3M="}
    assert "pa%2Fss" not in repr(address)


def test_address_without_a_user_or_a_port_has_those_of_its_scheme() -> None:
    address = read_address("http://localhost")

    assert (address.port, address.host, address.headers) == (80, "localhost", {})


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://localhost", "", "http://", "http://[", "http://x..y"),
        *(f"http://{'x' * 70}", "http://h:x", "http://h:65536", "http://h h", "http://h\\h"),
        *("http://h#x", "http://h?x=1", "http://h?", "http://h/\x07", "http://:80"),
    ],
)
def test_address_has_to_be_one(url: str) -> None:
    with pytest.raises(SettingsError, match="--url: expected an address such as"):
        PolicyClient(url, None)


@pytest.mark.parametrize(
    "url", ["http://me:hu/hush@h", "http://me:1/hush@h", "http://me:hush@h?x", "http://☃:hush@h"]
)
def test_refused_address_does_not_show_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        PolicyClient(url, None)

    assert "hush" not in caught.value.message


def test_password_is_in_no_message_of_a_client(unused_tcp_port: int) -> None:
    with (
        PolicyClient(f"http://me:hush@127.0.0.1:{unused_tcp_port}", None) as server,
        pytest.raises(ServerAnswerError) as caught,
    ):
        server.get("/schema")

    assert "hush" not in caught.value.message
    assert "hush" not in server.url
