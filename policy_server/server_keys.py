"""The keys of a server, from settings and schema.yaml, read again while it runs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from policy_server.access_keys import AccessKey, KeyRing, Scope
from policy_server.errors import PolicyServerError, SettingsError
from policy_server.schema import SchemaFile, read_schema_file
from policy_server.settings import ENV_PREFIX, Settings

__all__ = ["followed_keys", "keys_of"]

logger = logging.getLogger(__name__)

# A change is taken when the file was the same twice: within a second of its last write.
_LOOK_EVERY_S = 0.4

_Stamp = tuple[int, int, int, int]


def keys_of(settings: Settings, file: SchemaFile) -> tuple[AccessKey, ...]:
    """Return all keys of a server: those of its settings, and those of schema.yaml.

    Args:
        settings: its `api_key` stands in place of schema.yaml's `api_key`.
        file: the contents of schema.yaml.

    Raises:
        SettingsError: if one that opens the routes of versions is the key of other clients too, or
            one text is two keys of one scope.
    """
    api_key = file.api_key if settings.api_key is None else settings.api_key.get_secret_value()
    keys = [] if api_key is None else [AccessKey.of("api_key", api_key, "predict")]
    of_settings: dict[str, Scope] = {"admin_key": "admin", "metrics_key": "metrics"}
    for name, scope in of_settings.items():
        key = getattr(settings, name)
        if key is not None:
            keys.append(AccessKey.of(name, key.get_secret_value(), scope))
    keys += file.api_keys
    _check_admin_keys(keys, file.source)
    _check_twins(keys, settings, file.source)
    return tuple(keys)


def _check_admin_keys(keys: Sequence[AccessKey], source: str) -> None:
    """Refuse one text as two keys, by which clients without the scope `admin` would have it."""
    holders = {key.digest: key.name for key in keys if "admin" in key.scopes}
    for key in keys:
        holder = holders.get(key.digest)
        if holder is not None and "predict" in key.scopes and "admin" not in key.scopes:
            is_setting = holder == "admin_key"
            where = f"{ENV_PREFIX}ADMIN_KEY" if is_setting else f"{source}: key {holder!r}"
            raise SettingsError(
                f"{where}: is the access key {key.name!r} too, whose clients could change "
                "versions; give it a text of its own"
            )


def _check_twins(keys: Sequence[AccessKey], settings: Settings, source: str) -> None:
    """Refuse one text as two keys of a scope, the first of which would hide the other's limits.

    A client would keep its access, too, when one of them is taken out.
    """
    first: dict[tuple[bytes, Scope], AccessKey] = {}
    for key in keys:
        for scope in sorted(key.scopes):
            twin = first.setdefault((key.digest, scope), key)
            if twin is not key:
                is_setting = getattr(settings, twin.name, None) is not None
                setting = f"{ENV_PREFIX}{twin.name.upper()}"
                raise SettingsError(
                    f"{source}: key {key.name!r}: is the text of "
                    f"{setting if is_setting else f'parameters.{twin.name}'} too, which has the "
                    f"scope {scope} without its limits; give it a text of its own, or leave one "
                    "of them out"
                )


@asynccontextmanager
async def followed_keys(
    keys: KeyRing, settings: Settings, *, look_every_s: float = _LOOK_EVERY_S
) -> AsyncIterator[None]:
    """Take over the keys of schema.yaml whenever it changes, while the block runs.

    A file that can't be read leaves the keys as they are, with a line in the log, and is tried
    again until it can.

    Args:
        keys: the server's.
        settings: where schema.yaml lies.
        look_every_s: how often the file is looked at, in seconds.
    """
    task = asyncio.create_task(_follow(keys, settings, look_every_s))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _follow(keys: KeyRing, settings: Settings, look_every_s: float) -> None:
    following = _Following(keys, settings)
    while True:
        try:
            await following.look()
        except Exception as error:
            # A key that is taken out later must not stay valid because this has ended.
            following.tell_once(f"internal error, {type(error).__name__}", error)
        await asyncio.sleep(look_every_s)


class _Following:
    """The states of schema.yaml that were seen and read last."""

    def __init__(self, keys: KeyRing, settings: Settings) -> None:
        self._keys = keys
        self._settings = settings
        # What has been read at the start may have changed since.
        self._read: _Stamp | None = None
        self._seen: _Stamp | str | None = None
        self._told = ""

    async def look(self) -> None:
        """Read the keys of a file that is not the one that was read last."""
        stamp = await asyncio.to_thread(_stamp, self._settings.schema_path)
        is_settled, self._seen = stamp == self._seen, stamp
        # One that is being written, or has gone for a moment, is waited for.
        if not is_settled:
            return
        if isinstance(stamp, str):
            self.tell_once(stamp)
        elif stamp == self._read:
            self._told = ""
        else:
            await self._read_again(stamp)

    def tell_once(self, reason: str, error: Exception | None = None) -> None:
        """Log a failure that may last: each look would log it again."""
        if reason != self._told:
            self._told = reason
            _tell(reason, error)

    async def _read_again(self, stamp: _Stamp) -> None:
        try:
            file = await asyncio.to_thread(read_schema_file, self._settings.schema_path)
            now = keys_of(self._settings, file)
        except PolicyServerError as error:
            if isinstance(error.__cause__, OSError):
                # It may be read at the next look, although it does not change.
                self.tell_once(error.message)
            else:
                self._read = stamp
                _tell(error.message)
            return
        _take(self._keys, now)
        self._read, self._told = stamp, ""


def _stamp(path: Path) -> _Stamp | str:
    """Return by what a file is known, its rights among it; a text tells why it can't be found."""
    try:
        found = os.stat(path)  # noqa: PTH116 -- a link is followed, as Kubernetes changes it
    except OSError as error:
        return f"{path}: can't be found: {error.strerror or error}"
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _tell(reason: str, error: Exception | None = None) -> None:
    logger.error("keys_not_read", extra={"reason": f"{reason}; the keys stay"}, exc_info=error)


def _take(keys: KeyRing, now: Sequence[AccessKey]) -> None:
    before = keys.keys
    if before == now:
        return
    keys.replace(now)
    logger.info(
        "keys_changed",
        extra={
            "valid": sorted({key.name for key in now}),
            "removed": sorted({key.name for key in before} - {key.name for key in now}),
        },
    )
