"""The Dockerfile: clean, and about files, ports and settings that exist."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from policy_server import __version__
from policy_server.settings import ENV_PREFIX, Settings
from tests.support.folders import ROOT
from tests.support.processes import run, script

DOCKERFILE = (ROOT / "Dockerfile").read_text()
FINAL = DOCKERFILE.rpartition("\nFROM ")[2]
# Without continuations, one instruction a line.
INSTRUCTIONS = re.sub(r"\s*\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>;#\s]", requirement)[0]).lower()


def requirements(path: str) -> list[str]:
    lines = (ROOT / path).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


REQUIREMENTS = requirements("requirements.txt")
LOCKS = ["deploy/image-requirements.txt", "deploy/sbom-requirements.txt"]
# The image's.
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.2"}


def is_in_context(path: str) -> bool:
    """Return whether .dockerignore lets a file into the build; the last rule that fits wins."""
    is_ignored = False
    parts = path.split("/")
    parents = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        patterns = (pattern, pattern.replace("**/", ""))
        if any(fnmatch.fnmatchcase(parent, one) for parent in parents for one in patterns):
            is_ignored = not rule.startswith("!")
    return not is_ignored


@pytest.mark.parametrize("path", ["Dockerfile", "monitoring/fluentd/Dockerfile"])
def test_hadolint_finds_nothing(path: str) -> None:
    assert run(script("hadolint"), path).stdout == ""


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sources = [
        source
        for arguments in re.findall(r"^COPY ((?:(?!--from).)*)$", INSTRUCTIONS, re.MULTILINE)
        for source in arguments.split()[:-1]
        if not source.startswith("--")
    ]

    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert is_in_context(source), source


@pytest.mark.parametrize(
    "path",
    [".env", "saved_model.zip", "models/saved_model.pb", ".git/config", "examples/lpoc/train.py"],
)
def test_secrets_policies_and_history_stay_out(path: str) -> None:
    assert not is_in_context(path)


def test_every_module_of_the_server_is_sent_to_the_builder() -> None:
    modules = list((ROOT / "policy_server").rglob("*.py"))

    assert len(modules) > 100
    for path in modules:
        assert is_in_context(path.relative_to(ROOT).as_posix()), path


def test_server_is_not_root_and_has_no_shell_around_it() -> None:
    [user] = re.findall(r"^USER (\d+):\d+$", FINAL, re.MULTILINE)
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", FINAL, re.MULTILINE)
    [command] = re.findall(r"^CMD (\[\"uvicorn.*)$", FINAL, re.MULTILINE)

    assert user != "0"
    assert entry == '["tini", "--", "sh", "/opt/policy-server/place-policy.sh", "/srv/given"]'
    assert '"app:app"' in command


def test_image_has_no_pip() -> None:
    # The base image's, and what could install it again.
    assert "python -m pip uninstall --yes pip" in FINAL
    assert "rm -rf /usr/local/lib/python3.11/ensurepip" in FINAL


def test_ports_are_the_servers() -> None:
    defaults = [Settings.model_fields[name].default for name in ("metrics_port", "dashboard_port")]

    [exposed] = re.findall(r"^EXPOSE (.*)$", FINAL, re.MULTILINE)
    assert [int(port) for port in exposed.split()] == [8000, *defaults]
    assert "http://127.0.0.1:8000/readyz" in FINAL
    # A container may be given a proxy for its downloads.
    assert "ProxyHandler({})" in FINAL


def test_variables_are_settings() -> None:
    settings = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}

    given = set(re.findall(rf"\b{ENV_PREFIX}[A-Z_]+", DOCKERFILE))
    assert given
    assert given <= settings


def test_no_key_is_set_in_a_layer() -> None:
    assert not re.search(r"^(ENV|ARG).*(KEY|TOKEN|PASSWORD|SECRET)", INSTRUCTIONS, re.MULTILINE)


@dataclass(frozen=True)
class Locked:
    """One package of a lock, with the hashes of its files."""

    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def version(self) -> str:
        [only] = self.requirement.specifier
        assert only.operator == "=="
        return only.version

    def is_for(self, machine: str) -> bool:
        marker = self.requirement.marker
        linux = {"platform_machine": machine, "sys_platform": "linux", **PYTHON}
        return marker is None or marker.evaluate(linux)


def locked(path: str) -> list[Locked]:
    """Return the packages of a lock; nothing else stands in it."""
    text = (ROOT / path).read_text().replace("\\\n", "")
    packages = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line)
            packages.append(Locked(Requirement(requirement), tuple(hashes)))
    return packages


def chosen(path: str, *, machine: str = "x86_64") -> dict[str, str]:
    """Return the versions that a lock gives a machine, by name."""
    packages = [one for one in locked(path) if one.is_for(machine)]
    versions = {name_of(one.requirement.name): one.version for one in packages}
    assert len(versions) == len(packages)
    return versions


@pytest.mark.parametrize("path", LOCKS)
def test_lock_has_exact_versions_hashes_and_no_address(path: str) -> None:
    packages = locked(path)

    assert len(packages) > 20
    for one in packages:
        assert one.requirement.url is None
        assert one.version
        assert one.hashes, one
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", item) for item in one.hashes), one
    assert "://" not in (ROOT / path).read_text()


@pytest.mark.parametrize("path", LOCKS)
def test_image_takes_nothing_that_a_lock_has_no_hash_of(path: str) -> None:
    installs = re.findall(r"-m pip install ([^&]*)", INSTRUCTIONS)

    assert len(installs) == len(LOCKS)
    assert all("--require-hashes" in options for options in installs)
    assert [options for options in installs if f"--requirement {Path(path).name}" in options]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_lock_of_the_image_has_the_versions_of_the_requirements(machine: str) -> None:
    pins = {name_of(line): Requirement(line.partition("#")[0]) for line in REQUIREMENTS}
    versions = chosen(LOCKS[0], machine=machine)
    tensorflow = {name: versions.get(name) for name in ("tensorflow", "tensorflow-cpu")}
    pinned = pins.pop("tensorflow")

    assert len(pins) > 10
    for name, requirement in pins.items():
        assert requirement.specifier.contains(versions[name], prereleases=True), name
    # On x86-64 there is a build for CPUs alone, which is 1 GB smaller.
    taken = {"x86_64": "tensorflow-cpu", "aarch64": "tensorflow"}[machine]
    assert {name for name, version in tensorflow.items() if version} == {taken}
    assert pinned.specifier.contains(tensorflow[taken] or "")


def needed(name: str, extras: Iterable[str], seen: dict[str, set[str]]) -> None:
    """Add to `seen` the packages that an installed one needs, with the extras that are asked."""
    known = seen.setdefault(name, set())
    wanted = {"", *extras} - known
    if not wanted:
        return
    known |= wanted
    for line in distribution(name).requires or ():
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": item}) for item in wanted):
            needed(name_of(one.name), one.extras, seen)


def test_lock_has_each_package_that_the_requirements_bring_along() -> None:
    seen: dict[str, set[str]] = {}
    for line in REQUIREMENTS:
        one = Requirement(line.partition("#")[0])
        needed(name_of(one.name), one.extras, seen)
    versions = chosen(LOCKS[0])

    assert len(seen) > 80
    # The other form of TensorFlow, and what it alone needs, stands in its place.
    missing = {name for name in seen if name not in versions} - {"tensorflow"}
    assert missing == set()


def test_bill_of_materials_names_each_package_with_its_license(tmp_path: Path) -> None:
    environment, target = tmp_path / "venv", tmp_path / "sbom.cdx.json"
    venv.create(environment, with_pip=False)
    [packages] = environment.glob("lib/python*/site-packages")
    names = ["fastapi", "numpy", "starlette"]
    for name in names:
        described = Path(str(distribution(name).locate_file("")))
        shutil.copytree(
            described / f"{name}-{version(name)}.dist-info",
            packages / f"{name}-{version(name)}.dist-info",
        )
    [options] = re.findall(r"cyclonedx-py environment (.*?) +--output-file", INSTRUCTIONS)

    run(
        script("cyclonedx-py"),
        *("environment", *options.split(), "--output-file", str(target), str(environment)),
    )

    assert "--validate" in options
    document = json.loads(target.read_text())
    assert document["bomFormat"] == "CycloneDX"
    assert [(part["name"], part["version"]) for part in document["components"]] == [
        (name, version(name)) for name in names
    ]
    assert all(part["licenses"] for part in document["components"])
    assert document["components"][0]["purl"] == f"pkg:pypi/fastapi@{version('fastapi')}"


def test_tool_of_the_bill_of_materials_is_the_one_that_is_tested() -> None:
    assert chosen(LOCKS[1])["cyclonedx-bom"] == version("cyclonedx-bom")


def test_image_in_kubernetes_examples_is_this_version() -> None:
    chart = (ROOT / "deploy/helm/policy-server/Chart.yaml").read_text()
    cluster = (ROOT / "deploy/kuberay/raycluster.yaml").read_text()

    assert f'appVersion: "{__version__}"' in chart
    assert set(re.findall(r"image: (\S+)", cluster)) == {f"policy_server:{__version__}"}
