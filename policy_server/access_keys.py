"""The access keys of a server: who may ask it, by name and scope.

A key is known by its SHA-256 alone. Every request is checked, so a slow hash (bcrypt, scrypt,
Argon2) would take longer than the answer; slow hashes make up for passwords that people can
remember, and a random key of 22 characters (128 bits) can't be found from its SHA-256. Shorter keys
are therefore not accepted where schema.yaml has the hash alone.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from typing import Literal, get_args

from policy_server.errors import UnauthorizedError

__all__ = [
    "HASH",
    "LEAST_RATE",
    "SCOPES",
    "SHORTEST_HASHED",
    "AccessKey",
    "KeyRing",
    "Scope",
    "random_key",
]

logger = logging.getLogger(__name__)

Scope = Literal["predict", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
SHORTEST_HASHED = 22
"""The fewest characters of a key that is given by its hash."""

HASH = re.compile(r"sha256:([0-9a-f]{64})")
"""A key's hash, as `generate.py hash_key` prints it; nothing that opens anything itself."""

LEAST_RATE = 1e-6
"""The least limit of observations a second: one in twelve days."""


def random_key(size: int, draw: Callable[[int], str] = secrets.token_urlsafe) -> str:
    """Return a new key of letters, digits, - and _, which does not begin with -.

    A key that does looks like an option to a command line that it is given to, such as curl's.

    Args:
        size: of its randomness, in bytes.
        draw: gives the text of so many random bytes.
    """
    while (key := draw(size)).startswith("-"):
        """Draw again: one of 64 begins so."""
    return key


_CALLED: dict[Scope, str] = {"predict": "access", "admin": "admin", "metrics": "metrics"}


@dataclass(frozen=True)
class AccessKey:
    """One key.

    Attributes:
        name: stands for the key in logs and metrics.
        digest: the SHA-256 of the key in UTF-8.
        scopes: the routes that it opens: those of policies, those that change versions, the port of
            the metrics.
        is_hashed: whether the server was given the digest alone.
        max_rate: see `ClientLimit`; None takes the server's limit of all keys.
        max_in_flight: see `ClientLimit`; None takes the server's.
    """

    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope] = frozenset({"predict"})
    is_hashed: bool = False
    max_rate: float | None = None
    max_in_flight: int | None = None

    @classmethod
    def of(cls, name: str, key: str, *scopes: Scope) -> AccessKey:
        """Return the key of a text.

        Args:
            name: stands for it in logs and metrics.
            key: the text that clients send.
            scopes: the routes that it opens; `predict` if left out.
        """
        return cls(name, sha256(key.encode()).digest(), frozenset(scopes or ("predict",)))


class KeyRing:
    """The keys that are valid now; they may change while the server runs.

    A scope that once had a key asks for one until the process ends, so that removing the last key
    lets nobody in.

    Attributes:
        changes: how often the keys have changed; whoever remembers that a request was let in has to
            ask again then.
    """

    def __init__(self, keys: Iterable[AccessKey] = ()) -> None:
        """Own the keys.

        Args:
            keys: those that are valid; a scope without any is open to everybody.
        """
        self._keys: tuple[AccessKey, ...] = ()
        self._closed: frozenset[Scope] = frozenset()
        self.changes = 0
        self.replace(keys)

    @property
    def keys(self) -> tuple[AccessKey, ...]:
        """Return the keys that are valid."""
        return self._keys

    def replace(self, keys: Iterable[AccessKey]) -> None:
        """Take other keys from now on; those that are not among them open nothing any more.

        Args:
            keys: all that are valid.
        """
        self._keys = tuple(keys)
        self._closed = self._closed.union(*(key.scopes for key in self._keys))
        self.changes += 1

    def admit(self, scope: Scope, headers: Mapping[bytes, str]) -> AccessKey | None:
        """Return the key that a request carries.

        Args:
            scope: of the route that it asks.
            headers: `access-token` or `authorization`, by their names in lower case.

        Returns:
            The key; None where the scope is open to everybody.

        Raises:
            UnauthorizedError: if it carries none, or none of this scope.
        """
        if scope not in self._closed:
            return None
        called = _CALLED[scope]
        given = _given(headers)
        if given is None:
            raise UnauthorizedError(
                f"no {called} key; send it in the header 'access-token' or as "
                "'Authorization: Bearer'"
            )
        key = self._find(given, scope)
        if key is None:
            raise UnauthorizedError(f"wrong {called} key")
        return key

    def holds(self, key: AccessKey | None, scope: Scope) -> bool:
        """Return whether a request that was let in would be let in now.

        Args:
            key: as `admit` returned it.
            scope: of its route.
        """
        if key is None:
            return scope not in self._closed
        # Its limits may have changed.
        known = (key.name, key.digest)
        return any(known == (one.name, one.digest) and scope in one.scopes for one in self._keys)

    def _find(self, given: str, scope: Scope) -> AccessKey | None:
        """Compare with all keys, each in constant time, whichever it is."""
        digest = sha256(given.encode()).digest()
        equal = [key for key in self._keys if compare_digest(digest, key.digest)]
        for key in equal:
            if key.is_hashed and len(given) < SHORTEST_HASHED:
                logger.warning(
                    "short_key_refused",
                    extra={
                        "key": key.name,
                        "reason": f"a key that is given by its hash has {SHORTEST_HASHED} "
                        "characters or more; make one with `generate.py hash_key --random`",
                    },
                )
            elif scope in key.scopes:
                return key
        return None


def _given(headers: Mapping[bytes, str]) -> str | None:
    given = headers.get(b"access-token")
    scheme, _, token = headers.get(b"authorization", "").partition(" ")
    if given is None and scheme.lower() == "bearer":
        return token.strip()
    return given
