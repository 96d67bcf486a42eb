"""The documentation is a contract: what it names exists, and what exists it names."""

from __future__ import annotations

import errno
import inspect
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from policy_server.commands.program import Commands
from policy_server.errors import (
    NotReadyError,
    OverloadedError,
    PolicyServerError,
    SchemaError,
    SdkPendingError,
    SessionStoreError,
    SettingsError,
)
from policy_server.metrics import Metrics, MetricsExporter
from policy_server.policy import ActionOutput
from policy_server.schema import AgentPolicies, parse_schema, parse_schema_file
from policy_server.schema.yaml_document import (
    ActionEntry,
    Document,
    KeyEntry,
    ObservationEntry,
    Parameters,
    PolicyEntry,
    VersionEntry,
)
from policy_server.schema_fit import describe_signature
from policy_server.serving import PolicyRegistry
from policy_server.settings import ENV_PREFIX, Settings, read_settings
from policy_server.web import create_app
from policy_server.web.problems import describe_error
from policy_server.web.route_table import RouteTable
from tests.support.documents import code_blocks, names, rows, section, without_code
from tests.support.fakes import components_of, integer_backend, registry_of, signature_of, slot_of
from tests.support.folders import ROOT
from tests.support.processes import run
from tests.support.web import SCHEMA, build, client_of, serve

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    *sorted(DOCS.glob("*.md")),
]
EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/train.py"))

# Served, but no part of what a client generated from OpenAPI would call.
DOCUMENTATION_ROUTES = {"GET /docs", "GET /redoc", "GET /openapi.json"}
TABLE = RouteTable(registry_of(integer_backend(), parse_schema(SCHEMA)))
STREAM_ROUTES = {f"WS {route.path}" for route in TABLE.answering("stream")}
# A slip, for its message.
REFUSED_NAME = f"{ENV_PREFIX}APIKEY"
SCHEMA_SECTIONS: dict[str, type[BaseModel]] = {
    "Sections": Document,
    "observations": ObservationEntry,
    "actions": ActionEntry,
    "parameters": Parameters,
    "Keys with names": KeyEntry,
    "Several policies": PolicyEntry,
    "Versions": VersionEntry,
}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# Routes


@pytest.mark.parametrize(
    ("page", "title"), [(README, "Endpoints"), (DOCS / "http.md", "Routes")], ids=["readme", "http"]
)
def test_table_names_every_route_and_no_other(page: Path, title: str) -> None:
    paths = build().openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, item in paths.items() for method in item}

    documented = [name for cells in rows(section(page, title)) for name in names(cells[0])]

    assert len(documented) == len(set(documented))
    assert set(documented) == served | DOCUMENTATION_ROUTES | STREAM_ROUTES


def test_page_of_teams_names_every_route_of_a_team_and_no_other() -> None:
    registry = PolicyRegistry(
        [slot_of(integer_backend(), parse_schema(SCHEMA))], agents=AgentPolicies({"*": "default"})
    )
    served = {
        f"{method.upper()} {path}"
        for path, item in create_app(registry, Settings(), api_key=None).openapi()["paths"].items()
        for method in item
        if path.endswith("/agents")
    }
    streams = {f"WS {route.path}" for route in RouteTable(registry).answering("team_stream")}

    table = section(DOCS / "teams.md", "Routes")
    documented = [name for cells in rows(table) for name in names(cells[0])]

    assert len(documented) == len(set(documented))
    assert set(documented) == served | streams


@pytest.mark.parametrize("route", sorted(DOCUMENTATION_ROUTES))
async def test_documentation_is_served(route: str) -> None:
    async with client_of(build(), key=None) as client:
        answer = await client.get(route.removeprefix("GET "))

    assert answer.status_code == 200


async def test_head_is_answered_where_the_page_says_so() -> None:
    paths = build().openapi()["paths"]
    sentence = re.search(r"(`[^.]*) answer HEAD", section(DOCS / "http.md", "Routes"))
    assert sentence is not None

    async with client_of(build()) as client:
        answers = {path: await client.head(path) for path, item in paths.items() if "get" in item}

    assert set(names(sentence[1])) == {
        path for path, answer in answers.items() if answer.status_code != 405
    }


async def test_table_of_schema_names_every_key_that_tells_of_the_policy() -> None:
    documented = [
        name for cells in rows(section(DOCS / "http.md", "/schema")) for name in names(cells[0])
    ]

    async with serve() as client:
        policy = (await client.get("/schema")).json()["policy"]

    assert documented == [*policy, *policy["components"][0]]


def test_open_paths_are_those_that_the_page_names() -> None:
    sentence = re.search(
        r"Without it (.*?) are\s+open", section(DOCS / "http.md", "Authentication"), re.DOTALL
    )

    assert sentence is not None
    assert set(names(sentence[1])) == {
        route.path for route in TABLE if route.access == "open" and not route.is_folder
    }


def test_table_of_errors_names_every_status() -> None:
    raised = {kind.status for kind in _subclasses(PolicyServerError)}

    documented = {int(cells[0]) for cells in rows(section(DOCS / "http.md", "Errors"))}

    # The router's own, and the protocol's.
    assert documented == raised | {404, 405} | {400, 431}


CAUSES_OF_503: dict[str, Exception] = {
    "Overload": OverloadedError(""),
    "not ready": NotReadyError(""),
    "Redis": SessionStoreError(""),
    "client library": SdkPendingError(""),
    "short of": OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
}


@pytest.mark.parametrize(("cause", "error"), CAUSES_OF_503.items(), ids=CAUSES_OF_503)
def test_row_of_503_names_each_cause_with_its_wait(cause: str, error: Exception) -> None:
    _, _, headers = describe_error(error, request_id="r")
    [row] = [cells[1] for cells in rows(section(DOCS / "http.md", "Errors")) if cells[0] == "503"]

    waits = [sentence for sentence in row.split(". ") if cause in sentence]

    assert headers is not None
    assert [re.findall(r"`retry-after: (\d+)`", wait) for wait in waits] == [
        [headers["retry-after"]]
    ]


def test_each_error_that_is_503_has_its_cause_in_the_table() -> None:
    kinds = [kind for kind in _subclasses(PolicyServerError) if kind.status == 503]

    named = tuple(map(type, CAUSES_OF_503.values()))
    assert [kind for kind in kinds if not issubclass(kind, named)] == []


def _subclasses(kind: type[PolicyServerError]) -> Iterator[type[PolicyServerError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


# Settings


def test_table_names_every_setting_with_its_default_and_no_other() -> None:
    table = rows(section(DOCS / "settings.md", "Settings"))

    documented = {names(cells[0])[0]: cells[1].strip("`") for cells in table}

    assert documented == {
        f"{ENV_PREFIX}{name.upper()}": _shown(field.default)
        for name, field in Settings.model_fields.items()
    }


def _shown(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


@every_page
def test_page_names_no_variable_that_does_not_exist(page: Path) -> None:
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    # The examples of the client libraries read it.
    known.add(f"{ENV_PREFIX}URL")

    text = page.read_text(encoding="utf-8").replace(REFUSED_NAME, "")
    named = set(re.findall(rf"{ENV_PREFIX}[A-Z_]+", text))

    assert named <= known


def test_message_of_an_unknown_name_that_a_page_quotes_is_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(f"{REFUSED_NAME}=my-secret\n")

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert f"policy server: {caught.value.message}\n" in code_blocks(DOCS / "settings.md", "text")


# Metrics


def test_table_names_every_metric_and_no_other() -> None:
    page = MetricsExporter(Metrics(), port=0).render().decode()

    documented = [names(cells[0])[0] for cells in rows(section(DOCS / "monitoring.md", "Metrics"))]

    assert documented == re.findall(r"^# TYPE (\w+)", page, re.MULTILINE)


# The command line


COMMANDS = {
    name: method
    for name, method in inspect.getmembers(Commands, inspect.isfunction)
    if not name.startswith("_")
}


def test_page_has_a_section_for_every_command_and_no_other() -> None:
    text = without_code((DOCS / "cli.md").read_text(encoding="utf-8"))

    assert set(re.findall(r"^## (.*)$", text, re.MULTILINE)) == set(COMMANDS)


def test_readme_names_every_command_and_no_other() -> None:
    commands = [names(cells[0])[0].split()[2] for cells in rows(section(README, "Command line"))]

    assert sorted(commands) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_table_of_a_command_names_its_arguments_with_their_defaults(command: str) -> None:
    parameters = list(inspect.signature(COMMANDS[command]).parameters.values())[1:]
    text = section(DOCS / "cli.md", command)
    usage = names(text.replace("\n", " "))[0]

    table = {names(cells[0])[0]: cells[1] for cells in rows(text)}

    assert list(table) == [_title(item) for item in parameters]
    for item in parameters:
        assert _title(item) in usage
        if item.default not in (inspect.Parameter.empty, None) and item.default is not False:
            assert str(item.default) in table[_title(item)]


def _title(item: inspect.Parameter) -> str:
    is_option = item.kind is inspect.Parameter.KEYWORD_ONLY
    return f"--{item.name.replace('_', '-')}" if is_option else item.name.upper()


@every_page
def test_page_names_no_command_that_does_not_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    named = set(re.findall(r"python generate\.py ([a-z_]+)", text))

    assert named <= set(COMMANDS)


# schema.yaml


@pytest.mark.parametrize("title", SCHEMA_SECTIONS)
def test_table_names_every_key_of_the_schema_with_its_default_and_no_other(title: str) -> None:
    documented = {
        names(cells[0])[0]: cells[2] for cells in rows(section(DOCS / "schema.md", title))
    }

    assert documented == {
        name: "required" if field.is_required() else str(field.default).replace("None", "none")
        for name, field in SCHEMA_SECTIONS[title].model_fields.items()
    }


# Other files' YAML is fenced as `yml`.
SCHEMAS = [
    pytest.param(text, id=f"{page.stem}-{index}")
    for page in PAGES
    for index, text in enumerate(code_blocks(page, "yaml"))
]


@pytest.mark.parametrize("text", SCHEMAS)
def test_schema_that_a_page_shows_is_right(text: str) -> None:
    file = parse_schema_file(text)

    # Only an excerpt may lack the key.
    has_key = file.api_key is not None or file.api_keys
    assert has_key or all(item.schema.observations is None for item in file)


def _mistakes(title: str) -> list[Any]:
    table = rows(section(DOCS / "schema.md", title))
    return [pytest.param(*(names(cell)[0] for cell in cells), id=cells[0][1:40]) for cells in table]


@pytest.mark.parametrize(("text", "message"), _mistakes("Mistakes"))
def test_message_that_a_page_quotes_is_the_parsers(text: str, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(text)

    assert caught.value.message == message


def test_message_of_a_tab_that_a_page_quotes_is_the_parsers() -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema("observations:\n\tspeed: {type: float}\n")

    assert f"{caught.value.message}\n" in code_blocks(DOCS / "schema.md", "text")


@pytest.mark.parametrize(("text", "message"), _mistakes("Against the model"))
def test_message_about_a_model_that_a_page_quotes_is_the_servers(text: str, message: str) -> None:
    components = components_of(("categorical", 4))
    action = ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False)
    signature = signature_of(components, width=6, outputs=(action,))
    signature = replace(signature, observation_dtype="uint8")
    schema = parse_schema(text)

    with pytest.raises(SchemaError) as caught:
        describe_signature(signature, schema)

    assert caught.value.message == message


# Examples, modules, links, targets


def test_readme_has_a_row_for_every_example() -> None:
    linked = [
        re.findall(r"\]\(examples/(\w+)/README\.md\)", cells[0])[0]
        for cells in rows(section(README, "Examples"))
    ]

    assert sorted(linked) == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_readme_gives_the_figures_of_the_examples_own_page(name: str) -> None:
    text = (ROOT / "examples" / name / "README.md").read_text(encoding="utf-8")
    block = text.partition("<!-- figures")[2].partition("<!-- end of figures -->")[0]
    figures = re.findall(r"-?\d+\.\d+ ± \d+\.\d+", block)

    row = next(cells for cells in rows(section(README, "Examples")) if f"/{name}/" in cells[0])

    assert row[-2:] == [figures[0], figures[-1]]


def test_table_of_modules_has_the_layers_that_the_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
    layers = [re.findall(r"\w+", layer) for layer in contracts[0]["layers"]]
    present = {path.stem for path in (ROOT / "policy_server").iterdir()}

    documented: dict[int, set[str]] = {}
    for cells in rows(section(ROOT / "CONTRIBUTING.md", "Where things go")):
        documented.setdefault(int(cells[0]), set()).update(names(cells[1]))

    assert documented == {
        row: present & set(modules) for row, modules in enumerate(layers, start=1)
    }


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_page_is_linked_from_the_readme_and_listed_for_its_writers(page: Path) -> None:
    name = f"docs/{page.name}"

    assert f"]({name}" in README.read_text(encoding="utf-8")
    assert f"`{name}`" in section(ROOT / "CONTRIBUTING.md", "Documentation")


def test_listed_pages_exist() -> None:
    listed = [
        names(cells[0])[0] for cells in rows(section(ROOT / "CONTRIBUTING.md", "Documentation"))
    ]

    assert len(listed) == len(set(listed))
    assert listed
    assert all(list(ROOT.glob(pattern)) for pattern in listed)


@pytest.mark.parametrize(
    "picture", sorted((DOCS / "images").iterdir()), ids=lambda picture: picture.name
)
def test_picture_is_shown_on_a_page(picture: Path) -> None:
    assert any(f"images/{picture.name})" in page.read_text(encoding="utf-8") for page in PAGES)


def test_readme_says_what_lies_in_every_folder() -> None:
    named = {name for cells in rows(section(README, "What lies where")) for name in names(cells[0])}
    # What else lies here is its user's: a policy, an environment.
    listing = subprocess.run(
        ["git", "ls-tree", "-d", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode != 0:
        pytest.skip("this is no clone: git does not say which folders are the project's")
    folders = {f"{name}/" for name in listing.stdout.split() if not name.startswith(".")}

    assert "policy_server/" in folders
    assert folders <= named
    assert all((ROOT / name).exists() for name in named)


def test_every_place_names_the_same_versions_of_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: "
    classified = [
        line.removeprefix(prefix) for line in project["classifiers"] if line.startswith(prefix)
    ]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [checked] = re.findall(r"version_info\[:2\] not in \[(.*?)\]", makefile)
    [searched] = re.findall(r"for name in (.*) python3 python;", makefile)
    oldest, newest = classified[0], classified[-1]

    assert project["requires-python"] == f">={oldest},<3.{int(newest.removeprefix('3.')) + 1}"
    assert [f"{a}.{b}" for a, b in re.findall(r"\((\d+), (\d+)\)", checked)] == classified
    assert searched.split() == [f"python{version}" for version in classified]
    listed = f"Python {', '.join(classified[:-1])} or {newest}"
    assert f"needs {listed}," in makefile
    for page in (README, ROOT / "CONTRIBUTING.md"):
        assert listed in page.read_text(encoding="utf-8")


def _links() -> Iterator[Any]:
    for page in [*PAGES, *sorted(ROOT.glob("examples/*/README.md"))]:
        text = without_code(page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in target:
                yield pytest.param(page, target, id=f"{page.relative_to(ROOT)}-{target}")


@pytest.mark.parametrize(("page", "target"), list(_links()))
def test_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page

    assert file.exists()
    if anchor:
        text = without_code(file.read_text(encoding="utf-8"))
        assert anchor in [_anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@every_page
def test_page_names_no_make_target_that_does_not_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")

    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))

    assert named <= targets


# Tests


def test_processes_of_tests_keep_compiled_modules_where_an_image_forbids_it() -> None:
    shown = run(
        *("make", "--file=-", "shown"),
        typed="include Makefile\nshown:\n\t@env\n",
        environment={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )

    assert "PATH=" in shown.stdout
    assert "PYTHONDONTWRITEBYTECODE" not in shown.stdout


def test_no_test_file_imports_another() -> None:
    files = list((ROOT / "tests").rglob("test_*.py"))
    importing = re.compile(
        r"^ *(from|import) tests\.(?!(?:support|fuzz|faults|injected_faults)\b)", re.MULTILINE
    )

    assert len(files) > 100
    assert [path.name for path in files if importing.search(path.read_text("utf-8"))] == []


# Security


def test_each_line_of_the_threat_model_names_a_test_that_exists() -> None:
    cited = [
        names(cells[2])[0]
        for cells in rows(section(ROOT / "SECURITY.md", "What each can and can't do"))
    ]

    assert len(cited) >= 20
    for test in cited:
        path, _, name = test.partition("::")
        assert re.search(
            rf"^(?:async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE
        ), test
