"""The hash of an access key, for a schema.yaml that shall not hold the key itself."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator

from policy_server.access_keys import SHORTEST_HASHED, AccessKey, random_key
from policy_server.errors import UsageError

__all__ = ["hash_key"]

_RANDOM_BYTES = 32


def hash_key(*, is_random: bool) -> Iterator[str]:
    """Give the hash of a key in the form of `parameters.api_keys`.

    Args:
        is_random: make a new key; else it is read from the terminal, without showing it, or from
            standard input. It is never an argument, which other users of the machine could see.

    Yields:
        The new key, if there is one, and the hash.

    Raises:
        UsageError: if the key is too short to be known by a fast hash, or can't be in a header.
    """
    if is_random:
        key = random_key(_RANDOM_BYTES)
        yield f"key:  {key}"
        yield f"hash: {_hash_of(key)}"
        return
    yield _hash_of(_read())


def _read() -> str:
    if sys.stdin.isatty():
        try:
            return getpass.getpass("key: ")
        except EOFError as error:
            raise UsageError("the key: expected one, got the end of the input") from error
    # A pipe of PowerShell begins with a byte order mark.
    return sys.stdin.read().removeprefix("\ufeff").removesuffix("\n")


def _hash_of(key: str) -> str:
    if (
        len(key) < SHORTEST_HASHED
        or not (key.isascii() and key.isprintable())
        or key != key.strip()
    ):
        raise UsageError(
            f"the key: expected {SHORTEST_HASHED} or more characters of printable ASCII without "
            "spaces at its ends, since its hash is a fast one; --random makes one"
        )
    return f"sha256:{AccessKey.of('', key).digest.hex()}"
