"""A start that fails ends uvicorn's own supervisor, and no other program that started it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.folders import ROOT
from tests.support.processes import command_line, descendants, run
from tests.support.server_processes import home_of, running_server, started_server
from tests.support.servers import free_port

pytestmark = pytest.mark.service

REASON = "saved_model.zip: not found"
IN_A_CHILD = """
import multiprocessing
import uvicorn

def serve():
    {serve}

if __name__ == "__main__":
    child = multiprocessing.get_context("{method}").Process(target=serve)
    child.start()
    child.join()
    print("the child ended with", child.exitcode)
"""
RUN = 'uvicorn.run("app:app", port={port})'
# As uvicorn's own workers look, but for the program that started it.
AS_A_WORKER = """
    import socket
    config = uvicorn.Config("app:app", workers=2)
    uvicorn.Server(config).run([socket.create_server(("127.0.0.1", 0))])
"""
WITH_WORKERS = """
import uvicorn

if __name__ == "__main__":
    uvicorn.run("app:app", port={port}, workers=2)
    print("uvicorn ended")
"""


def home_without_policy(folder: Path) -> Path:
    home = home_of("ppo_discrete", folder)
    (home / "saved_model.zip").unlink()
    return home


@pytest.mark.parametrize(
    ("program", "last_line"),
    [
        (IN_A_CHILD.format(serve=RUN, method="spawn"), "the child ended with 3"),
        (IN_A_CHILD.format(serve=AS_A_WORKER, method="spawn"), "the child ended with 3"),
        (IN_A_CHILD.format(serve=RUN, method="fork"), "the child ended with 3"),
        (WITH_WORKERS, "uvicorn ended"),
    ],
    ids=["child", "child that is told of workers", "forked child", "workers"],
)
def test_program_that_runs_uvicorn_outlives_a_start_that_fails(
    program: str, last_line: str, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(program.replace("{port}", str(free_port())))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "POLICY_SERVER_HOME": str(home_without_policy(tmp_path / "home")),
        "POLICY_SERVER_BACKEND": "local",
        "POLICY_SERVER_METRICS_PORT": "0",
        "TMPDIR": str(tmp_path),
    }

    ended = run(sys.executable, script, environment=environment)

    assert REASON in ended.stderr
    assert ended.stdout.splitlines()[-1:] == [last_line], ended.stderr
    assert not list(tmp_path.glob("ps-*"))


def test_reloader_outlives_a_start_that_fails_and_starts_again(tmp_path: Path) -> None:
    home = home_without_policy(tmp_path / "home")
    environment = {"POLICY_SERVER_BACKEND": "local", "TMPDIR": str(tmp_path)}
    arguments = ["--reload", "--reload-dir", str(home)]

    with started_server(home, *arguments, environment=environment) as server:
        for starts in (1, 2):

            def has_started(wanted: int = starts) -> bool:
                # Seen once the reloader watches, which it tells nobody.
                (home / "changed.py").write_text(f"START = {wanted}\n" if wanted > 1 else "")
                return server.output().count(REASON) >= wanted

            server.child.wait_until(has_started)
        server.child.check_runs()
    assert not list(tmp_path.glob("ps-*"))


def test_worker_that_cannot_start_does_not_end_those_that_serve(tmp_path: Path) -> None:
    home = home_of("ppo_discrete", tmp_path / "home")
    environment = {"POLICY_SERVER_BACKEND": "local", "TMPDIR": str(tmp_path)}
    with running_server(home, "--workers", "2", environment=environment) as server:
        serving = "Application startup complete"
        server.child.wait_until(lambda: server.output().count(serving) == 2)
        workers = [pid for pid in descendants(server.process.pid) if "spawn" in command_line(pid)]
        schema = (home / "schema.yaml").read_text()
        (home / "schema.yaml").write_text("observations: 5\n")

        os.kill(workers[0], signal.SIGKILL)
        server.child.wait_until(lambda: server.output().count("schema.yaml: observations") >= 2)
        answer = httpx.get(f"{server.url}/readyz")
        (home / "schema.yaml").write_text(schema)
        server.child.wait_until(lambda: server.output().count(serving) == 3)

    assert answer.status_code == httpx.codes.OK
    assert not list(tmp_path.glob("ps-*"))
