"""The Dockerfile: clean, and about files, ports and settings that exist."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
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
    assert entry == '["tini", "--"]'
    assert '"app:app"' in command


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


def test_constraints_pin_what_requirements_do_not() -> None:
    direct = {name_of(line) for line in requirements("requirements.txt")}

    constraints = requirements("deploy/image-constraints.txt")
    assert constraints
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in constraints)
    assert not {name_of(line) for line in constraints} & direct


def tensorflow_of_the_image(folder: Path, *, architecture: str, form: str = "") -> list[str]:
    """Return the requirements of TensorFlow that the Dockerfile's own command writes."""
    [command] = re.findall(r"(if \[ -n .* > requirements-image\.txt)", INSTRUCTIONS)
    shutil.copy(ROOT / "requirements.txt", folder)
    subprocess.run(["sh", "-c", command], cwd=folder, env={"TENSORFLOW": form}, check=True)
    written = (folder / "requirements-image.txt").read_text()
    given = [Requirement(line) for line in re.findall(r"^tensorflow.*$", written, re.MULTILINE)]
    machine = {"platform_machine": architecture}
    return [
        f"{one.name}{''.join(f'[{extra}]' for extra in one.extras)}{one.specifier}"
        for one in given
        if one.marker is None or one.marker.evaluate(machine)
    ]


@pytest.mark.parametrize(
    ("architecture", "form", "expected"),
    [
        pytest.param("x86_64", "", "tensorflow-cpu", id="x86-64"),
        pytest.param("aarch64", "", "tensorflow", id="arm64"),
        pytest.param("x86_64", "tensorflow[and-cuda]", "tensorflow[and-cuda]", id="gpu"),
    ],
)
def test_tensorflow_of_the_image_is_the_pinned_one_in_the_architectures_form(
    architecture: str, form: str, expected: str, tmp_path: Path
) -> None:
    [pinned] = [one for one in requirements("requirements.txt") if name_of(one) == "tensorflow"]

    chosen = tensorflow_of_the_image(tmp_path, architecture=architecture, form=form)

    assert chosen == [pinned.replace("tensorflow", expected)]


def test_image_in_kubernetes_examples_is_this_version() -> None:
    chart = (ROOT / "deploy/helm/policy-server/Chart.yaml").read_text()
    cluster = (ROOT / "deploy/kuberay/raycluster.yaml").read_text()

    assert f'appVersion: "{__version__}"' in chart
    assert set(re.findall(r"image: (\S+)", cluster)) == {f"policy_server:{__version__}"}
