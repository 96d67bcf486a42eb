"""A process's connection to Ray."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import pytest
import ray

from policy_server.backends.ray.connection import (
    as_not_ready_error,
    kept_signal_handlers,
    no_other_ray,
    sockets_hint,
    warn_of_open_dashboard,
    without_proxies,
)
from policy_server.errors import NotReadyError
from tests.support.forked_programs import Ended, run_forked
from tests.support.processes import run
from tests.support.waiting import until

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


MODE_OF_RAY = (
    "import os; import policy_server.backends.ray; "
    "from policy_server.backends.ray.connection import use_token; use_token(); "
    "from ray._raylet import AuthenticationMode, get_authentication_mode; "
    "print(get_authentication_mode() == AuthenticationMode.TOKEN, "
    "len(os.environ['RAY_AUTH_TOKEN']))"
)
EMPTY = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
# Of programs that import Ray first.
PROGRAMS = {
    # What Ray Serve asks once more while its Ray ends.
    "call": "import ray; ray.put(1)",
    "files": (
        "import resource, policy_server.backends.ray.connection as connection; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); connection.check_open_files()"
    ),
    "mode": MODE_OF_RAY,
    # As in a thread that comes back to Ray Serve while one Ray follows another.
    "serve": """
from ray import serve
from policy_server.backends.ray.connection import no_other_ray

with no_other_ray():
    serve.status()
""",
}


@pytest.fixture(scope="module")
def ray_first() -> dict[str, Ended]:
    """Each of `PROGRAMS`, ended, by its name: Ray's variables for a token are empty for it."""
    with pytest.MonkeyPatch.context() as patched:
        for name in EMPTY:
            patched.setenv(name, "")
        return run_forked(PROGRAMS, imports="import ray; import policy_server.backends.ray")


def test_call_after_the_end_starts_no_other_ray_in_a_program_that_imports_ray_first(
    ray_first: dict[str, Ended],
) -> None:
    assert ray_first["call"].status == 1
    assert "Ray has not been started yet" in ray_first["call"].stderr


def test_limit_of_files_with_which_ray_ends_the_process_is_one_line(
    ray_first: dict[str, Ended],
) -> None:
    ended = ray_first["files"]

    assert ended.status == 1
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


# Ray itself ends at its import by a signal where a number is empty.
def test_ray_asks_for_a_token_where_its_variables_are_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*EMPTY, "RAY_ADDRESS", "RAY_worker_niceness", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "")

    ended = run(sys.executable, "-c", MODE_OF_RAY)

    assert ended.stdout.split() == ["True", "64"]


def test_ray_asks_for_a_token_where_it_was_imported_with_empty_variables(
    ray_first: dict[str, Ended],
) -> None:
    assert ray_first["mode"].stdout.split() == ["True", "64"], ray_first["mode"]


@pytest.mark.parametrize("mode", ["disabled", "tokn", ""])
def test_dashboard_without_a_token_that_others_reach_is_warned_of(
    mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)

    warn_of_open_dashboard(host="0.0.0.0")  # noqa: S104 -- what is warned of

    [record] = caplog.records
    assert record.getMessage() == "open_dashboard"


@pytest.mark.parametrize(("mode", "host"), [("token", "0.0.0.0"), ("disabled", "127.0.0.1")])  # noqa: S104 -- what is tried
def test_dashboard_with_a_token_or_on_this_machine_is_not_warned_of(
    mode: str, host: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)

    warn_of_open_dashboard(host=host)

    assert not caplog.records


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's signal masks")
async def test_handlers_of_signals_that_ray_takes_away_come_back_at_once() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        async with kept_signal_handlers():
            # As Ray does below Python while it disconnects.
            ctypes.CDLL(None).signal(int(signal.SIGTERM), None)
            was_caught = _is_caught(signal.SIGTERM)
            await until(lambda: _is_caught(signal.SIGTERM))
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: came)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert (was_caught, came) == (False, [signal.SIGTERM])


def _is_caught(number: signal.Signals) -> bool:
    """Return whether this process has a handler of a signal (proc(5), SigCgt)."""
    status = Path("/proc/self/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_ray_serve_starts_no_ray_of_its_own(ray_first: dict[str, Ended]) -> None:
    assert ray_first["serve"].status == 1
    assert "NotReadyError: ray: ended meanwhile" in ray_first["serve"].stderr


def test_program_may_start_a_ray_once_the_server_has_ended() -> None:
    before = ray.init

    with no_other_ray():
        replaced = ray.init

    assert replaced is not before
    assert ray.init is before
