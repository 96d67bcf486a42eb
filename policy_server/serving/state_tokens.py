"""State tokens: the memory of an episode, carried by the client from answer to request.

A token is opaque to the client, and signed: base64url of HMAC-SHA256 and the signed part, which
begins with the number of its form. A signature does not say that a server wrote it: where the key
is derived from the access key, clients can sign too, so the content is checked as any input is.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from hashlib import sha256
from typing import NamedTuple

import msgpack
import numpy as np

from policy_server.errors import ObservationError, UnsupportedAnswerError
from policy_server.observations import problem
from policy_server.policy import LARGEST_SEED, Float32Array
from policy_server.serving.memory import EpisodeMemory
from policy_server.serving.session_refusals import address_of
from policy_server.serving.slot import PolicySlot
from policy_server.serving.version import PolicyVersion
from policy_server.settings import ENV_PREFIX

__all__ = ["NEW_EPISODE", "STATE_HEADER", "StateTokens"]

STATE_HEADER = "x-state"
NEW_EPISODE = "new"
"""The value in place of a token that begins an episode."""

_FORM = b"\x01"
_MAC_BYTES = 32
_DERIVED = b"policy-server state tokens"
_NUMBERS = np.dtype("<f4")
# In bytes: a request line, a host, a key and what proxies add.
_OTHER_HEADERS = 1024
# In bytes: what MessagePack's head of a long text has beside that of an empty one.
_LONGER_HEAD = 3
# Steps are added to a seed.
_MOST_STEPS = LARGEST_SEED
_BEGIN = f"begin another episode with '{STATE_HEADER}: {NEW_EPISODE}'"


class _Content(NamedTuple):
    """The parts of a token; `numbers` are float32[memory_width] in little endian."""

    policy: str
    label: str
    fingerprint: bytes
    steps: int
    has_action: bool
    numbers: bytes


_KINDS = [str, str, bytes, int, bool, bytes]


def _signed(version: PolicyVersion, steps: int, numbers: bytes, *, has_action: bool) -> bytes:
    """Return the part of a token that is signed."""
    names = version.name, version.label, version.fingerprint
    packed: bytes = msgpack.packb(_Content(*names, steps, has_action, numbers))
    return _FORM + packed


class StateTokens:
    """Writes and reads the state tokens of one server, or of several with the same key."""

    def __init__(self, *, state_key: str | None, access_key: str | None, most_bytes: int) -> None:
        """Own the key.

        Args:
            state_key: signs the tokens.
            access_key: the key is derived from it where there is no other; None for neither, so
                that there are no tokens.
            most_bytes: of the head of a request, which has to hold the token.
        """
        # A small limit has small heads.
        self._most_bytes = most_bytes - min(_OTHER_HEADERS, most_bytes // 2)
        self._key: bytes | None = None
        if state_key is not None:
            self._key = sha256(state_key.encode()).digest()
        elif access_key is not None:
            self._key = hmac.digest(access_key.encode(), _DERIVED, "sha256")

    def memory_of(
        self, slot: PolicySlot, token: str, *, episode: str = "", wanted: str = ""
    ) -> EpisodeMemory:
        """Return the memory that a token carries.

        Args:
            slot: the policy's slot.
            token: as a client sent it; `new` begins an episode.
            episode: the id of an episode that begins; see `PolicySlot.choose`.
            wanted: the name of the version that is asked for by one that begins; see there.

        Raises:
            ObservationError: if it is no token of this server, or its version is not loaded, or it
                was signed with a memory that the version can't have.
            UnsupportedAnswerError: if there is no key, or no request could carry the token of an
                episode that begins.
            NotReadyError: if no version is loaded.
        """
        if self._key is None:
            raise UnsupportedAnswerError(
                f"state tokens are signed, and this server has no key: set {ENV_PREFIX}STATE_KEY"
            )
        if token == NEW_EPISODE:
            return self._begun(slot.choose(episode, wanted=wanted))
        content = _content_of(self._opened(token))
        if content.policy != slot.name:
            raise _refusal(
                f"Input should be a token of the policy {slot.name}, not of {content.policy}"
            )
        version = slot.versions.get(content.label)
        if version is None or version.fingerprint != content.fingerprint:
            raise _refusal(
                f"Input is outdated: version {content.label} is not loaded any more, or has "
                f"changed; {_BEGIN}"
            )
        state = _state_of(content.numbers, version)
        return EpisodeMemory(version, state, content.steps, has_action=content.has_action)

    def token_of(self, memory: EpisodeMemory) -> str:
        """Return the token that carries a memory to the next request.

        Args:
            memory: the memory after a step, as `memory_of` returned it before.
        """
        numbers = memory.state.astype(_NUMBERS).tobytes()
        signed = _signed(memory.version, memory.steps, numbers, has_action=memory.has_action)
        return _text_of(self._mac(signed) + signed)

    def _begun(self, version: PolicyVersion) -> EpisodeMemory:
        """Return the memory of an episode that begins, whose token a request can carry."""
        memory = EpisodeMemory.begin(version)
        without = _MAC_BYTES + len(_signed(version, _MOST_STEPS, b"", has_action=True))
        # Base64 has four letters for three bytes.
        needed = (without + _LONGER_HEAD + memory.state.size * _NUMBERS.itemsize) * 4 // 3 + 1
        if needed > self._most_bytes:
            raise UnsupportedAnswerError(
                f"a state token of this policy has up to {needed} bytes, more than a request's "
                f"head can carry ({ENV_PREFIX}MAX_HEADER_BYTES); let the server keep the memory: "
                f"begin a session with POST {address_of(version.name)}, or take a stream"
            )
        return memory

    def _opened(self, token: str) -> bytes:
        """Return the signed part of a token, without its form."""
        try:
            content = base64.b64decode(f"{token}{'=' * (-len(token) % 4)}", b"-_", validate=True)
        except (binascii.Error, ValueError):
            content = b""
        mac, signed = content[:_MAC_BYTES], content[_MAC_BYTES:]
        # The last letter has bits that stand for nothing: no two texts are one token.
        is_ours = hmac.compare_digest(mac, self._mac(signed)) and _text_of(content) == token
        if not is_ours:
            raise _refusal(
                f"Input should be '{NEW_EPISODE}' or the {STATE_HEADER} of the answer before, "
                f"unchanged and of this server; {_BEGIN}"
            )
        if signed[:1] != _FORM:
            raise _refusal(f"Input is a token of another release of the server; {_BEGIN}")
        return signed[1:]

    def _mac(self, signed: bytes) -> bytes:
        assert self._key is not None, "no token is opened or written without one"
        return hmac.digest(self._key, signed, "sha256")


def _content_of(packed: bytes) -> _Content:
    """Return the parts of a signed text, each of its type and in its range."""
    try:
        parts = msgpack.unpackb(packed)
    except (ValueError, TypeError, msgpack.UnpackException):
        parts = None
    is_whole = isinstance(parts, list) and [type(part) for part in parts] == _KINDS
    # The names come back in messages of one line.
    if not is_whole or not all(name.isprintable() for name in parts[:2]):
        raise _refusal(f"Input should have the parts of a token that a server wrote; {_BEGIN}")
    content = _Content(*parts)
    if not 0 <= content.steps <= _MOST_STEPS:
        raise _refusal(f"Input should have 0 to {_MOST_STEPS} steps; {_BEGIN}")
    return content


def _state_of(numbers: bytes, version: PolicyVersion) -> Float32Array:
    """Return the memory in a token: float32[memory_width], which the version can go on from."""
    expected = version.signature.memory_width * _NUMBERS.itemsize
    if len(numbers) != expected:
        raise _refusal(
            f"Input should have {expected} bytes of memory, not {len(numbers)}; {_BEGIN}"
        )
    state: Float32Array = np.frombuffer(numbers, _NUMBERS).astype(np.float32)
    if not np.isfinite(state).all():
        raise _refusal(f"Input should have finite numbers of memory; {_BEGIN}")
    if not version.previous_step.can_follow(state):
        raise _refusal(f"Input should have a previous action of the policy; {_BEGIN}")
    return state


def _text_of(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _refusal(message: str) -> ObservationError:
    return ObservationError([problem("state_token", ["header", STATE_HEADER], message)])
