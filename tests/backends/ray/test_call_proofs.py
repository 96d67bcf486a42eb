"""The proofs at the start of a connection: both sides show the key, and it never travels."""

from __future__ import annotations

from typing import Any

import pytest

from policy_server.backends.ray.call_frames import FrameError
from policy_server.backends.ray.call_proofs import (
    Handshake,
    client_handshake,
    server_handshake,
)

KEY = b"k" * 32
ABOUT: dict[str, Any] = {"key": KEY, "application": "policy-a-1", "replica": "r1"}


def begin(handshake: Handshake) -> bytes:
    """Return the first message of one side."""
    message, _ = next(handshake)
    return message


def run(server: Handshake, client: Handshake) -> list[bytes]:
    """Let both sides prove the key; return all that travels."""
    greeting = begin(server)
    assert begin(client) == b""
    claim, needed = client.send(greeting)
    proof, left = server.send(claim)
    assert (len(proof), left) == (needed, 0)
    with pytest.raises(StopIteration):
        client.send(proof)
    return [greeting, claim, proof]


def test_both_sides_are_satisfied_and_the_key_does_not_travel() -> None:
    messages = run(server_handshake(**ABOUT), client_handshake(**ABOUT))

    assert KEY[:8] not in b"".join(messages)


def test_no_message_is_ever_the_same_again() -> None:
    first = run(server_handshake(**ABOUT), client_handshake(**ABOUT))
    second = run(server_handshake(**ABOUT), client_handshake(**ABOUT))

    assert not set(first) & set(second)


OTHERS = [{"key": b"x" * 32}, {"application": "policy-a-2"}, {"replica": "r2"}]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_replica_refuses_who_means_another_or_has_another_key(other: dict[str, Any]) -> None:
    server, client = server_handshake(**ABOUT), client_handshake(**{**ABOUT, **other})
    begin(client)
    claim, _ = client.send(begin(server))

    with pytest.raises(FrameError, match="a wrong proof"):
        server.send(claim)


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_web_process_refuses_a_replica_that_does_not_prove_the_key(other: dict[str, Any]) -> None:
    client, impostor = client_handshake(**ABOUT), client_handshake(**{**ABOUT, **other})
    server = server_handshake(**{**ABOUT, **other})
    greeting = begin(server)
    begin(client)
    begin(impostor)
    client.send(greeting)
    # It answers anybody, by the key that it has.
    claim, _ = impostor.send(greeting)
    proof, _ = server.send(claim)

    with pytest.raises(FrameError, match="a wrong proof"):
        client.send(proof)


def test_proof_that_was_recorded_is_worth_nothing_later() -> None:
    _, claim, proof = run(server_handshake(**ABOUT), client_handshake(**ABOUT))
    server, client = server_handshake(**ABOUT), client_handshake(**ABOUT)
    greeting = begin(server)
    begin(client)
    client.send(greeting)

    with pytest.raises(FrameError, match="a wrong proof"):
        server.send(claim)
    with pytest.raises(FrameError, match="a wrong proof"):
        client.send(proof)


def test_proof_of_one_side_is_not_that_of_the_other() -> None:
    server, client = server_handshake(**ABOUT), client_handshake(**ABOUT)
    begin(client)
    claim, _ = client.send(begin(server))

    # A replica without the key sends the web process's own proof back.
    with pytest.raises(FrameError, match="a wrong proof"):
        client.send(claim[-32:])


@pytest.mark.parametrize("given", [b"GET / HTTP/1.1\r\n", b"PSCALLS2", b"\0"], ids=repr)
def test_other_protocol_is_refused_by_both(given: bytes) -> None:
    message = (given * 100)[:72]
    server, client = server_handshake(**ABOUT), client_handshake(**ABOUT)
    begin(server)
    begin(client)

    with pytest.raises(FrameError, match="another protocol"):
        server.send(message)
    with pytest.raises(FrameError, match="another protocol"):
        client.send(message[:40])
