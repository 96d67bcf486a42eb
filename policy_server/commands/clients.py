"""Client libraries in a folder: for a running server, or for the policy that lies here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path, PurePosixPath

from policy_server.commands.client import PolicyClient
from policy_server.commands.native_logs import hidden_native_logs
from policy_server.errors import SdkError, ServerAnswerError, SettingsError, UsageError
from policy_server.files.atomic import whole_folder
from policy_server.installation import require
from policy_server.schema import read_schema_file
from policy_server.sdk import (
    BUNDLE,
    CLIENT_MARK,
    LANGUAGES,
    Document,
    LanguageName,
    Sdk,
    SdkStore,
    files_of,
    prepare_document,
)
from policy_server.settings import Settings

__all__ = ["choose_languages", "local_document", "served_document", "write_clients"]

_ALL = "all"

Progress = Callable[[int, int], None]

_URL = "http://localhost:8000"


def choose_languages(text: str | None) -> list[LanguageName]:
    """Read a list of languages.

    Args:
        text: names with commas between them, `all` among them for all; None for those of the
            server's bundle.

    Raises:
        UsageError: if one is unknown.
        MissingPackageError: if the generator is not installed.
    """
    # Before a policy is loaded for it, which takes seconds.
    require("sdk", use="generating client libraries")
    if text is None:
        return list(BUNDLE)
    wanted = [name.strip().lower() for name in text.split(",")]
    known = {str(name): name for name in LANGUAGES}
    unknown = [name for name in wanted if name not in known and name != _ALL]
    if unknown:
        raise UsageError(
            f"--languages: expected all, or some of {', '.join(LANGUAGES)} with commas between "
            f"them, got {unknown[0]!r}"
        )
    if _ALL in wanted:
        return list(LANGUAGES)
    return list(dict.fromkeys(known[name] for name in wanted))


def served_document(url: str) -> Document:
    """Return the OpenAPI document for SDKs of a running server.

    Args:
        url: its address, with a proxy's prefix; the SDKs' default address.

    Raises:
        ServerAnswerError: if it can't be reached, or is no Policy Server.
    """
    with PolicyClient(url, None) as server:
        document = server.get("/openapi.json")
        paths = document.get("paths")
        if not isinstance(paths, dict) or "/predict_raw" not in paths:
            raise ServerAnswerError(f"{server.url}: expected a Policy Server, got another API")
        return prepare_document({**document, "servers": [{"url": ""}]}, url=server.url)


def local_document(settings: Settings) -> Document:
    """Return the OpenAPI document for SDKs of the policy in this folder.

    The policy is loaded, since only it knows the types of its actions.

    Args:
        settings: the folder of the policy.

    Raises:
        PolicyServerError: if it can't be served.
    """
    with hidden_native_logs():
        return asyncio.run(_load(settings))


async def _load(settings: Settings) -> Document:
    # Imported here since they bring FastAPI, which the other commands do without.
    from policy_server.policies import Policies
    from policy_server.web import create_app

    schema = read_schema_file(settings.schema_path)
    policies = Policies(settings.model_copy(update={"backend": "local"}), schema)
    app = create_app(
        policies.registry,
        settings,
        running=policies.running,
        api_key=None,
        root_path=schema.root_path,
    )
    async with app.router.lifespan_context(app):
        return prepare_document(app.openapi(), url=_URL)


def write_clients(
    document: Document,
    languages: Sequence[LanguageName],
    output: Path,
    settings: Settings,
    *,
    on_progress: Progress,
) -> Iterator[str]:
    """Write SDKs, each into a folder named after its language.

    Args:
        document: the result of `served_document` or `local_document`.
        languages: the languages to write.
        output: the folder above them.
        settings: where generated SDKs are kept.
        on_progress: is called with the number of SDKs done, and of all.

    Yields:
        A line for each.

    Raises:
        SdkError: if one can't be generated or written; the old folder is then in its place.
    """
    _check_are_ours([output / name for name in languages])
    for done, name in enumerate(languages):
        on_progress(done, len(languages))
        content = asyncio.run(_fetch(Sdk.of(document, [name]), settings.sdks_path))
        files = {path.relative_to(name): text for path, text in files_of(content).items()}
        try:
            _replace(output / name, files)
        except OSError as error:
            raise SdkError(f"{output / name}: can't be written: {error.strerror}") from error
        # The bar goes when all are there, so that it never stands beside a line.
        on_progress(len(languages), len(languages))
        yield f"wrote {output / name} ({len(files)} files)"


async def _fetch(sdk: Sdk, folder: Path) -> bytes:
    async with aclosing(SdkStore(folder)) as store:
        return await store.fetch(sdk)


def _check_are_ours(folders: Sequence[Path]) -> None:
    for folder in folders:
        if folder.exists() and not (folder / CLIENT_MARK).is_file():
            raise SettingsError(
                f"{folder}: exists and is no client library; remove it, or name another folder "
                "with --output"
            )


def _replace(folder: Path, files: dict[PurePosixPath, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as new:
        for path, content in files.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_bytes(content)
