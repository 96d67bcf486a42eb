"""The program of docs/embedding.md: two policies in a host that its author starts by uvicorn."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.support.folders import ROOT
from tests.support.server_processes import KEY, running_server

MOUSE = {"obs": [5, 0, 1, 4, 3, 2]}
LPOC = {"obs": [1] * 11}

pytestmark = pytest.mark.service


def test_host_of_the_page_serves_and_streams_two_policies_below_their_paths(tmp_path: Path) -> None:
    for name in ("mouse_and_cheese", "lpoc"):
        folder = tmp_path / "policies" / name
        folder.mkdir(parents=True)
        for file in ("schema.yaml", "saved_model.zip"):
            shutil.copy(ROOT / "examples" / name / file, folder)
    page = (ROOT / "docs" / "embedding.md").read_text()
    [program] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "host_program.py").write_text(program)
    command = (sys.executable, "-m", "uvicorn", "host_program:app")
    environment = {"PYTHONPATH": str(ROOT)}

    starting = running_server(tmp_path, environment=environment, command=command, cwd=tmp_path)
    with starting as server, server.client() as client:
        mouse = client.post("/mouse/predict_deterministic_raw", json=MOUSE)
        address = server.url.replace("http", "ws") + "/mouse/predict_deterministic_raw/stream"
        with connect(address, additional_headers={"access-token": KEY}) as stream:
            stream.send(json.dumps(MOUSE))
            streamed = json.loads(stream.recv(timeout=30))
        client.headers["access-token"] = "another-key"
        batch = client.post("/lpoc/predict_raw/batch", json=[LPOC] * 3)

    assert mouse.json()["actions"] == streamed["actions"] == [0]
    assert len(batch.json()["actions"]) == 3
    # The end of both lifespans was waited for.
    assert "Application shutdown complete." in server.output()
