"""Client libraries: what they are generated from, what is generated, and how it is kept."""

from __future__ import annotations

import ast
import asyncio
import copy
import io
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import urllib3

from policy_server.errors import SdkError, SdkPendingError
from policy_server.sdk import (
    BUNDLE,
    LANGUAGES,
    Document,
    LanguageName,
    Sdk,
    SdkStore,
    files_of,
    generator,
    prepare_document,
)
from policy_server.sdk.generator import Files, generate
from policy_server.sdk.languages import Language
from policy_server.sdk.openapi_document import has_memory
from policy_server.sdk.programs import PROGRAMS
from tests.support.audit import audited
from tests.support.fakes import summing_backend
from tests.support.folders import ROOT
from tests.support.sdks import URL as SERVER
from tests.support.sdks import generated, names_document
from tests.support.waiting import turns, until
from tests.support.web import document_of, serve

URL = "http://localhost:8000"
# Names that a language reserves, or spells in its own way.
SCHEMA = """
observations:
  class: {type: int, example: 3}
  _id: {type: float, example: -1.5}
  hasUp: {type: bool, example: true}
  in: {type: "List[float]", min_items: 1, max_items: 2, example: [0.5, 2]}
  team_0: {type: "List[bool]", min_items: 1, max_items: 1, example: [false]}
  self: {type: "List[int]", min_items: 1, max_items: 1, example: [7]}
  grid: {type: "List[int]", shape: [2, 1], example: [[3], [4]]}
parameters: {api_key: key}
"""

NESTED = {
    "python": "[[3], [4]]",
    "java": "List.of(List.of(3L), List.of(4L))",
    "scala": "Seq(Seq(3L), Seq(4L))",
    "r": "list(list(3), list(4))",
    "typescript": "[[3], [4]]",
    "csharp": "new List<List<long>> { new List<long> { 3 }, new List<long> { 4 } }",
    "go": "[][]int64{[]int64{3}, []int64{4}}",
    "kotlin": "listOf(listOf(3L), listOf(4L))",
}
TIMEOUTS = {
    "python": "_request_timeout=10",
    "java": "setReadTimeout(Duration.ofSeconds(10))",
    "scala": "readTimeout(10.seconds)",
    "r": "timeout = 10",
    "typescript": "AbortSignal.timeout(10_000)",
    "csharp": "CancelAfter(TimeSpan.FromSeconds(10))",
    "go": "WithTimeout(request.Context(), 10*time.Second)",
    "kotlin": "readTimeout(Duration.ofSeconds(10))",
}
RETRIES = {
    "python": "retries=urllib3.Retry(",
    "java": '"jdk.httpclient.enableAllMethodRetry", "true"',
    "scala": '"jdk.httpclient.enableAllMethodRetry", "true"',
    "r": "max_retry_attempts = 3",
    "typescript": "fetchApi: fetchAgain",
    "csharp": "new HttpClient(new Retrying())",
    "go": "Transport: retrying{}",
    "kotlin": "retryOnConnectionFailure(true)",
}

# The others are run by tests/service/test_clients.py.
EPISODES: dict[LanguageName, str] = {
    "scala": "sessions.sessionPredict(key)(sessionId, xStep, observation)",
    "csharp": "sessions.SessionPredict(sessionId, xStep, observation)",
    "kotlin": "sessions.sessionPredict(sessionId, xStep, observation)",
}


def small_document(title: str = "first") -> Document:
    return {"info": {"title": title, "version": "1"}, "paths": {}, "components": {}}


async def document_with_memory() -> Document:
    async with serve(summing_backend()) as client:
        document: Document = (await client.get("/openapi.json")).json()
        return document


# What SDKs are generated from


@pytest.mark.parametrize(
    ("served", "url", "expected"),
    [
        ([], "http://localhost:8000", "http://localhost:8000"),
        ([{"url": "/app/v1"}], "http://localhost:8000", "http://localhost:8000/app/v1"),
        ([{"url": "/app/v1"}], "https://host/app/v1/", "https://host/app/v1"),
        ([{"url": "https://host/p"}], "http://localhost:8000", "https://host/p"),
    ],
    ids=["no prefix", "prefix", "prefix twice", "absolute"],
)
def test_base_address_has_the_proxys_prefix_once(
    served: list[dict[str, str]], url: str, expected: str
) -> None:
    prepared = prepare_document({**small_document(), "servers": served}, url=url)

    assert prepared["servers"] == [{"url": expected}]


async def test_document_is_prepared_without_touching_the_served_one() -> None:
    served = await document_of(SCHEMA)
    before = copy.deepcopy(served)

    prepare_document(served, url=URL)

    assert served == before


async def test_observation_may_be_called_as_a_word_of_json_schema_is() -> None:
    words = [
        *("minimum", "maximum", "properties", "required", "type", "if", "then", "example", "enum"),
        *("anyOf", "prefixItems", "additionalProperties", "items", "examples", "default", "const"),
        *("schemas", "content", "title", "format", "patternProperties"),
    ]
    lines = "".join(f'  "{word}": {{type: "List[float]", example: [0.5, 0]}}\n' for word in words)
    served = await document_of(f"observations:\n{lines}parameters: {{api_key: key}}\n")

    prepared = prepare_document(served, url=URL)

    sent, before = (
        document["components"]["schemas"]["Observation"] for document in (prepared, served)
    )
    assert list(sent["properties"]) == list(before["properties"]) == words
    assert sent["required"] == words
    assert sent["examples"] == before["examples"]
    assert "additionalProperties" not in sent


async def test_prepared_document_has_the_policys_routes_and_one_way_to_send_the_key() -> None:
    prepared = prepare_document(await document_of(SCHEMA), url=URL)

    assert "/predict" in prepared["paths"]
    assert not any(path.startswith("/clients") for path in prepared["paths"])
    assert list(prepared["components"]["securitySchemes"]) == ["accessToken"]
    assert prepared["paths"]["/predict"]["post"]["security"] == [{"accessToken": []}]


async def test_sdk_has_no_parameter_that_is_for_arrays_alone() -> None:
    prepared = prepare_document(await document_of(SCHEMA), url=URL)

    parameters = prepared["paths"]["/predict/batch"]["post"]["parameters"]
    assert [parameter["name"] for parameter in parameters] == [
        "seed",
        "x-request-timeout-ms",
        "x-observation-stamp",
    ]


async def test_sdk_numbers_each_step_of_a_session_so_that_it_may_be_sent_again() -> None:
    prepared = prepare_document(await document_of(SCHEMA), url=URL)

    steps = [path for path in prepared["paths"] if path.startswith("/sessions/{session_id}/")]
    assert len(steps) == 7
    for path in steps:
        if not path.endswith("/reset"):
            parameters = prepared["paths"][path]["post"]["parameters"]
            assert [item["name"] for item in parameters if item["required"]] == [
                "session_id",
                "x-step",
            ]


@pytest.mark.parametrize(("name", "optional"), [("Session", "seed"), ("ListedPolicy", "reason")])
async def test_property_that_may_be_null_may_be_missing(name: str, optional: str) -> None:
    prepared = prepare_document(await document_of(SCHEMA), url=URL)

    schema = prepared["components"]["schemas"][name]
    assert optional in schema["properties"]
    assert optional not in schema["required"]


@pytest.mark.parametrize("name", ["seed", "steps"])
async def test_numbers_of_a_session_are_long_and_may_be_null_where_the_server_says_so(
    name: str,
) -> None:
    prepared = prepare_document(await document_of(SCHEMA), url=URL)

    schema = prepared["components"]["schemas"]["Session"]["properties"][name]
    assert schema["format"] == "int64"
    assert schema["type"] == (["integer", "null"] if name == "seed" else "integer")
    start = prepared["components"]["schemas"]["SessionStart"]["properties"]["seed"]
    # A bound of 2^63 is no number of 64 bits.
    assert "maximum" not in start


async def test_sdk_has_one_range_for_all_items_of_a_list() -> None:
    served = await document_of("observations: {a: {type: 'List[int]', one_hot: [2, 3]}}")
    prepared = prepare_document(served, url=URL)

    field, simple = (
        document["components"]["schemas"]["Observation"]["properties"]["a"]
        for document in (served, prepared)
    )
    column = served["components"]["schemas"]["ObservationColumns"]["properties"]["a"]
    whole = {"type": "integer", "format": "int64", "minimum": 0}
    assert field["prefixItems"] == [{**whole, "maximum": 1}, {**whole, "maximum": 2}]
    assert column["items"]["prefixItems"] == field["prefixItems"]
    assert "prefixItems" not in simple
    assert simple["items"] == {**whole, "maximum": 2}


@pytest.mark.parametrize(
    "text",
    [PROGRAMS["python"].text, (ROOT / "docs/clients.md").read_text()],
    ids=["readme", "documentation"],
)
def test_python_program_waits_for_no_number_of_seconds_that_an_answer_names(text: str) -> None:
    arguments = re.search(r"retries=urllib3\.Retry\((.*?)\),\n", text, re.DOTALL)
    assert arguments is not None
    options = ast.parse(f"dict(total={arguments[1].strip()})", mode="eval").body
    assert isinstance(options, ast.Call)
    retry = urllib3.Retry(
        **{str(item.arg): ast.literal_eval(item.value) for item in options.keywords}
    )

    assert not retry.is_retry("POST", 429, has_retry_after=True)
    assert retry.is_retry("POST", 503, has_retry_after=True)
    assert not retry.respect_retry_after_header
    waits = []
    for _ in range(3):
        retry = retry.increment("POST", "/predict", urllib3.HTTPResponse(status=503))
        waits.append(retry.get_backoff_time())
    assert 1 < sum(waits) < 10


async def test_sdk_has_state_tokens_where_the_policy_has_a_memory() -> None:
    served = await document_with_memory()

    prepared = prepare_document(served, url=URL)

    assert has_memory(prepared)
    parameters = prepared["paths"]["/predict"]["post"]["parameters"]
    assert [item["name"] for item in parameters] == [
        "seed",
        "x-state",
        "x-request-timeout-ms",
        "x-observation-stamp",
    ]
    assert not has_memory(prepare_document(await document_of(SCHEMA), url=URL))


async def test_other_answers_of_the_same_policy_give_the_same_sdk() -> None:
    first = await document_of(SCHEMA)
    second = copy.deepcopy(first)
    answer = second["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]
    answer["example"]["actions"] = [99]

    keys = {
        Sdk.of(prepare_document(document, url=URL), ["python"]).key for document in (first, second)
    }

    assert first != second
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            {"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "A"},
            {"type": "integer", "title": "A"},
        ),
        ({"anyOf": [{"type": "integer"}, {"type": "array"}], "title": "A"}, {"title": "A"}),
        (
            {
                "required": ["a", "b"],
                "properties": {"a": {"type": ["number", "null"]}, "b": {"type": "number"}},
            },
            {
                "required": ["b"],
                "properties": {"a": {"type": ["number", "null"]}, "b": {"type": "number"}},
            },
        ),
        ({"type": "object", "additionalProperties": False}, {"type": "object"}),
        ({"type": "string", "pattern": r"^1\.5$"}, {"type": "string"}),
        ({"type": "string", "pattern": "^[.]$"}, {"type": "string", "pattern": "^[.]$"}),
    ],
    ids=[
        "nullable",
        "number or list",
        "nullable property",
        "closed object",
        "pattern with a backslash",
        "pattern without one",
    ],
)
def test_types_that_generators_write_wrong_are_simplified(
    schema: dict[str, Any], expected: dict[str, Any]
) -> None:
    document = {**small_document(), "components": {"schemas": {"A": schema}}}

    assert prepare_document(document, url=URL)["components"]["schemas"]["A"] == expected


# What is generated


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", LANGUAGES)
async def test_sdk_has_an_example_with_the_policys_own_observation(name: LanguageName) -> None:
    document = await names_document()

    files = await generated(name)

    readme = files[PurePosixPath("README.md")].decode()
    text = b"".join(files.values())
    assert SERVER.encode() in text
    assert "POLICY_SERVER_API_KEY" in readme
    assert "-1.5" in readme
    assert NESTED[name] in readme
    assert RETRIES[name] in readme
    assert TIMEOUTS[name] in readme
    assert "401 for a wrong key" in readme
    assert "%" not in readme.replace('%% "policy-client" %', "")
    assert document["info"]["version"].encode() in text
    assert b"GIT_USER_ID" not in text
    assert not any("git_push" in path.name for path in files)


@pytest.mark.timeout(300)
async def test_go_takes_answers_with_fields_that_a_later_server_adds() -> None:
    files = await generated("go")

    [model] = [text for path, text in files.items() if path.name == "model_prediction.go"]
    assert b"decoder.Decode(&varPrediction)" in model
    strict = [path for path, text in files.items() if b"decoder.DisallowUnknownFields()" in text]
    assert strict == []


@pytest.fixture(scope="module")
def remembering() -> Mapping[LanguageName, Files]:
    """Generate the SDKs of a policy with memory, which tests only read."""

    async def generated() -> Mapping[LanguageName, Files]:
        document = prepare_document(await document_with_memory(), url=URL)
        return await generate(document, [LANGUAGES[name] for name in EPISODES])

    return asyncio.run(generated())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", EPISODES)
def test_sdk_of_a_policy_with_memory_shows_an_episode(
    remembering: Mapping[LanguageName, Files], name: LanguageName
) -> None:
    files = remembering[name]

    readme = files[PurePosixPath("README.md")].decode()
    program = readme.split("## Example")[1].split("## Episodes")[0]
    assert EPISODES[name] in program
    assert RETRIES[name] in program
    assert "%" not in program
    assert "`x-state`" in readme
    text = b"".join(files.values())
    assert b"sent again is not made twice" in text
    # A header is text in every language; the generator leaves numbers in some.
    assert b'.header("x-step", xStep)' not in text
    assert b'header("x-previous-reward", xPreviousReward)' not in text


@pytest.mark.timeout(300)
async def test_same_document_gives_the_same_bytes_alone_and_with_other_languages() -> None:
    again = await generate(await names_document(), [LANGUAGES["csharp"]])

    assert again == {"csharp": await generated("csharp")}


@pytest.mark.timeout(300)
async def test_document_that_the_generator_refuses_is_an_error_in_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(SdkError, match="Go, R: the generator failed; the log has its output"):
        await generate(
            small_document() | {"openapi": "no version"}, [LANGUAGES[name] for name in ("go", "r")]
        )

    assert "sdk_failed" in caplog.messages


async def test_no_file_is_touched_in_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed server may have left thousands of files, and questions are answered meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(generator, "_command", lambda _: ["true"])
    left = tmp_path / ".unfinished-policy-server-sdk-killed"
    (left / "folder").mkdir(parents=True)
    os.utime(left, (0, 0))

    async with aclosing(SdkStore(tmp_path / "cache")) as store:
        with audited() as events, pytest.raises(SdkError, match="the generator wrote no"):
            await store.fetch(sdk())

    assert not left.exists()
    assert [event for event in events if str(tmp_path) in event] == []


# How it is kept


class FakeGenerator:
    """Writes two files for each language, or fails; counts its calls, and how many run at once."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[LanguageName, ...]] = []
        self.most_at_once = 0
        self.error = error
        self.gate = asyncio.Event()
        self.gate.set()
        self._at_once = 0

    async def __call__(
        self, document: Document, languages: Sequence[Language]
    ) -> Mapping[LanguageName, Files]:
        names = tuple(language.name for language in languages)
        self.calls.append(names)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await self.gate.wait()
            await turns()
        finally:
            self._at_once -= 1
        if self.error is not None:
            raise self.error
        title = document["info"]["title"].encode()
        files = {PurePosixPath("b/code"): title, PurePosixPath("README.md"): b"words"}
        return dict.fromkeys(names, files)


def sdk(languages: Sequence[LanguageName] = ("python",), title: str = "first") -> Sdk:
    return Sdk.of(small_document(title), languages)


async def test_sdk_is_generated_once_for_a_content(tmp_path: Path) -> None:
    fake = FakeGenerator()
    store = SdkStore(tmp_path / "cache", generate=fake)

    contents = [await store.fetch(sdk()) for _ in range(2)]
    again = await SdkStore(tmp_path / "cache", generate=fake).fetch(sdk())
    other = await store.fetch(sdk(title="second"))

    assert fake.calls == [("python",), ("python",)]
    assert contents == [again, again]
    assert files_of(again)[PurePosixPath("python/b/code")] == b"first"
    assert files_of(other)[PurePosixPath("python/b/code")] == b"second"


async def test_requests_at_once_wait_for_one_generation_at_a_time(tmp_path: Path) -> None:
    fake = FakeGenerator()
    stores = [SdkStore(tmp_path, generate=fake) for _ in range(2)]

    await asyncio.gather(
        *(store.fetch(sdk([name])) for store in stores for name in ("go", "r", "go"))
    )

    assert sorted(fake.calls) == [("go",), ("r",)]
    assert fake.most_at_once == 1


async def test_bundle_has_a_folder_for_each_language_and_shares_their_zips(tmp_path: Path) -> None:
    fake = FakeGenerator()
    store = SdkStore(tmp_path, generate=fake)

    await store.fetch(sdk(["java"]))
    content = await store.fetch(sdk(BUNDLE))
    await store.fetch(sdk(["scala"]))

    assert fake.calls == [("java",), ("python", "scala", "r")]
    assert {path.parts[0] for path in files_of(content)} == set(BUNDLE)


async def test_who_does_not_wait_long_enough_gets_it_later(tmp_path: Path) -> None:
    fake = FakeGenerator()
    fake.gate.clear()
    store = SdkStore(tmp_path, generate=fake)

    with pytest.raises(SdkPendingError, match="is being generated"):
        await store.fetch(sdk(), wait_s=0.01)
    assert list(tmp_path.glob("*.zip")) == []
    fake.gate.set()

    assert files_of(await store.fetch(sdk(), wait_s=30))
    assert fake.calls == [("python",)]


async def test_generation_that_failed_is_tried_again(tmp_path: Path) -> None:
    fake = FakeGenerator(SdkError("no"))
    store = SdkStore(tmp_path, generate=fake)

    with pytest.raises(SdkError):
        await store.fetch(sdk())
    fake.error = None

    assert await store.fetch(sdk())


async def test_zip_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = [
        await SdkStore(tmp_path / name, generate=FakeGenerator()).fetch(sdk()) for name in "ab"
    ]

    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["python/README.md", "python/b/code"]
    assert first == second


async def test_zips_used_last_are_kept(tmp_path: Path) -> None:
    store = SdkStore(tmp_path, generate=FakeGenerator())
    first, second = sdk(title="0"), sdk(title="1")
    for age, item in enumerate((first, second)):
        await store.fetch(item)
        os.utime(tmp_path / f"{item.key}.zip", (age, age))

    await store.fetch(first)
    for number in range(2, 33):
        await store.fetch(sdk(title=str(number)))

    kept = {path.stem for path in tmp_path.glob("*.zip")}
    assert len(kept) == 32
    assert first.key in kept
    assert second.key not in kept


async def test_folder_that_cannot_be_written_keeps_nothing_from_being_served(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    fake = FakeGenerator()
    store = SdkStore(tmp_path / "file" / "cache", generate=fake)

    contents = [await store.fetch(sdk()) for _ in range(2)]

    assert contents[0] == contents[1]
    assert fake.calls == [("python",)]


async def test_closing_ends_what_is_being_generated(tmp_path: Path) -> None:
    fake = FakeGenerator()
    fake.gate.clear()

    async with aclosing(SdkStore(tmp_path, generate=fake)) as store:
        with pytest.raises(SdkPendingError):
            await store.fetch(sdk(BUNDLE), wait_s=0.05)
        await until(lambda: fake.calls)

    fake.gate.set()
    await turns()
    assert len(fake.calls) == 1
    assert list(tmp_path.glob("*.zip")) == []
