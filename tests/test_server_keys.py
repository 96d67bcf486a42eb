"""Keys that change while a server runs: the rotation of schema.yaml."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed

from policy_server.access_keys import AccessKey, KeyRing
from policy_server.errors import SettingsError
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


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [vars(item) for item in caplog.records if item.message == "keys_not_read"]
    return [item["reason"] for item in told]


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


@pytest.mark.parametrize(
    ("schema", "given", "message"),
    [
        pytest.param(
            f"parameters: {{api_key: {OLD}}}\n",
            {"admin_key": OLD},
            "POLICY_SERVER_ADMIN_KEY: is the access key 'api_key' too",
            id="schema.yaml's key",
        ),
        pytest.param(
            text_of(old=NEW),
            {"admin_key": OLD, "api_key": OLD},
            "POLICY_SERVER_ADMIN_KEY: is the access key 'api_key' too",
            id="a setting",
        ),
        pytest.param(
            text_of(new=NEW, old=OLD),
            {"admin_key": OLD},
            "POLICY_SERVER_ADMIN_KEY: is the access key 'old' too",
            id="a listed key",
        ),
        pytest.param(
            "parameters: {api_keys: [{name: old, hash: "
            f"'sha256:{sha256((OLD * 2).encode()).hexdigest()}'}}]}}\n",
            {"admin_key": OLD * 2},
            "POLICY_SERVER_ADMIN_KEY: is the access key 'old' too",
            id="the hash of a listed key",
        ),
        pytest.param(
            f"parameters: {{api_keys: [{{name: ops, key: {OLD}, scopes: [admin]}}]}}\n",
            {"api_key": OLD},
            "schema.yaml: key 'ops': is the access key 'api_key' too",
            id="a listed key of administrators",
        ),
    ],
)
def test_admin_key_that_clients_have_is_refused_in_one_line(
    settings: Settings, schema: str, given: dict[str, str], message: str
) -> None:
    settings.schema_path.write_text(schema)
    known = settings.model_copy(update={name: SecretStr(key) for name, key in given.items()})

    with pytest.raises(SettingsError) as caught:
        keys_of(known, read_schema_file(known.schema_path))

    expected = ", whose clients could change versions; give it a text of its own"
    assert caught.value.message.endswith(message + expected)
    assert OLD not in caught.value.message


@pytest.mark.parametrize(
    ("schema", "given", "message"),
    [
        pytest.param(
            f"parameters: {{api_key: {OLD}, api_keys: [{{name: plant, key: {OLD}}}]}}\n",
            {},
            "key 'plant': is the text of parameters.api_key too, which has the scope predict",
            id="schema.yaml's key",
        ),
        pytest.param(
            text_of(plant=OLD),
            {"api_key": OLD},
            "key 'plant': is the text of POLICY_SERVER_API_KEY too, which has the scope predict",
            id="a setting",
        ),
        pytest.param(
            "parameters: {api_keys: [{name: plant, hash: "
            f"'sha256:{sha256(OLD.encode()).hexdigest()}'}}]}}\n",
            {"api_key": OLD},
            "key 'plant': is the text of POLICY_SERVER_API_KEY too, which has the scope predict",
            id="a hash",
        ),
        pytest.param(
            f"parameters: {{api_keys: [{{name: ops, key: {OLD}, scopes: [predict, admin]}}]}}\n",
            {"admin_key": OLD},
            "key 'ops': is the text of POLICY_SERVER_ADMIN_KEY too, which has the scope admin",
            id="the admin key",
        ),
        pytest.param(
            f"parameters: {{api_keys: [{{name: page, key: {OLD}, scopes: [metrics]}}]}}\n",
            {"metrics_key": OLD},
            "key 'page': is the text of POLICY_SERVER_METRICS_KEY too, which has the scope metrics",
            id="the metrics key",
        ),
    ],
)
def test_one_text_as_two_keys_of_a_scope_is_refused_in_one_line(
    settings: Settings, schema: str, given: dict[str, str], message: str
) -> None:
    settings.schema_path.write_text(schema)
    known = settings.model_copy(update={name: SecretStr(key) for name, key in given.items()})

    with pytest.raises(SettingsError) as caught:
        keys_of(known, read_schema_file(known.schema_path))

    expected = " without its limits; give it a text of its own, or leave one of them out"
    assert caught.value.message.endswith(f"schema.yaml: {message}{expected}")
    assert OLD not in caught.value.message


def test_one_text_may_be_two_keys_of_other_scopes(settings: Settings) -> None:
    given = settings.model_copy(update={"metrics_key": SecretStr(OLD)})

    keys = keys_of(given, read_schema_file(settings.schema_path))

    assert [key.name for key in keys] == ["metrics_key", "old"]


async def test_admin_key_is_not_taken_over_as_an_access_key(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    admin = settings.model_copy(update={"admin_key": SecretStr(NEW)})
    async with followed(admin) as ring:
        settings.schema_path.write_text(text_of(new=NEW))
        await until(lambda: "keys_not_read" in caplog.text)

    assert names(ring) == ["admin_key", "old"]


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


async def test_file_that_could_not_be_read_for_a_while_is_tried_again(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(text_of(new=NEW))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with followed(settings) as ring:
        # No file can be opened, and each can be found. The three of the process stay
        # within the limit: poll() refuses more than that, in every thread.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            other.replace(settings.schema_path)
            await until(lambda: "keys_not_read" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await until(lambda: names(ring) == ["new"])

    assert "Too many open files; the keys stay" in reasons(caplog)[0]


async def test_file_that_changes_within_its_time_and_size_is_read_again(
    settings: Settings,
) -> None:
    async with followed(settings) as ring:
        settings.schema_path.write_text(text_of(one=OLD))
        await until(lambda: names(ring) == ["one"])
        before = settings.schema_path.stat()
        settings.schema_path.write_text(text_of(two=OLD))
        os.utime(settings.schema_path, ns=(before.st_atime_ns, before.st_mtime_ns))
        await until(lambda: names(ring) == ["two"])

    after = settings.schema_path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


async def test_file_that_has_gone_is_told_each_time_and_leaves_the_keys(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(settings) as ring:
        settings.schema_path.unlink()
        await until(lambda: len(reasons(caplog)) == 1)
        settings.schema_path.write_text(text_of(new=NEW))
        await until(lambda: names(ring) == ["new"])
        settings.schema_path.unlink()
        await until(lambda: len(reasons(caplog)) == 2)

    assert names(ring) == ["new"]
    for reason in reasons(caplog):
        assert reason.endswith(
            "schema.yaml: can't be found: No such file or directory; the keys stay"
        )


class FailingRing(KeyRing):
    """Takes no other keys until it is mended."""

    is_mended = True

    def replace(self, keys: Iterable[AccessKey]) -> None:
        if not self.is_mended:
            raise ValueError("broken")
        super().replace(keys)


async def test_failure_of_ours_is_told_and_ends_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    ring = FailingRing(keys_of(settings, read_schema_file(settings.schema_path)))
    ring.is_mended = False
    async with followed_keys(ring, settings, look_every_s=0.01):
        settings.schema_path.write_text(text_of(new=NEW))
        await until(lambda: reasons(caplog))
        ring.is_mended = True
        await until(lambda: names(ring) == ["new"])

    assert reasons(caplog) == ["internal error, ValueError; the keys stay"]


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
