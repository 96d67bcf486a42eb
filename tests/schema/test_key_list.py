"""The keys of schema.yaml: one alone, or a list with names and scopes."""

from __future__ import annotations

from hashlib import sha256

import pytest

from policy_server.access_keys import AccessKey
from policy_server.errors import SchemaError
from policy_server.schema import parse_schema_file, public_schema

HASH = sha256(b"x" * 22).hexdigest()


def listed(entries: str) -> str:
    return f"parameters: {{api_keys: [{entries}]}}"


def test_list_gives_names_scopes_and_digests() -> None:
    file = parse_schema_file(
        listed(f"{{name: plant, key: k}}, {{name: ops, hash: 'sha256:{HASH}', scopes: [admin]}}")
    )

    assert file.api_key is None
    assert file.api_keys == (
        AccessKey.of("plant", "k", "predict"),
        AccessKey("ops", bytes.fromhex(HASH), frozenset({"admin"}), is_hashed=True),
    )
    assert "digest" not in repr(file.api_keys)
    assert "keys" not in str(public_schema(next(iter(file)).schema))


@pytest.mark.parametrize("key", ["key: k", f"hash: 'sha256:{HASH}'"], ids=["key", "hash"])
def test_key_may_have_limits_of_its_own(key: str) -> None:
    limits = "max_rate: 0.5, max_in_flight: 8"

    file = parse_schema_file(listed(f"{{name: a, {key}, {limits}}}, {{name: b, key: l}}"))

    found = [(known.max_rate, known.max_in_flight) for known in file.api_keys]
    assert found == [(0.5, 8), (None, None)]


def test_list_stands_beside_the_policies() -> None:
    file = parse_schema_file("policies: {door: {model: m}}\n" + listed("{name: plant, key: k}"))

    assert [key.name for key in file.api_keys] == ["plant"]
    assert next(iter(file)).schema.policy_part().api_keys == ()


MISTAKES = {
    "none": ("", ": expected 1 to 64 keys, got 0"),
    "too many": (
        ", ".join(f"{{name: k{at}, key: k{at}}}" for at in range(65)),
        ": expected 1 to 64 keys, got 65",
    ),
    "both": (f"{{name: a, key: k, hash: 'sha256:{HASH}'}}", ".0: expected either key or hash"),
    "neither": ("{name: a}", ".0: expected either key or hash"),
    "reserved name": (
        "{name: admin_key, key: k}",
        ".0.name: expected up to 63 letters, digits, '.', '-' and '_', beginning with a letter or "
        "digit, and none of admin_key, api_key, metrics_key",
    ),
    "other scope": (
        "{name: a, key: k, scopes: [predict, write]}",
        ".0.scopes: expected a list of predict, admin, metrics",
    ),
    "no scope": (
        "{name: a, key: k, scopes: []}",
        ".0.scopes: expected a list of predict, admin, metrics",
    ),
    "other hash": (
        "{name: a, hash: 'md5:00'}",
        ".0.hash: expected sha256: and 64 digits of 0-9 and a-f, as `generate.py hash_key` prints "
        "them",
    ),
    "a hash as key": (
        f"{{name: a, key: 'sha256:{HASH}'}}",
        ".0.key: expected a key, got the hash of one, which whoever reads it could send; "
        "parameters.api_keys takes it as hash:",
    ),
    "one name": (
        "{name: a, key: k}, {name: a, key: l}",
        ".1: has the name of entry 0; give it its own",
    ),
    "one key": (
        f"{{name: a, hash: 'sha256:{HASH}'}}, {{name: b, key: {'x' * 22}}}",
        ".1: has the key of entry 0; give it its own",
    ),
    "unknown word": (
        "{name: a, key: k, scope: [admin]}",
        ".0: has an unknown key; expected name, key, hash, scopes, max_rate, max_in_flight",
    ),
    "a negative limit": (
        "{name: a, key: k, max_rate: -1}",
        ".0.max_rate: expected 0, for no limit, or at least 0.000001",
    ),
    "a rate that is nearly none": (
        "{name: a, key: k, max_rate: 1.0e-320}",
        ".0.max_rate: expected 0, for no limit, or at least 0.000001",
    ),
    "a negative number of requests": (
        "{name: a, key: k, max_in_flight: -1}",
        ".0.max_in_flight: expected 0, for no limit, or more",
    ),
    "a part of a request": (
        "{name: a, key: k, max_in_flight: 1.5}",
        ".0.max_in_flight: expected a valid integer, got text",
    ),
    "no number": (
        "{name: a, key: k, max_rate: many}",
        ".0.max_rate: expected a number, got text",
    ),
}


@pytest.mark.parametrize(("entries", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_line(entries: str, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema_file(listed(entries))

    assert caught.value.message == f"schema.yaml: parameters.api_keys{message}"
