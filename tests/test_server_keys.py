"""Keys that change while a server runs: the rotation of schema.yaml."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed

from policy_server.access_keys import KeyRing
from policy_server.schema import read_schema_file
from policy_server.server_keys import followed_keys, keys_of
from policy_server.settings import Settings
from tests.support.streams import served
from tests.support.waiting import until

OLD, NEW = "old-key-of-the-plant", "new-key-of-the-plant"


def text_of(**keys: str) -> str:
    entries = [f"{{name: {name}, key: {key}}}" for name, key in keys.items()]
    return f"parameters: {{api_keys: [{', '.join(entries)}]}}\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    known = Settings(home=tmp_path)
    known.schema_path.write_text(text_of(old=OLD))
    return known


def ring_of(settings: Settings) -> KeyRing:
    return KeyRing(keys_of(settings, read_schema_file(settings.schema_path)))


def names(ring: KeyRing) -> list[str]:
    return [key.name for key in ring.keys]


@asynccontextmanager
async def followed(settings: Settings) -> AsyncIterator[KeyRing]:
    ring = ring_of(settings)
    async with followed_keys(ring, settings, look_every_s=0.01):
        yield ring


def test_keys_of_settings_stand_beside_the_listed_ones(settings: Settings) -> None:
    given = settings.model_copy(update={"api_key": SecretStr("a"), "metrics_key": SecretStr("m")})

    keys = keys_of(given, read_schema_file(settings.schema_path))

    assert {key.name: set(key.scopes) for key in keys} == {
        "api_key": {"predict"},
        "metrics_key": {"metrics"},
        "old": {"predict"},
    }


async def test_keys_rotate_without_a_restart(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with followed(settings) as ring:
        settings.schema_path.write_text(text_of(old=OLD, new=NEW))
        await until(lambda: names(ring) == ["old", "new"])
        settings.schema_path.write_text(text_of(new=NEW))
        await until(lambda: names(ring) == ["new"])

    changes = [vars(item) for item in caplog.records if item.message == "keys_changed"]
    assert [(item["valid"], item["removed"]) for item in changes] == [
        (["new", "old"], []),
        (["new"], ["old"]),
    ]


async def test_file_that_cannot_be_read_leaves_the_keys(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(settings) as ring:
        settings.schema_path.write_text("parameters: {api_keys: [{name: new}]}")
        await until(lambda: "keys_not_read" in caplog.text)
        before = names(ring)
        settings.schema_path.write_text(text_of(new=NEW))
        await until(lambda: names(ring) == ["new"])

    assert before == ["old"]


async def test_file_without_a_key_lets_nobody_in(settings: Settings) -> None:
    async with followed(settings) as ring:
        settings.schema_path.write_text("parameters: {discrete: True}")
        await until(lambda: not ring.keys)

    assert not ring.holds(None, "predict")


async def test_removed_key_ends_a_stream_at_its_next_frame(settings: Settings) -> None:
    settings.schema_path.write_text(text_of(old=OLD, new=NEW))
    ring = ring_of(settings)
    frame = '{"cat": 0, "mouse": 1.5}'
    async with (
        served(keys=ring) as server,
        server.stream(additional_headers={"access-token": OLD}) as ended,
        server.stream(additional_headers={"access-token": NEW}) as going_on,
    ):
        for stream in (ended, going_on):
            await stream.send(frame)
            await stream.recv()
        settings.schema_path.write_text(text_of(new=NEW))
        ring.replace(keys_of(settings, read_schema_file(settings.schema_path)))
        await ended.send(frame)
        with pytest.raises(ConnectionClosed) as closed:
            await ended.recv()
        await going_on.send(frame)
        answer = await going_on.recv()
        counted = {
            name: server.counted(f'policy_server_key_requests_total{{key="{name}"}}')
            for name in ("old", "new")
        }

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert "actions" in str(answer)
    # Handshakes count too.
    assert counted == {"old": 2, "new": 3}
