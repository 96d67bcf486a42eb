"""The environments of processes that the server and its commands start hold no secrets."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from policy_server.backends.ray_guard import start_guard
from policy_server.backends.ray_processes import make_rays_folder
from policy_server.child_environment import (
    environment_of_child,
    is_secret,
    whole_environment,
    without_secrets,
)
from policy_server.errors import PolicyServerError
from policy_server.formats.compiling_process import find_signature
from policy_server.formats.keras.stored_weights import read_weights
from policy_server.sdk.generator import generate
from policy_server.settings import Settings, read_settings
from tests.support.folders import ROOT
from tests.support.waiting import wait_until

SECRETS = {
    "POLICY_SERVER_API_KEY": "hush-a",
    "policy_server_admin_key": "hush-b",
    "POLICY_SERVER_METRICS_KEY": "hush-c",
    "POLICY_SERVER_STATE_KEY": "hush-d-is-longer",
    "POLICY_SERVER_SESSIONS_URL": "redis://:hush-e@127.0.0.1/0",
    "POLICY_SERVER_MODEL_URI": "https://127.0.0.1/m.zip?X-Amz-Signature=hush-f",
    "AWS_ACCESS_KEY_ID": "hush-g",
    "AWS_SECRET_ACCESS_KEY": "hush-h",
    "AWS_SESSION_TOKEN": "hush-i",
    "AZURE_CLIENT_SECRET": "hush-j",
    "AZURE_STORAGE_CONNECTION_STRING": "hush-k",
    "GOOGLE_APPLICATION_CREDENTIALS": "/hush-l.json",
    "GOOGLE_APPLICATION_CREDENTIALS_JSON": "{hush-m}",
    "HF_TOKEN": "hush-n",
    "GITHUBTOKEN": "hush-o",
    "GRAFANA_PASSWORD": "hush-p",
    "PGPASSWORD": "hush-q",
    "MYSQL_PWD": "hush-r",
    "db_pass": "hush-s",
    "RAY_AUTH_TOKEN": "hush-t",
    "UVICORN_SSL_KEYFILE_PASSWORD": "hush-u",
    "SENTRY_DSN": "hush-v",
    "STRIPE_APIKEY": "hush-w",
    "HTTPS_PROXY": "http://someone:hush-x@proxy.example.com:3128",
    "DATABASE_URL": "postgres://hush-y@127.0.0.1/db",
    "ConnectionStrings__Default": "Server=db; User Id=someone; Password = hush-1;",
    "QUEUE": "Endpoint=sb://x/;SharedAccessKeyName=a;SharedAccessKey=hush-2",
    "DOWNLOAD": "https://store.example.com/file?token=hush-z",
}
HARMLESS = {
    "POLICY_SERVER_MAX_KEY_SESSIONS": "3",
    "POLICY_SERVER_LOG_FORMAT": "text",
    "LD_LIBRARY_PATH": "/opt/lib",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "KEYBOARD": "de",
    "OLDPWD": "/",
    "COMPASS_MODE": "x",
    "HTTP_PROXY": "http://proxy.example.com:3128",
    "NO_PROXY": "localhost,user@example.com",
    "JAVA_TOOL_OPTIONS": "-Xmx1g",
    "LS_COLORS": "*.key=00;32:*.pwd.x=00",
}
# Processes that are servers themselves, and answer by the keys, or that have been started with an
# environment that is held here already: by file and call.
SERVERS = {
    ("demo/server_keeper.py", "subprocess.Popen"): "the server that the demo page starts",
    ("policy_server/commands/serve.py", "os.execv"): "this process becomes the server",
    ("policy_server/tied_processes.py", "os.execv"): "a started process becomes its program",
}
# Calls that start a process, by the modules that they name.
STARTS = re.compile(
    r"subprocess\.\w+|(?:asyncio|\w*loop)\.(?:create_)?subprocess_\w+|multiprocessing\..+"
    r"|os\.(?:exec|fork|popen|posix_spawn|spawn|system)\w*|(?:\w+\.)*ProcessPoolExecutor"
)
NAMED_ALONE = re.compile(
    r"^\s*from (?:os|subprocess|multiprocessing) import (?!parent_process$)", re.MULTILINE
)


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {**SECRETS, **HARMLESS}.items():
        monkeypatch.setenv(name, text)


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Have each Python that is started write its environment to a file, and end."""
    file, fake = tmp_path / "shown", tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nenv > {file}.new && mv {file}.new {file}\n")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))

    def read() -> str:
        wait_until(file.exists)
        return file.read_text()

    return read


def compile_policy(folder: Path) -> None:
    asyncio.run(find_signature(folder, None, Settings()))


def read_keras_weights(folder: Path) -> None:
    (folder / "model.weights.h5").write_bytes(b"")
    read_weights(folder / "model.weights.h5")


def generate_libraries(_: Path) -> None:
    asyncio.run(generate({}, []))


def guard_ray(_: Path) -> None:
    folder = make_rays_folder(os.getpid())
    try:
        start_guard(folder).wait()
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "start", [compile_policy, read_keras_weights, generate_libraries, guard_ray]
)
@pytest.mark.usefixtures("compiled_anew")
def test_process_that_is_started_sees_no_secret(
    start: Callable[[Path], None], shown: Callable[[], str], tmp_path: Path
) -> None:
    # None of them answers.
    with contextlib.suppress(PolicyServerError, RuntimeError):
        start(tmp_path)

    assert "hush" not in shown()
    assert "OMP_NUM_THREADS=1\n" in shown()


@pytest.mark.parametrize("name", SECRETS)
def test_secret_is_not_passed_on(name: str) -> None:
    assert is_secret(name, SECRETS[name])
    assert name not in environment_of_child()


@pytest.mark.parametrize("name", [*HARMLESS, "PATH", "HOME", "PWD"])
def test_variable_that_is_no_secret_is_passed_on(name: str) -> None:
    assert environment_of_child().get(name) == os.environ.get(name)


def test_child_finds_the_package_before_what_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/else")

    assert environment_of_child()["PYTHONPATH"] == f"{ROOT}{os.pathsep}/else"


def test_secrets_are_hidden_from_ray_and_read_all_the_same() -> None:
    with without_secrets():
        inside, settings = dict(os.environ), read_settings()

    assert [text for text in inside.values() if "hush" in text] == ["hush-t"]
    assert inside["RAY_AUTH_TOKEN"] == "hush-t"
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == "hush-b"
    assert settings.max_key_sessions == 3
    assert {name: os.environ[name] for name in SECRETS} == SECRETS


def test_empty_secret_means_the_default_while_secrets_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLICY_SERVER_API_KEY", "")

    with without_secrets():
        assert read_settings().api_key is None


def test_credentials_are_looked_for_where_none_are_hidden() -> None:
    seen: list[str | None] = []

    def look() -> None:
        with whole_environment():
            seen.append(os.environ.get("AWS_SECRET_ACCESS_KEY"))

    with without_secrets():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(0.2)
        assert seen == []
    thread.join(60)

    assert seen == ["hush-h"]


def starts_of(path: Path) -> Iterator[ast.Call]:
    """Give the calls in a module that start a process."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and STARTS.fullmatch(ast.unparse(node.func)):
            yield node


def test_every_process_is_started_without_secrets_but_servers() -> None:
    found, wrong = set(), []
    for folder in ("policy_server", "demo"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            assert NAMED_ALONE.search(path.read_text()) is None, path
            for call in starts_of(path):
                place = (str(path.relative_to(ROOT)), ast.unparse(call.func))
                found.add(place)
                given = [ast.unparse(item.value) for item in call.keywords if item.arg == "env"]
                is_clean = given and given[0] == "environment_of_child()"
                if not is_clean and place not in SERVERS:
                    wrong.append(f"{place[0]}:{call.lineno}")

    assert wrong == []
    assert len(found) > len(SERVERS)
    assert found >= SERVERS.keys()
