"""Two applications of one process that share one Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from policy_server import SharedBackends, create_app
from policy_server.web import Application
from tests.support.folders import EXPORTS
from tests.support.ray_clusters import processes_of
from tests.support.web import client_of

pytestmark = pytest.mark.service

OBSERVATIONS = {"ppo_discrete": 4, "ppo_box": 3}


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    homes = {name: tmp_path / name for name in OBSERVATIONS}
    for name, home in homes.items():
        home.mkdir()
        for file in ("schema.yaml", "saved_model.zip"):
            shutil.copy(EXPORTS / name / file, home / file)
    return homes


async def is_answered(app: Application, width: int) -> bool:
    """Return whether an application gives an action."""
    async with client_of(app) as client:
        answer = await client.post("/predict_raw", json={"obs": [0.1] * width})
    return answer.status_code == 200 and len(answer.json()["actions"]) == 1


async def test_applications_share_one_ray_until_the_last_has_ended(homes: dict[str, Path]) -> None:
    ray = SharedBackends(backend="ray", dashboard_port=0, num_replicas=2, replica_cpus=0.25)
    first = create_app(homes["ppo_discrete"], backends=ray, num_replicas=1)
    second = create_app(homes["ppo_box"], backends=ray)
    narrow, wide = OBSERVATIONS["ppo_discrete"], OBSERVATIONS["ppo_box"]

    async with second.lifespan():
        async with first.lifespan():
            answered = [await is_answered(first, narrow), await is_answered(second, wide)]
            rays, replicas = len(processes_of("gcs_server")), processes_of("ServeReplica:policy-")
        still = await is_answered(second, wide)

    assert answered == [True, True]
    # Of the two replicas that both are given, the first application wants one.
    assert (rays, len(replicas), still) == (1, 3, True)
    assert processes_of("gcs_server") == []
