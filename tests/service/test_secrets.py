"""No key in anything that a server with Ray writes or shows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import asking
from tests.support.folders import ROOT
from tests.support.processes import command_line, descendants
from tests.support.server_processes import Server, running_server

pytestmark = pytest.mark.service

POLICY = ROOT / "tests" / "data" / "policies" / "onnx_actor_logits_dynamic"
# Marks that nothing else has in it.
API, LISTED, ADMIN, SCRAPER, STATE = (f"marked-{name}-0f9d7c25e1" for name in "abcde")
KEYS = (API, LISTED, ADMIN, SCRAPER, STATE)
KEPT = "marked-f-0f9d7c25e1"
# Credentials of other programs, in variables of the same environment.
FOREIGN = "marked-g-0f9d7c25e1"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def server(tmp_path: Path, folder: Path) -> Iterator[Server]:
    home = tmp_path / "home"
    # Read and computed without TensorFlow, which would be most of the time.
    shutil.copytree(POLICY, home)
    text = (home / "schema.yaml").read_text()
    lines = [line for line in text.splitlines() if "api_key" not in line]
    lines.append(f"  api_keys: [{{name: listed, key: {LISTED}}}]")
    (home / "schema.yaml").write_text("\n".join(lines))
    settings = {
        "POLICY_SERVER_API_KEY": API,
        "POLICY_SERVER_ADMIN_KEY": ADMIN,
        "POLICY_SERVER_METRICS_KEY": SCRAPER,
        "POLICY_SERVER_STATE_KEY": STATE,
        "POLICY_SERVER_LOG_LEVEL": "DEBUG",
        "AWS_SECRET_ACCESS_KEY": FOREIGN,
        "HF_TOKEN": FOREIGN,
        "GRAFANA_PASSWORD": FOREIGN,
        # Ray's sockets lie there, whose paths are short.
        "TMPDIR": str(folder),
        "RAY_TMPDIR": str(folder),
    }
    with running_server(home, environment=settings) as server:
        yield server


def test_no_key_is_written_or_shown(server: Server, tmp_path: Path, folder: Path) -> None:
    url, metrics_url = server.url, server.metrics_url
    with asking.client(base_url=url, timeout=60) as client:
        answers = [
            client.post(path, headers={"access-token": key}, content=b"{}")
            for key in (*KEYS, KEPT)
            for path in ("/predict", "/predict/batch", "/admin/policies/default", "/nowhere")
        ]
        listed = [
            client.get(path, headers={"access-token": LISTED})
            for path in ("/schema", "/policies", "/openapi.json")
        ]
    pages = [asking.get(metrics_url, headers={"access-token": key}) for key in (SCRAPER, API)]
    pids = [server.process.pid, *descendants(server.process.pid)]
    of_ray = [pid for pid in pids[1:] if "ray" in command_line(pid)]
    environments = [Path("/proc", str(pid), "environ").read_bytes() for pid in of_ray]
    shown = [answer.text for answer in (*answers, *listed, *pages)]
    titles = [command_line(pid) for pid in pids]
    written = {
        str(path): path.read_bytes()
        for top in (tmp_path, folder)
        for path in top.rglob("*")
        if path.is_file() and path.name != "schema.yaml"
    }

    assert [answer.status_code for answer in listed] == [200, 200, 200]
    # The GCS, the raylet, two agents, the controller, the replica and the guard.
    assert len(environments) >= len(("GCS", "raylet", "agents", "controller", "replica"))
    assert [page.status_code for page in pages] == [200, 401]
    assert 'policy_server_key_requests_total{key="listed"}' in pages[0].text
    assert [path for path in written if "session_" in path and path.endswith(".log")], list(written)
    assert '"key"' in server.output() or "key=" in server.output()
    for key in (*KEYS, KEPT, FOREIGN):
        assert not [text for text in (*shown, *titles, server.output()) if key in text]
        assert not [text for text in environments if key.encode() in text]
        assert not [path for path, content in written.items() if key.encode() in content]
