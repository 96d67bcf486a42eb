"""`python generate.py hash_key`."""

from __future__ import annotations

import io
from hashlib import sha256

import pytest

import generate

KEY = "a-key-of-22-characters"


@pytest.mark.parametrize(
    "text",
    [KEY, f"{KEY}\n", f"\ufeff{KEY}\n"],
    ids=["as it is", "a line", "with a byte order mark"],
)
def test_hash_of_standard_input_is_that_of_sha256sum(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))

    generate.main(["hash_key"])

    assert capsys.readouterr().out == f"sha256:{sha256(KEY.encode()).hexdigest()}\n"


@pytest.mark.parametrize("key", [KEY[1:], f" {KEY}", f"{KEY}ü", f"{KEY}\n{KEY}", ""])
def test_key_that_a_fast_hash_does_not_hide_is_refused(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(key))

    code = generate.main(["hash_key"])

    shown = "".join(capsys.readouterr())
    assert code == 2
    assert "expected 22 or more characters" in shown
    assert not key or key not in shown


def test_random_keys_differ_and_come_with_their_hash(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        generate.main(["hash_key", "--random"])

    first, second = capsys.readouterr().out.split("key:  ")[1:]
    key, digest = first.split("\nhash: ")
    assert first != second
    assert len(key) == 43
    assert digest.strip() == f"sha256:{sha256(key.encode()).hexdigest()}"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_end_of_the_input_on_a_terminal_is_told_of_the_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin", _Terminal())
    monkeypatch.setattr("getpass.getpass", end)

    assert generate.main(["hash_key"]) == 2
    assert "the key: expected one, got the end of the input\n" in capsys.readouterr().err
