"""A process's connection to Ray."""

from __future__ import annotations

import os
import sys

import pytest

from policy_server.backends.ray.connection import without_proxies
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
