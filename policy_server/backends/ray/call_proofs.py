"""The proofs that begin a connection: each side shows that it knows the replica's key.

The key itself never travels. Each side sends a nonce, and proves the key by the HMAC-SHA-256 of
both nonces, of its own part and of the deployment and replica that it means. So a proof that was
recorded is worth nothing on another connection, one side's is not the other's, and a replica of
another policy or version refuses.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Generator

from policy_server.backends.ray.call_frames import FrameError

__all__ = ["KEY_BYTES", "Handshake", "client_handshake", "server_handshake"]

KEY_BYTES = 32
_NONCE_BYTES = 32
_PROOF_BYTES = 32
# The number is that of the protocol: frames of another one are not understood.
_GREETING = b"PSCALLS1"

# Gives bytes to send and how many bytes have to come then; is sent those. It ends when both sides
# have proved the key, and raises FrameError where the other side has not.
Handshake = Generator[tuple[bytes, int], bytes, None]


def server_handshake(key: bytes, application: str, replica: str) -> Handshake:
    """Greet a web process, and let it prove the key.

    Args:
        key: the replica's key.
        application: the name of the application that the replica belongs to.
        replica: Ray's name of the replica.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    given = yield _GREETING + nonce, len(_GREETING) + _NONCE_BYTES + _PROOF_BYTES
    others = _nonce_in(given)
    about = (nonce, others, application.encode(), replica.encode())
    _check(given[-_PROOF_BYTES:], _proof(key, b"web process", *about))
    yield _proof(key, b"replica", *about), 0


def client_handshake(key: bytes, application: str, replica: str) -> Handshake:
    """Prove the key to a replica, and have it prove the key too.

    Args:
        key: the replica's key.
        application: the name of the application that is meant.
        replica: Ray's name of the replica that is meant.
    """
    greeting = yield b"", len(_GREETING) + _NONCE_BYTES
    theirs = _nonce_in(greeting)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    about = (theirs, nonce, application.encode(), replica.encode())
    proof = yield _GREETING + nonce + _proof(key, b"web process", *about), _PROOF_BYTES
    _check(proof, _proof(key, b"replica", *about))


def _nonce_in(message: bytes) -> bytes:
    if not message.startswith(_GREETING):
        raise FrameError("another protocol")
    return message[len(_GREETING) : len(_GREETING) + _NONCE_BYTES]


def _proof(key: bytes, *parts: bytes) -> bytes:
    # Each part with its length: parts of other lengths never give the same text.
    text = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return hmac.digest(key, text, hashlib.sha256)


def _check(given: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(given, expected):
        raise FrameError("a wrong proof")
