"""Fetching the policy's zip and schema.yaml: both are checked together and replaced together."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from policy_server.engine.cache import carry_outcome
from policy_server.errors import ModelError, PolicyServerError, SchemaError
from policy_server.files.atomic import write_whole
from policy_server.files.replacement import incoming_folder, replaced, restore_interrupted
from policy_server.formats.finding import find_policy
from policy_server.formats.unpacking import unpack_model
from policy_server.remote_files.download import Limits, OnProgress, UnreachableError, download
from policy_server.remote_files.uris import RemoteUri, parse_uri
from policy_server.schema import read_schema
from policy_server.settings import ENV_PREFIX, Settings

__all__ = ["FetchedFile", "PairCheck", "bring_files", "fetch_files"]

logger = logging.getLogger(__name__)

_RECORD = ".fetched.json"
_MOST_SCHEMA_BYTES = 1024 * 1024

# Raises the errors that a start would have with an unzipped policy and its schema.yaml; None stands
# for no schema.yaml.
PairCheck = Callable[[Path, Path | None], None]


@dataclass(frozen=True)
class FetchedFile:
    """A file that was fetched, now or before.

    Attributes:
        path: the file on this machine.
        source: its address, in the form that may be shown.
        size: in bytes.
        sha256: the content's digest.
        state: `fetched` now; `unchanged`, since it is what was there already; or `outdated` at
            worst, since the store could not be reached.
    """

    path: Path
    source: str
    size: int
    sha256: str
    state: Literal["fetched", "unchanged", "outdated"]


@dataclass(frozen=True)
class _Copy:
    """A file fetched before: the record names it, and the file on disk still has its digest."""

    identity: str
    sha256: str
    size: int
    etag: str | None


def bring_files(settings: Settings, *, check: PairCheck) -> None:
    """Fetch the files that the settings name, before a server reads them.

    Where a store can't be reached, files fetched earlier from the same addresses are served.

    Args:
        settings: the addresses, the folder, and the limits.
        check: the check that both have to pass before they replace the old files.

    Raises:
        SettingsError: if an address can't be used.
        ModelError: if a file can't be fetched or put in place.
        SchemaError: if the fetched schema.yaml is wrong.
        PolicyServerError: as `check` raises it.
    """
    with _as_model_errors(settings.home):
        restore_interrupted(settings.home)
    if settings.model_uri is None and settings.schema_uri is None:
        return
    model = schema = None
    if settings.model_uri is not None:
        model = parse_uri(settings.model_uri.get_secret_value(), name=f"{ENV_PREFIX}MODEL_URI")
    if settings.schema_uri is not None:
        schema = parse_uri(settings.schema_uri.get_secret_value(), name=f"{ENV_PREFIX}SCHEMA_URI")
    fetch_files(settings, model=model, schema=schema, check=check, is_outdated_allowed=True)


def fetch_files(
    settings: Settings,
    *,
    model: RemoteUri | None,
    schema: RemoteUri | None,
    check: PairCheck,
    is_outdated_allowed: bool = False,
    on_progress: OnProgress = lambda _done, _total: None,
) -> list[FetchedFile]:
    """Fetch the policy's zip, schema.yaml or both, check them, and put them in place together.

    The zip becomes saved_model.zip, whatever its format and name.

    A file that is there already is not fetched again: a pinned one if its digest is right, any
    other if the store says that its version is still the same.

    Args:
        settings: the folder and the limits.
        model: the address of the policy's zip; None leaves the file that is there.
        schema: the address of schema.yaml; None leaves the file that is there.
        check: the check that both have to pass before they replace the old files.
        is_outdated_allowed: keep a copy from the same address if the store can't be reached.
        on_progress: is called with the bytes done and all bytes, for each file.

    Returns:
        The files that were asked for, in the order schema.yaml, saved_model.zip.

    Raises:
        ModelError: if a file can't be fetched, is damaged, or can't be put in place.
        SchemaError: if schema.yaml is wrong.
        PolicyServerError: as `check` raises it. After any of these errors both files are as they
            were before.
    """
    wanted = {settings.schema_path: schema, settings.zip_path: model}
    sources = {path: uri for path, uri in wanted.items() if uri is not None}
    with _as_model_errors(settings.home):
        pinned = [_pinned_file(path, uri) for path, uri in sources.items()]
        if (kept := [file for file in pinned if file is not None]) and len(kept) == len(pinned):
            return kept
        with incoming_folder(settings.home) as folder:
            fetcher = _Fetcher(settings, folder, on_progress)
            try:
                files = [fetcher.fetch(path, uri) for path, uri in sources.items()]
            except UnreachableError as error:
                # Both are kept or none: a new file and an old one may not fit.
                copies = fetcher.copies_of(sources)
                if not is_outdated_allowed or copies is None:
                    raise
                logger.warning("fetch_failed_and_copy_served", extra={"reason": error.message})
                return copies
            fetcher.put_in_place(files, check)
    return files


class _Fetcher:
    """Fetches files to a folder of its own, and moves them from there."""

    def __init__(self, settings: Settings, folder: Path, on_progress: OnProgress) -> None:
        self._settings = settings
        self._folder = folder
        self._on_progress = on_progress
        self._copies = _read_record(settings)
        self._new: dict[str, _Copy] = {}

    def fetch(self, path: Path, uri: RemoteUri) -> FetchedFile:
        if (pinned := _pinned_file(path, uri)) is not None:
            return pinned
        copy = self._copy(path, uri)
        logger.info("fetch_started", extra={"source": uri.public})
        got = download(
            uri,
            self._folder / path.name,
            self._limits(path),
            known_etag=None if copy is None else copy.etag,
            on_progress=self._on_progress,
        )
        if got is None:
            # Only a copy's ETag gives this answer.
            assert copy is not None
            logger.info("fetch_unneeded", extra={"source": uri.public, "sha256": copy.sha256})
            return FetchedFile(path, uri.public, copy.size, copy.sha256, "unchanged")
        logger.info(
            "fetched", extra={"source": uri.public, "bytes": got.size, "sha256": got.sha256}
        )
        self._check(path, uri)
        self._new[path.name] = _Copy(uri.identity, got.sha256, got.size, got.etag)
        is_there = path.is_file() and _digest(path) == got.sha256
        state: Literal["fetched", "unchanged"] = "unchanged" if is_there else "fetched"
        return FetchedFile(path, uri.public, got.size, got.sha256, state)

    def copies_of(self, sources: Mapping[Path, RemoteUri]) -> list[FetchedFile] | None:
        """Return the files fetched before from these addresses; None if one is missing."""
        copies = [
            FetchedFile(path, uri.public, copy.size, copy.sha256, "outdated")
            if (copy := self._copy(path, uri)) is not None
            else _pinned_file(path, uri)
            for path, uri in sources.items()
        ]
        found = [copy for copy in copies if copy is not None]
        return found if len(found) == len(copies) else None

    def put_in_place(self, files: Sequence[FetchedFile], check: PairCheck) -> None:
        """Replace the old files by the new if they can be served, and record their addresses."""
        names = [file.path.name for file in files if file.state == "fetched"]
        settings = self._settings
        unzipped = self._unzipped(names) if names else None
        if unzipped is not None:
            check(unzipped, self._schema(names))
        with replaced(names, self._folder):
            if settings.zip_path.name in names:
                # Another policy in the server's folder would be a second candidate.
                find_policy(settings)
                models, most = settings.models_path, settings.max_unpacked_bytes
                unpack_model(settings.zip_path, models, max_bytes=most)
            if unzipped is not None and unzipped.is_relative_to(self._folder):
                carry_outcome(unzipped, settings.models_path)
        record = {name: asdict(copy) for name, copy in (self._copies | self._new).items()}
        write_whole(settings.home / _RECORD, json.dumps(record))

    def _unzipped(self, names: Sequence[str]) -> Path | None:
        """Return the folder of the policy that will be served, unzipped; None if there is none."""
        unzipped = self._folder / "models"
        if self._settings.zip_path.name in names:
            return unzipped
        found = find_policy(self._settings)
        if found is None or found.is_dir():
            return found
        return unpack_model(found, unzipped, max_bytes=self._settings.max_unpacked_bytes)

    def _schema(self, names: Sequence[str]) -> Path | None:
        """Return the schema.yaml that the policy will be served with; None if there is none."""
        there = self._settings.schema_path
        new = self._folder / there.name
        return new if there.name in names else there if there.exists() else None

    def _copy(self, path: Path, uri: RemoteUri) -> _Copy | None:
        """Return the file fetched before if it came from this address, and no digest is pinned."""
        copy = self._copies.get(path.name)
        is_wanted = copy is not None and uri.sha256 is None and copy.identity == uri.identity
        return copy if is_wanted else None

    def _limits(self, path: Path) -> Limits:
        settings = self._settings
        if path == settings.schema_path:
            limit, setting = _MOST_SCHEMA_BYTES, f"{_MOST_SCHEMA_BYTES} of a schema.yaml"
        else:
            limit = settings.max_unpacked_bytes
            setting = f"{ENV_PREFIX}MAX_UNPACKED_BYTES={limit}"
        return Limits(limit, setting, settings.download_timeout_s)

    def _check(self, path: Path, uri: RemoteUri) -> None:
        """Refuse a damaged file, in a message that names its address."""
        file = self._folder / path.name
        try:
            if path == self._settings.schema_path:
                read_schema(file)
            else:
                # Nothing but unpacking it shows that a zip is sound.
                home, most = self._settings.home, self._settings.max_unpacked_bytes
                unpack_model(file, self._folder / "models", max_bytes=most, beside=home)
        except SchemaError as error:
            reason = error.message.removeprefix(f"{file.name}: ")
            raise SchemaError(f"{uri.public}: {reason}") from error
        except ModelError as error:
            raise ModelError(error.message.replace(str(file), uri.public)) from error


def _pinned_file(path: Path, uri: RemoteUri) -> FetchedFile | None:
    """Return the file that is there if it has the pinned digest."""
    if uri.sha256 is None or not path.is_file() or _digest(path) != uri.sha256:
        return None
    return FetchedFile(path, uri.public, path.stat().st_size, uri.sha256, "unchanged")


def _read_record(settings: Settings) -> dict[str, _Copy]:
    """Return the files of the record that are still there unchanged, byte for byte."""
    try:
        record = json.loads((settings.home / _RECORD).read_text())
        copies = {str(name): _Copy(**entry) for name, entry in record.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        # Without the record, files are fetched again.
        return {}
    paths = {path.name: path for path in (settings.schema_path, settings.zip_path)}
    return {
        name: copy
        for name, copy in copies.items()
        if name in paths and paths[name].is_file() and _digest(paths[name]) == copy.sha256
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _as_model_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except PolicyServerError:
        raise
    except OSError as error:
        where = error.filename2 or error.filename or home
        raise ModelError(f"{where}: can't be changed: {error.strerror or error}") from error
