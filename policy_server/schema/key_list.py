"""The access keys of schema.yaml. No message quotes what may be a key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from policy_server.access_keys import HASH, LEAST_RATE, SCOPES, AccessKey, Scope
from policy_server.errors import SchemaError
from policy_server.schema.yaml_document import KeyEntry

__all__ = ["listed_keys", "single_key"]

_HEADER_TEXT = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Of the keys that stand alone, in logs and metrics.
_RESERVED = frozenset({"api_key", "admin_key", "metrics_key"})
# Each name is a label of the metrics, and each key is compared with every request's.
_MOST_KEYS = 64


def single_key(api_key: str | None, source: str) -> str | None:
    """Return `parameters.api_key`, which an HTTP header can carry.

    Args:
        api_key: as it stands in the file.
        source: the file's name.

    Raises:
        SchemaError: if a header can't carry it.
    """
    if api_key is not None:
        _check_text(api_key, f"{source}: parameters.api_key")
    return api_key


def listed_keys(entries: Sequence[KeyEntry] | None, source: str) -> tuple[AccessKey, ...]:
    """Return the keys of `parameters.api_keys`.

    Args:
        entries: as they stand in the file.
        source: the file's name.

    Raises:
        SchemaError: if one can't be used, or two are one.
    """
    where = f"{source}: parameters.api_keys"
    if entries is not None and not 1 <= len(entries) <= _MOST_KEYS:
        raise SchemaError(f"{where}: expected 1 to {_MOST_KEYS} keys, got {len(entries)}")
    keys = tuple(_key(item, f"{where}.{place}") for place, item in enumerate(entries or ()))
    places: dict[str | bytes, int] = {}
    for place, key in enumerate(keys):
        for mark, what in ((key.name, "name"), (key.digest, "key")):
            first = places.setdefault(mark, place)
            if first != place:
                raise SchemaError(
                    f"{where}.{place}: has the {what} of entry {first}; give it its own"
                )
    return keys


def _key(entry: KeyEntry, where: str) -> AccessKey:
    if not _NAME.fullmatch(entry.name) or entry.name in _RESERVED:
        raise SchemaError(
            f"{where}.name: expected up to 63 letters, digits, '.', '-' and '_', beginning with a "
            f"letter or digit, and none of {', '.join(sorted(_RESERVED))}"
        )
    scopes = _scopes(entry.scopes, where)
    _check_limits(entry, where)
    if (entry.key is None) == (entry.hash is None):
        raise SchemaError(f"{where}: expected either key or hash")
    if entry.key is not None:
        _check_text(entry.key, f"{where}.key")
        key = AccessKey.of(entry.name, entry.key, *scopes)
        return replace(key, max_rate=entry.max_rate, max_in_flight=entry.max_in_flight)
    digest = HASH.fullmatch((entry.hash or "").strip())
    if digest is None:
        raise SchemaError(
            f"{where}.hash: expected sha256: and 64 digits of 0-9 and a-f, as `generate.py "
            "hash_key` prints them"
        )
    return AccessKey(
        entry.name,
        bytes.fromhex(digest[1]),
        frozenset(scopes),
        is_hashed=True,
        max_rate=entry.max_rate,
        max_in_flight=entry.max_in_flight,
    )


def _check_limits(entry: KeyEntry, where: str) -> None:
    rate, in_flight = entry.max_rate or 0, entry.max_in_flight or 0
    if rate < 0 or 0 < rate < LEAST_RATE:
        raise SchemaError(f"{where}.max_rate: expected 0, for no limit, or at least {LEAST_RATE:f}")
    if in_flight < 0:
        raise SchemaError(f"{where}.max_in_flight: expected 0, for no limit, or more")


def _scopes(given: Iterable[str] | None, where: str) -> tuple[Scope, ...]:
    names = ["predict"] if given is None else list(given)
    known = tuple(scope for scope in SCOPES if scope in names)
    if not known or not set(names) <= set(SCOPES):
        raise SchemaError(f"{where}.scopes: expected a list of {', '.join(SCOPES)}")
    return known


def _check_text(key: str, where: str) -> None:
    if not _HEADER_TEXT.fullmatch(key):
        raise SchemaError(
            f"{where}: expected printable ASCII text without spaces at its ends; HTTP headers "
            "carry nothing else"
        )
    if HASH.fullmatch(key):
        raise SchemaError(
            f"{where}: expected a key, got the hash of one, which whoever reads it could send; "
            "parameters.api_keys takes it as hash:"
        )
