"""A start that fails ends uvicorn's own supervisor, and no other program that started it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import asking
from tests.support.folders import EXPORTS, ROOT
from tests.support.processes import command_line, descendants, is_running, run
from tests.support.server_processes import (
    KEY,
    Server,
    compiled_home_of,
    home_of,
    running_server,
    started_server,
)
from tests.support.servers import free_port
from tests.support.unix_sockets import UnixConnection
from tests.support.waiting import wait_until

pytestmark = pytest.mark.service

START_TIMEOUT_S = 150.0
SERVING = "Application startup complete"
ENDED = "Finished server process"
CASES = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())
REASON = "saved_model.zip: not found"
# Answers.
SOME = 80
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


@contextmanager
def at_unix_socket(
    home: Path,
    path: Path,
    workers: int,
    **options: Any,  # noqa: ANN401 -- those of `started_server`
) -> Iterator[Server]:
    """Serve at a UNIX socket."""
    arguments = [] if workers == 1 else ["--workers", str(workers)]
    environment = {"POLICY_SERVER_BACKEND": "local"}
    with started_server(
        home, *arguments, environment=environment, bind=f"--uds {path}", **options
    ) as server:
        server.child.wait_until(
            lambda: server.output().count(SERVING) == workers, timeout_s=START_TIMEOUT_S
        )
        wait_until(lambda: ready_at(path) == httpx.codes.OK)
        yield server


def ready_at(path: Path) -> int:
    """Return the status of `/readyz`; 0 where nobody listens yet."""
    link = UnixConnection(path, timeout=30)
    try:
        link.request("GET", "/readyz")
        return link.getresponse().status
    except OSError:
        return 0
    finally:
        link.close()


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
        server.child.wait_until(lambda: REASON in server.output())

        def has_started_again() -> bool:
            # Seen once the reloader watches, which it tells nobody; each change ends a start.
            if "detected changes" not in server.output():
                (home / "changed.py").write_text("START = 2\n")
            return server.output().count(REASON) >= 2

        server.child.wait_until(has_started_again)
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
        answer = asking.get(f"{server.url}/readyz")
        (home / "schema.yaml").write_text(schema)
        server.child.wait_until(lambda: server.output().count(serving) == 3)

    assert answer.status_code == httpx.codes.OK
    assert not list(tmp_path.glob("ps-*"))


def versions_that_answer(server: Server) -> set[str]:
    """Ask by so many connections that each worker gets some, and return who answered."""
    observation, headers = CASES[0]["observation"], {"access-token": KEY}
    answers = [
        asking.post(f"{server.url}/predict", json=observation, headers=headers) for _ in range(24)
    ]
    assert {answer.status_code for answer in answers} == {httpx.codes.OK}
    return {answer.headers["x-policy-version"] for answer in answers}


def change_versions(server: Server, path: str, content: bytes | None = None) -> None:
    """Change the versions of the only policy."""
    answer = asking.post(
        f"{server.url}/admin/policies/default/{path}",
        content=content,
        headers={"access-token": "admin", "content-type": "application/zip"},
        timeout=120,
    )
    assert answer.is_success, answer.text


def replace_archive(archive: Path) -> None:
    """Put another zip with the same policy in a zip's place."""
    changed = archive.with_suffix(".new")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(changed, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    changed.replace(archive)


@pytest.mark.parametrize("is_deployed", [True, False], ids=["deployed", "nothing deployed"])
def test_worker_that_is_started_over_other_files_follows_the_others(
    tmp_path: Path, *, is_deployed: bool
) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path / "home")
    archive = home / "saved_model.zip"
    upload = archive.read_bytes()
    environment = {"POLICY_SERVER_BACKEND": "local", "POLICY_SERVER_ADMIN_KEY": "admin"}

    with running_server(home, "--workers", "2", environment=environment) as server:
        server.child.wait_until(lambda: server.output().count(SERVING) == 2)
        if is_deployed:
            change_versions(server, "versions?version=v2", upload)
            wait_until(lambda: versions_that_answer(server) == {"v2"})
        replace_archive(archive)
        workers = [pid for pid in descendants(server.process.pid) if "spawn" in command_line(pid)]

        os.kill(workers[0], signal.SIGKILL)
        server.child.wait_until(lambda: server.output().count(SERVING) == 3)
        after = versions_that_answer(server)
        change_versions(server, "versions?version=v3", upload)
        wait_until(lambda: versions_that_answer(server) == {"v3"})
        if is_deployed:
            assert after == {"v2"}
            # Without it, the old files are the former version, which only one worker has.
            change_versions(server, "rollback")
            wait_until(lambda: versions_that_answer(server) == {"v2"})

        assert server.output().count("policy_files_changed") == 1
        change_versions(server, "versions?version=v4", upload)
    with running_server(home, environment=environment) as server:
        assert versions_that_answer(server) == {"v4"}


@pytest.mark.parametrize("is_deployed", [True, False], ids=["deployed since", "deployed before"])
def test_deployment_outlives_a_restart_where_it_was_made_over_the_files_that_workers_took_in(
    tmp_path: Path, *, is_deployed: bool
) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path / "home")
    archive = home / "saved_model.zip"
    upload = archive.read_bytes()
    environment = {
        "POLICY_SERVER_BACKEND": "local",
        "POLICY_SERVER_ADMIN_KEY": "admin",
        # Seconds in which a worker has to be there: it compiles the policy first.
        "UVICORN_TIMEOUT_WORKER_HEALTHCHECK": "60",
    }

    with running_server(home, "--workers", "2", environment=environment) as server:
        server.child.wait_until(lambda: server.output().count(SERVING) == 2)
        change_versions(server, "versions?version=v2", upload)
        replace_archive(archive)

        os.kill(server.process.pid, signal.SIGHUP)
        # A worker ends once its successor serves.
        server.child.wait_until(lambda: server.output().count(ENDED) == 2)
        if is_deployed:
            change_versions(server, "versions?version=v3", upload)
    with running_server(home, environment=environment) as server:
        answering = versions_that_answer(server)

    assert ("v3" in answering) == is_deployed
    assert "v2" not in answering


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_workers_start_ends_them_and_their_supervisor_in_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    # The first start compiles the policy, for some seconds.
    home = home_of("ppo_discrete", tmp_path / "home")
    environment = {"POLICY_SERVER_BACKEND": "local", "TMPDIR": str(tmp_path)}
    with started_server(home, "--workers", "2", environment=environment) as server:
        server.child.wait_until(lambda: "loading_policy" in server.output())

        server.process.send_signal(number)

        assert server.process.wait(60) == 0
    assert [found.name for found in tmp_path.iterdir()] == ["home"]


def asked_meanwhile(
    happen: Callable[[list[int]], object],
    connect: Callable[[], http.client.HTTPConnection],
    body: str,
    *,
    clients: int,
) -> tuple[list[int], list[Exception]]:
    """Let something happen to a server under load.

    Args:
        happen: is given the statuses of the answers, to which others are added meanwhile.
        connect: makes a client's next connection, each for one request.
        body: of the requests.
        clients: how many ask, until nobody listens any more, or `happen` has ended with True.

    Returns:
        The statuses of all answers, and how other requests were lost.
    """
    answered: list[int] = []
    is_over = threading.Event()

    def ask() -> Exception | None:
        """Ask, each time by another connection, until none is taken any more."""
        while not is_over.is_set():
            link = connect()
            try:
                link.connect()
            except (ConnectionRefusedError, FileNotFoundError):
                return None
            try:
                link.request("POST", "/predict", body, {"access-token": KEY})
                answered.append(link.getresponse().status)
            except (OSError, http.client.HTTPException) as error:
                return error
            finally:
                link.close()
        return None

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask) for _ in range(clients)]
        wait_until(lambda: len(answered) >= SOME)
        if happen(answered) is True:
            is_over.set()
    return answered, [reason for future in asking if (reason := future.result()) is not None]


def stopped_under_load(
    server: Server,
    number: signal.Signals,
    connect: Callable[[], http.client.HTTPConnection],
    body: str,
    *,
    clients: int,
) -> tuple[list[int], list[Exception]]:
    """Stop a server under load; return the statuses of its answers, and how others were lost."""
    return asked_meanwhile(
        lambda _: server.process.send_signal(number), connect, body, clients=clients
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_loses_no_request_of_clients_that_connect_again(
    tmp_path: Path, workers: int
) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path / "home")
    body = json.dumps(CASES[0]["observation"])
    environment = {"POLICY_SERVER_BACKEND": "local"}
    arguments = [] if workers == 1 else ["--workers", str(workers)]
    serving = "Application startup complete"
    with running_server(home, *arguments, environment=environment) as server:
        server.child.wait_until(lambda: server.output().count(serving) == workers)
        place = httpx.URL(server.url).netloc.decode()
        connect = partial(http.client.HTTPConnection, place, timeout=30)
        answered, lost = stopped_under_load(server, signal.SIGTERM, connect, body, clients=8)

        assert lost == []
        assert {*answered} == {httpx.codes.OK}
        assert server.process.wait(60) in (0, -signal.SIGTERM)


def test_sigterm_to_workers_and_their_supervisor_loses_no_request_and_no_time_to_go(
    tmp_path: Path,
) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path / "home")
    body = json.dumps(CASES[0]["observation"])
    environment = {"POLICY_SERVER_BACKEND": "local", "POLICY_SERVER_DRAIN_S": "3"}
    with running_server(home, "--workers", "2", environment=environment) as server:
        server.child.wait_until(lambda: server.output().count(SERVING) == 2)
        place = httpx.URL(server.url).netloc.decode()
        connect = partial(http.client.HTTPConnection, place, timeout=30)
        workers = [pid for pid in descendants(server.process.pid) if "spawn" in command_line(pid)]
        began = time.monotonic()

        def stop(_: list[int]) -> None:
            # As systemd stops a unit.
            for pid in (server.process.pid, *workers):
                os.kill(pid, signal.SIGTERM)

        answered, lost = asked_meanwhile(stop, connect, body, clients=8)
        ended_after = time.monotonic() - began

        assert lost == []
        assert {*answered} == {httpx.codes.OK}
        assert ended_after >= 3
        assert server.process.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["stopped", "hung up"])
def test_next_server_at_a_given_socket_answers_what_the_one_before_it_has_not(
    tmp_path: Path, number: signal.Signals
) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path / "home")
    body = json.dumps(CASES[0]["observation"])
    environment = {"POLICY_SERVER_BACKEND": "local"}
    with ExitStack() as running, socket.create_server(("127.0.0.1", 0), backlog=64) as given:

        def start() -> Server:
            """Start as systemd does, which keeps the socket."""
            starting = started_server(
                home,
                environment=environment,
                bind=f"--fd {given.fileno()}",
                descriptors=[given.fileno()],
            )
            started = running.enter_context(starting)
            started.child.wait_until(lambda: SERVING in started.output(), timeout_s=START_TIMEOUT_S)
            return started

        def start_again(answered: list[int]) -> bool:
            first.process.send_signal(number)
            assert first.process.wait(60) == -signal.SIGTERM
            before = len(answered)
            start()
            wait_until(lambda: len(answered) >= before + SOME)
            return True

        first = start()
        # A start takes long where many tests run.
        host, port = given.getsockname()
        connect = partial(http.client.HTTPConnection, host, port, timeout=150)
        answered, lost = asked_meanwhile(start_again, connect, body, clients=8)

    assert lost == []
    assert {*answered} == {httpx.codes.OK}


@pytest.mark.parametrize(
    ("workers", "number"),
    [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGINT)],
    ids=["alone", "workers", "interrupted"],
)
def test_stop_loses_no_request_at_a_unix_socket_and_leaves_no_file(
    tmp_path: Path, workers: int, number: signal.Signals
) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path / "home")
    body = json.dumps(CASES[0]["observation"])
    path = tmp_path / "s"
    with at_unix_socket(home, path, workers) as server:
        connect = partial(UnixConnection, path, timeout=30)
        answered, lost = stopped_under_load(server, number, connect, body, clients=16)

        assert lost == []
        assert {*answered} == {httpx.codes.OK}
        assert server.process.wait(60) in (0, -number)
    assert [found.name for found in tmp_path.iterdir()] == ["home"]


def test_unix_socket_is_free_when_the_workers_have_ended_with_their_supervisor(
    tmp_path: Path,
) -> None:
    home, path = compiled_home_of("ppo_discrete", tmp_path / "home"), tmp_path / "s"
    with at_unix_socket(home, path, 2) as server:
        workers = descendants(server.process.pid)
        server.process.kill()
        wait_until(lambda: not any(map(is_running, workers)))

        assert not path.exists()


def test_workers_that_are_replaced_go_on_listening_at_a_unix_socket(tmp_path: Path) -> None:
    home, path = compiled_home_of("ppo_discrete", tmp_path / "home"), tmp_path / "s"
    with at_unix_socket(home, path, 2) as server:
        for pid in descendants(server.process.pid):
            if "spawn" in command_line(pid):
                os.kill(pid, signal.SIGTERM)
        server.child.wait_until(lambda: server.output().count("Finished server process") == 2)
        server.child.wait_until(lambda: server.output().count(SERVING) == 4)

        assert {ready_at(path) for _ in range(8)} == {httpx.codes.OK}
        assert [found.name for found in tmp_path.iterdir() if found.name != "home"] == ["s"]


def test_command_starts_workers_over_the_unix_socket_of_a_killed_server(tmp_path: Path) -> None:
    home, path = compiled_home_of("ppo_discrete", tmp_path / "home"), tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))

    command = (sys.executable, "generate.py", "serve")
    with at_unix_socket(home, path, 2, command=command):
        assert ready_at(path) == httpx.codes.OK


def test_workers_end_with_their_supervisor_and_the_next_server_has_the_port(
    tmp_path: Path,
) -> None:
    home, port = compiled_home_of("ppo_discrete", tmp_path / "home"), free_port()
    environment = {"POLICY_SERVER_BACKEND": "local", "TMPDIR": str(tmp_path)}
    with running_server(home, "--workers", "2", environment=environment, port=port) as server:
        server.child.wait_until(lambda: server.output().count("Application startup complete") == 2)
        workers = descendants(server.process.pid)

        server.process.kill()
        wait_until(lambda: not any(map(is_running, workers)))
        with running_server(home, "--workers", "2", environment=environment, port=port) as another:
            answer = asking.get(f"{another.url}/readyz")

    assert answer.status_code == httpx.codes.OK
    assert not list(tmp_path.glob("ps-*"))


@pytest.mark.parametrize("has_others", [True, False], ids=["one by one", "all at once"])
def test_workers_that_are_replaced_go_on_listening(tmp_path: Path, *, has_others: bool) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path / "home")
    environment = {"POLICY_SERVER_BACKEND": "local"}
    # uvicorn gives a new worker 5 s to start, which is short where many tests run.
    arguments = ("--workers", "2", "--timeout-worker-healthcheck", "60")
    with running_server(home, *arguments, environment=environment) as server:
        serving = "Application startup complete"
        server.child.wait_until(lambda: server.output().count(serving) == 2)
        if has_others:
            # uvicorn starts each new worker before it ends an old one.
            server.process.send_signal(signal.SIGHUP)
        else:
            for pid in descendants(server.process.pid):
                if "spawn" in command_line(pid):
                    os.kill(pid, signal.SIGTERM)
        server.child.wait_until(lambda: server.output().count("Finished server process") == 2)
        server.child.wait_until(lambda: server.output().count(serving) == 4)

        statuses = {asking.get(f"{server.url}/readyz").status_code for _ in range(8)}

    assert statuses == {httpx.codes.OK}


@pytest.mark.parametrize("workers", [1, 2])
def test_load_balancers_hear_that_a_server_ends_before_it_does(
    tmp_path: Path, workers: int
) -> None:
    home = compiled_home_of("ppo_discrete", tmp_path / "home")
    environment = {"POLICY_SERVER_BACKEND": "local", "POLICY_SERVER_DRAIN_S": "4"}
    arguments = [] if workers == 1 else ["--workers", str(workers)]
    serving = "Application startup complete"
    with running_server(home, *arguments, environment=environment) as server:
        server.child.wait_until(lambda: server.output().count(serving) == workers)
        headers = {"access-token": KEY}
        observation = CASES[0]["observation"]
        assert asking.get(f"{server.url}/readyz").status_code == httpx.codes.OK

        server.process.send_signal(signal.SIGTERM)
        server.child.wait_until(lambda: server.output().count("draining") == workers)
        # Each by a connection of its own.
        ready = [asking.get(f"{server.url}/readyz") for _ in range(8)]
        answers = [
            asking.post(f"{server.url}/predict", json=observation, headers=headers)
            for _ in range(8)
        ]

        assert {answer.status_code for answer in ready} == {httpx.codes.SERVICE_UNAVAILABLE}
        assert ready[0].json()["detail"] == "the server is ending; ask another one"
        assert {answer.status_code for answer in answers} == {httpx.codes.OK}
        assert server.process.wait(60) in (0, -signal.SIGTERM)
