"""The composition root, in a process of its own: it sets what belongs to the whole process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.folders import ROOT

STARTED = """
import asyncio, gc
known = gc.get_stats()
from policy_server.asgi import app
are_collected = gc.get_stats() != known

async def main():
    before = gc.get_threshold(), gc.isenabled()
    async with app.lifespan():
        during = gc.get_threshold(), gc.isenabled(), gc.get_freeze_count() > 0
    return before, during

before, during = asyncio.run(main())
print(are_collected, before[0] != during[0], before[1], *during)
"""


def test_server_settles_the_collector_and_sets_its_log(tmp_path: Path) -> None:
    for file in ("schema.yaml", "saved_model.zip"):
        shutil.copy(ROOT / "examples" / "mouse_and_cheese" / file, tmp_path)
    environment = {
        **os.environ,
        "POLICY_SERVER_HOME": str(tmp_path),
        "POLICY_SERVER_BACKEND": "local",
        "POLICY_SERVER_METRICS_PORT": "0",
        "POLICY_SERVER_LOG_FORMAT": "text",
    }

    ended = subprocess.run(
        [sys.executable, "-c", STARTED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )

    line = "False True False (10000, 10, 20) True True"
    assert ended.stdout.splitlines()[-1] == line, ended.stderr
    assert "policy_served" in ended.stderr
