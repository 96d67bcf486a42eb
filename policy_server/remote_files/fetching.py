"""Fetching a policy and its schema.yaml: both are checked together and replaced together."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from policy_server.engine.cache import carry_outcome
from policy_server.errors import ModelError, SchemaError
from policy_server.files.archives import is_zip
from policy_server.files.atomic import remove_left_files
from policy_server.files.replacement import (
    as_model_errors,
    incoming_folder,
    limit_permissions,
    replaced,
    restore_interrupted,
)
from policy_server.formats.finding import find_policy, policy_at
from policy_server.formats.model_files import digest_of_file
from policy_server.formats.unpacking import pack_model, unpack_model
from policy_server.remote_files.download import (
    Download,
    Limits,
    OnProgress,
    UnreachableError,
    download,
)
from policy_server.remote_files.fetched_files import (
    RECORD_FILE,
    FetchedCopy,
    FetchedFile,
    etag_to_keep,
    pinned_file,
    read_record,
    write_record,
)
from policy_server.remote_files.folder_download import download_folder
from policy_server.remote_files.uris import RemoteUri, parse_uri
from policy_server.schema import read_schema
from policy_server.settings import ENV_PREFIX, Settings

__all__ = ["FetchedFile", "PairCheck", "bring_files", "fetch_files"]

logger = logging.getLogger(__name__)

_MOST_SCHEMA_BYTES = 1024 * 1024

# Raises the errors that a start would have with an unzipped policy and its schema.yaml; None stands
# for no schema.yaml.
PairCheck = Callable[[Path, Path | None], None]


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
    remove_left_files(settings.home)
    with as_model_errors(settings.home):
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
    """Fetch a policy, schema.yaml or both, check them, and put them in place together.

    The policy becomes saved_model.zip, whatever its format and name; a folder is zipped, and so is
    a policy that is one file.

    What is there already is not fetched again: if it is pinned and its digest is right, or if the
    store says that its version is still the same.

    Args:
        settings: the folder and the limits.
        model: the address of the policy, a file or a folder; None leaves the one that is there.
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
    with as_model_errors(settings.home):
        copies = read_record(settings)
        pinned = [pinned_file(path, uri, copies) for path, uri in sources.items()]
        if (kept := [file for file in pinned if file is not None]) and len(kept) == len(pinned):
            return kept
        with incoming_folder(settings.home) as folder:
            fetcher = _Fetcher(settings, folder, on_progress)
            try:
                files = [fetcher.fetch(path, uri) for path, uri in sources.items()]
            except UnreachableError as error:
                # Both are kept or none: a new file and an old one may not fit.
                outdated = fetcher.copies_of(sources)
                if not is_outdated_allowed or outdated is None:
                    raise
                logger.warning("fetch_failed_and_copy_served", extra={"reason": error.message})
                return outdated
            fetcher.put_in_place(files, check)
    return files


class _Fetcher:
    """Fetches files to a folder of its own, and moves them from there."""

    def __init__(self, settings: Settings, folder: Path, on_progress: OnProgress) -> None:
        self._settings = settings
        self._folder = folder
        self._on_progress = on_progress
        self._copies = read_record(settings)
        self._new: dict[str, FetchedCopy] = {}

    def fetch(self, path: Path, uri: RemoteUri) -> FetchedFile:
        if (pinned := pinned_file(path, uri, self._copies)) is not None:
            return pinned
        is_schema = path == self._settings.schema_path
        if is_schema and uri.is_folder:
            raise ModelError(f"{uri.public}: is a folder; expected a file, a schema.yaml")
        copy = self._copy(path, uri)
        logger.info("fetch_started", extra={"source": uri.public})
        target = self._target(uri)
        download_any = download_folder if uri.is_folder else download
        got = download_any(
            uri,
            target,
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
        _check_pin(uri, got)
        new = self._folder / path.name
        if is_schema:
            self._take_schema(target, new, uri)
        else:
            self._take_policy(target, new, uri)
        if uri.scheme == "file":
            limit_permissions(new, Path(uri.address))
        digest = digest_of_file(new)
        self._new[path.name] = FetchedCopy(
            uri.identity, got.sha256, digest, got.size, etag_to_keep(got.etag)
        )
        is_there = path.is_file() and digest_of_file(path) == digest
        state: Literal["fetched", "unchanged"] = "unchanged" if is_there else "fetched"
        return FetchedFile(path, uri.public, got.size, got.sha256, state)

    def copies_of(self, sources: Mapping[Path, RemoteUri]) -> list[FetchedFile] | None:
        """Return the files fetched before from these addresses; None if one is missing."""
        copies = [
            FetchedFile(path, uri.public, copy.size, copy.sha256, "outdated")
            if (copy := self._copy(path, uri)) is not None
            else pinned_file(path, uri, self._copies)
            for path, uri in sources.items()
        ]
        found = [copy for copy in copies if copy is not None]
        return found if len(found) == len(copies) else None

    def put_in_place(self, files: Sequence[FetchedFile], check: PairCheck) -> None:
        """Replace the old files by the new if they can be served, and the record of addresses."""
        names = [file.path.name for file in files if file.state == "fetched"]
        settings = self._settings
        unzipped = self._unzipped(names) if names else None
        if unzipped is not None:
            check(unzipped, self._schema(names))
        write_record(self._folder, self._copies | self._new)
        changed = [settings.models_path.name] if names else []
        with replaced([*names, RECORD_FILE], self._folder, folders=changed):
            if settings.zip_path.name in names:
                # Another policy in the server's folder would be a second candidate.
                find_policy(settings)
                models, most = settings.models_path, settings.max_unpacked_bytes
                unpack_model(settings.zip_path, models, max_bytes=most)
            if unzipped is not None and unzipped.is_relative_to(self._folder):
                carry_outcome(unzipped, settings.models_path)

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

    def _copy(self, path: Path, uri: RemoteUri) -> FetchedCopy | None:
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

    def _target(self, uri: RemoteUri) -> Path:
        """Return the place for a download: a new folder, or a file of the address's own name."""
        scratch = Path(tempfile.mkdtemp(prefix="download-", dir=self._folder))
        return scratch if uri.is_folder else scratch / uri.file_name

    def _take_schema(self, file: Path, new: Path, uri: RemoteUri) -> None:
        """Refuse a wrong schema.yaml in a message that names its address, or take it over."""
        file.replace(new)
        try:
            read_schema(new)
        except SchemaError as error:
            reason = error.message.removeprefix(f"{new.name}: ")
            raise SchemaError(f"{uri.public}: {reason}") from error

    def _take_policy(self, source: Path, new: Path, uri: RemoteUri) -> None:
        """Refuse a damaged policy in a message that names its address, or take it over as a zip."""
        try:
            home, file = self._settings.home, source
            if uri.is_folder:
                home, file = source, self._file_in(source, new)
            # Nothing but unpacking it shows that a zip is sound.
            models = unpack_model(
                file,
                self._folder / "models",
                max_bytes=self._settings.max_unpacked_bytes,
                beside=home,
            )
        except ModelError as error:
            message = error.message.replace(str(new), uri.public)
            raise ModelError(message.replace(str(source), uri.public)) from error
        if file == new:
            return
        if file == source and is_zip(source):
            source.replace(new)
        else:
            pack_model(models, new)

    def _file_in(self, folder: Path, new: Path) -> Path:
        """Return the one policy's file that a folder holds, or `new` with the whole folder."""
        found = policy_at(folder, self._settings)
        if found is not None and found.is_file():
            return found
        pack_model(folder, new)
        return new


def _check_pin(uri: RemoteUri, got: Download) -> None:
    if uri.sha256 is not None and got.sha256 != uri.sha256:
        raise ModelError(
            f"{uri.public}: expected sha256 {uri.sha256}, got {got.sha256}; refused: it is another "
            "version, or was tampered with"
        )
