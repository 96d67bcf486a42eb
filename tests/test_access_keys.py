"""The ring of keys: scopes, hashes, changes."""

from __future__ import annotations

import logging

import pytest

from policy_server.access_keys import SHORTEST_HASHED, AccessKey, KeyRing, Scope, random_key
from policy_server.errors import UnauthorizedError

LONG = "a" * SHORTEST_HASHED
PLANT = AccessKey.of("plant", "plant key", "predict")
OPS = AccessKey.of("ops", "ops key", "admin", "metrics")


def carrying(key: str) -> dict[bytes, str]:
    return {b"access-token": key}


@pytest.mark.parametrize(
    ("given", "scope", "expected"),
    [
        ("plant key", "predict", PLANT),
        ("ops key", "admin", OPS),
        ("ops key", "metrics", OPS),
        ("ops key", "predict", None),
        ("plant key", "admin", None),
        ("plant ke", "predict", None),
        ("", "predict", None),
    ],
)
def test_key_opens_its_scopes_alone(given: str, scope: Scope, expected: AccessKey | None) -> None:
    ring = KeyRing([PLANT, OPS])

    if expected is None:
        with pytest.raises(UnauthorizedError, match=r"^wrong (access|admin|metrics) key$"):
            ring.admit(scope, carrying(given))
    else:
        assert ring.admit(scope, carrying(given)) == expected


def test_random_key_does_not_begin_as_an_option_does() -> None:
    drawn = iter(["-first", "--second", "third-_", "fourth"])

    assert random_key(32, lambda _size: next(drawn)) == "third-_"


def test_scope_without_a_key_is_open_until_it_has_had_one() -> None:
    ring = KeyRing([PLANT])

    assert ring.admit("metrics", {}) is None
    ring.replace([PLANT, OPS])
    ring.replace([PLANT])
    with pytest.raises(UnauthorizedError, match="no metrics key; send it in the header"):
        ring.admit("metrics", {})


def test_change_is_counted_and_ends_what_was_let_in() -> None:
    ring = KeyRing([PLANT])
    before = ring.changes
    held = ring.admit("predict", carrying("plant key"))

    ring.replace([PLANT, OPS])
    is_held_beside = ring.holds(held, "predict")
    ring.replace([OPS])

    assert (is_held_beside, ring.holds(held, "predict"), ring.changes - before) == (
        True,
        False,
        2,
    )


def test_hashed_key_opens_by_its_text_and_not_by_its_hash() -> None:
    known = AccessKey.of("plant", LONG)
    ring = KeyRing([AccessKey("plant", known.digest, is_hashed=True)])

    found = ring.admit("predict", carrying(LONG))

    assert found is not None
    assert found.name == "plant"
    for given in (known.digest.hex(), f"sha256:{known.digest.hex()}"):
        with pytest.raises(UnauthorizedError):
            ring.admit("predict", carrying(given))


def test_short_key_behind_a_hash_opens_nothing(caplog: pytest.LogCaptureFixture) -> None:
    short = LONG[:-1]
    ring = KeyRing([AccessKey("plant", AccessKey.of("", short).digest, is_hashed=True)])

    with caplog.at_level(logging.WARNING), pytest.raises(UnauthorizedError, match="wrong"):
        ring.admit("predict", carrying(short))

    [record] = caplog.records
    assert (record.message, vars(record)["key"]) == ("short_key_refused", "plant")
    assert short not in str(vars(record))
