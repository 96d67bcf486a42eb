"""All that the document allows and forbids: `python -m benchmarks.documented CASES EXAMPLE`.

schemathesis asks the server of each example, with all its checks: no 5xx, no status or answer that
OpenAPI does not have, nothing refused that it allows, nothing taken that it forbids.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import yaml

from benchmarks.failures import BenchmarkError
from benchmarks.processes import RunningServer, free_ports, started
from benchmarks.subjects import ROOT
from benchmarks.workplace import clean_environment

_CASES = 5_000
_KEY = "a-key-of-this-run"
_TIMEOUT_S = 90.0
_PAUSE_S = 0.2


def main() -> None:
    """Ask the servers of the examples that are named, or of all; the status tells of faults."""
    cases, *names = sys.argv[1:] or [str(_CASES)]
    names = names or sorted(path.parent.name for path in ROOT.glob("examples/*/schema.yaml"))
    failed = [name for name in names if not _holds(name, cases)]
    if failed:
        sys.exit(f"benchmarks: faults in {', '.join(failed)}")


def _holds(name: str, cases: str) -> bool:
    scratch = Path(tempfile.mkdtemp(prefix="documented-"))
    try:
        home = shutil.copytree(ROOT / "examples" / name, scratch / "home")
        (port,) = free_ports(1)
        environment = {
            **clean_environment(),
            "POLICY_SERVER_HOME": str(home),
            "POLICY_SERVER_BACKEND": "local",
            "POLICY_SERVER_API_KEY": _KEY,
            "POLICY_SERVER_METRICS_PORT": "0",
            "POLICY_SERVER_LOG_LEVEL": "WARNING",
        }
        command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
        log = scratch / "server.log"
        with started(command, environment=environment, folder=ROOT, log=log) as server:
            prefix = _prefix(home / "schema.yaml")
            return _ask(server, f"http://127.0.0.1:{port}{prefix}/openapi.json", cases, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _prefix(schema: Path) -> str:
    path = (yaml.safe_load(schema.read_text()).get("parameters") or {}).get("url_path", "")
    return f"/{path}".rstrip("/")


def _ask(server: RunningServer, document: str, cases: str, scratch: Path) -> bool:
    deadline = time.monotonic() + _TIMEOUT_S
    while not _is_served(document):
        server.check_alive()
        if time.monotonic() > deadline:
            raise BenchmarkError(f"the server did not start within {_TIMEOUT_S:g} s")
        time.sleep(_PAUSE_S)
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", document, "--checks", "all"),
        *("--max-examples", cases, "--header", f"access-token: {_KEY}", "--continue-on-failure"),
        *("--no-color", "--phases", "examples,coverage,fuzzing"),
        # Client libraries are built by Java, for minutes each.
        *("--exclude-path", "/clients/{language}"),
    ]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "benchmarks.documented_hooks",
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(command, cwd=scratch, env=environment, check=False)  # noqa: S603 -- ours
    server.check_alive()
    return run.returncode == 0


def _is_served(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=_TIMEOUT_S):  # noqa: S310 -- http
        return True
    return False


if __name__ == "__main__":
    main()
