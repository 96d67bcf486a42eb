"""Zips of SDKs: generated once for a content, one at a time, and kept on disk."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import logging
import os
import zipfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from policy_server.errors import SdkPendingError
from policy_server.files.atomic import write_whole
from policy_server.files.file_work import finish_in_thread
from policy_server.files.locks import FileLock
from policy_server.files.regular import open_file
from policy_server.sdk.generator import Files, generate, generator_version
from policy_server.sdk.languages import LANGUAGES, SDK_NAME, Language, LanguageName
from policy_server.sdk.openapi_document import Document

__all__ = ["Sdk", "SdkStore", "files_of"]

logger = logging.getLogger(__name__)

Generate = Callable[
    [Document, Sequence[Language]], Coroutine[Any, Any, Mapping[LanguageName, Files]]
]

_KEPT_ZIPS = 32
# Zip files know no time before 1980, and no time is needed: the same SDK is the same bytes.
_NO_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644 << 16


@dataclass(frozen=True)
class Sdk:
    """A zip to download.

    Attributes:
        file_name: its name when it is downloaded.
        key: the digest of all that it is made from.
        languages: the languages in it.
        document: the OpenAPI document that it is generated from.
    """

    file_name: str
    key: str
    languages: tuple[LanguageName, ...]
    document: Document

    @classmethod
    def of(cls, document: Document, languages: Sequence[LanguageName]) -> Sdk:
        """Name the SDK of a document.

        Args:
            document: the result of `prepare_document`.
            languages: one or several, each in a folder of its own.

        Raises:
            MissingPackageError: if the generator is not installed.
        """
        single = len(languages) == 1
        return cls(
            f"{SDK_NAME}-{languages[0]}.zip" if single else f"{SDK_NAME}s.zip",
            _key(document, languages),
            tuple(languages),
            document,
        )


class SdkStore:
    """A folder of zips, of which the ones used last are kept. Several processes may share it."""

    def __init__(
        self,
        folder: Path,
        *,
        generate: Generate = generate,
    ) -> None:
        """Own the zips in a folder, which is made with the first one.

        Args:
            folder: holds the zips.
            generate: writes SDKs.
        """
        self._folder = folder
        self._generate = generate
        self._running: dict[str, asyncio.Task[bytes]] = {}
        self._one_at_a_time = asyncio.Lock()
        # Where the folder can't be written, as in a read-only container.
        self._in_memory: dict[str, bytes] = {}

    async def fetch(self, sdk: Sdk, *, wait_s: float | None = None) -> bytes:
        """Return the zip; generate it if it is not there.

        Args:
            sdk: the zip that is asked for.
            wait_s: the longest wait in seconds. The generator runs on after it.

        Raises:
            SdkPendingError: if the wait was not long enough.
            SdkError: if it can't be generated.
        """
        content = await asyncio.to_thread(self._read, sdk.key)
        if content is not None:
            return content
        task = self._running.get(sdk.key)
        if task is None:
            task = asyncio.create_task(self._make(sdk))
            self._running[sdk.key] = task
            task.add_done_callback(functools.partial(self._forget, sdk.key))
        done, _ = await asyncio.wait([task], timeout=wait_s)
        if not done:
            raise SdkPendingError(
                "the client library is being generated; try again in a few seconds"
            )
        return task.result()

    async def aclose(self) -> None:
        """Stop the generators that still run."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, key: str, task: asyncio.Task[bytes]) -> None:
        del self._running[key]
        # The error of a request that has gone is in the log already.
        if not task.cancelled():
            task.exception()

    async def _make(self, sdk: Sdk) -> bytes:
        async with self._one_at_a_time, await finish_in_thread(self._lock_of_processes):
            kept = await asyncio.to_thread(self._read, sdk.key)
            if kept is not None:
                return kept
            parts = await self._fetch_parts(sdk)
            content = parts[0]
            if len(parts) > 1:
                content = await asyncio.to_thread(_bundle, parts)
                await asyncio.to_thread(self._write, sdk.key, content)
        return content

    async def _fetch_parts(self, sdk: Sdk) -> list[bytes]:
        """Return the zip of each language of an SDK; generate together those that are not there."""
        keys = {name: await asyncio.to_thread(_key, sdk.document, [name]) for name in sdk.languages}
        kept = {name: await asyncio.to_thread(self._read, key) for name, key in keys.items()}
        zips = {name: content for name, content in kept.items() if content is not None}
        missing = [name for name in sdk.languages if name not in zips]
        if missing:
            made = await self._generate(sdk.document, [LANGUAGES[name] for name in missing])
            for name, files in made.items():
                folder = PurePosixPath(name)
                files = {folder / path: text for path, text in files.items()}
                zips[name] = await asyncio.to_thread(_zip, files)
                await asyncio.to_thread(self._write, keys[name], zips[name])
            logger.info("sdk_generated", extra={"languages": missing})
        return [zips[name] for name in sdk.languages]

    def _lock_of_processes(self) -> AbstractAsyncContextManager[object]:
        """Return the lock by which processes take turns; in a read-only folder there is none."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return FileLock(self._folder / ".lock")
        except OSError:
            return nullcontext()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.zip"

    def _read(self, key: str) -> bytes | None:
        try:
            with open_file(self._path(key)) as file:
                content = file.read()
        except OSError:
            return self._in_memory.get(key)
        with suppress(OSError):
            os.utime(self._path(key))
        return content

    def _write(self, key: str, content: bytes) -> None:
        """Write a zip; it appears complete or not at all."""
        try:
            write_whole(self._path(key), content)
            kept = sorted(self._folder.glob("*.zip"), key=lambda path: path.stat().st_mtime)
            for path in kept[:-_KEPT_ZIPS]:
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("sdk_kept_in_memory", extra={"reason": str(error)})
            self._in_memory[key] = content
            if len(self._in_memory) > _KEPT_ZIPS:
                del self._in_memory[next(iter(self._in_memory))]


def files_of(content: bytes) -> dict[PurePosixPath, bytes]:
    """Return the files of a zip; the first part of a path is the language.

    Args:
        content: the result of `SdkStore.fetch`.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {PurePosixPath(name): archive.read(name) for name in archive.namelist()}


def _zip(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(files):
            entry = zipfile.ZipInfo(path.as_posix(), _NO_TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, _MODE
            archive.writestr(entry, files[path])
    return buffer.getvalue()


def _bundle(parts: Sequence[bytes]) -> bytes:
    return _zip({path: text for part in parts for path, text in files_of(part).items()})


def _key(document: Document, languages: Sequence[LanguageName]) -> str:
    # The order of the document counts: it is the order of arguments in the code.
    parts = [document, list(languages), generator_version(), _fingerprint()]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


@functools.cache
def _fingerprint() -> str:
    """Return the digest of this package's own code, which has the options and the READMEs."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
