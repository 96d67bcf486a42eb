"""A process's connection to Ray."""

from __future__ import annotations

import os
import sys

import pytest

from policy_server.backends.ray.connection import (
    as_not_ready_error,
    sockets_hint,
    without_proxies,
)
from policy_server.errors import NotReadyError
from tests.support.processes import run

PROXY = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "name",
    ["http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "grpc_proxy"],
)
def test_ray_sees_no_proxy_and_downloads_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, PROXY)
    monkeypatch.setenv("no_proxy", "localhost")

    with without_proxies():
        inside = dict(os.environ)

    assert name not in inside
    assert inside["no_proxy"] == "localhost"
    assert os.environ[name] == PROXY


def test_call_after_the_end_starts_no_other_ray_in_a_program_that_imports_ray_first() -> None:
    # What Ray Serve asks once more while its Ray ends.
    lines = "import ray, policy_server.backends.ray; ray.put(1)"

    ended = run(sys.executable, "-c", lines, status=1)

    assert "Ray has not been started yet" in ended.stderr


def test_limit_of_files_with_which_ray_ends_the_process_is_one_line() -> None:
    lines = (
        "import resource, policy_server.backends.ray.connection as connection; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); connection.check_open_files()"
    )

    ended = run(sys.executable, "-c", lines, status=1)

    assert ended.stderr.splitlines()[-1].endswith(
        "ray: needs 128 open files or more, the system allows 64; raise the limit (ulimit -n), or "
        "set POLICY_SERVER_BACKEND=local"
    )


@pytest.mark.parametrize("folder", ["/scratch/users/ann/jobs/12345", "/scratch/é"])
def test_temporary_folder_where_ray_makes_no_sockets_is_named(folder: str) -> None:
    with pytest.raises(NotReadyError) as caught, as_not_ready_error(sockets_hint(folder)):
        raise OSError("the path is too long")

    assert caught.value.message == (
        "ray: could not start or join: the path is too long; Ray's sockets lie in TMPDIR, now "
        f"{folder}: set it to a folder whose path has 25 ASCII letters or fewer, such as /tmp"
    )


def test_other_temporary_folders_are_not_to_blame() -> None:
    assert sockets_hint("/scratch") == ""
