"""Fixtures of the commands: a folder of their own, no settings from outside, and a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from policy_server.settings import Settings
from tests.support.servers import live_server


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("API_KEY", "HOME"):
        monkeypatch.delenv(f"POLICY_SERVER_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live_server() as address:
        yield address
