"""Policies of stable-baselines3 over HTTP, from the .zip that the library wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.folders import ROOT
from tests.support.server_processes import running_server, started_server

pytestmark = pytest.mark.service

POLICIES = ROOT / "tests" / "data" / "policies"
LOCAL = {"POLICY_SERVER_BACKEND": "local"}


def home_of(name: str, folder: Path, *others: str) -> Path:
    """Make a home folder with a policy's own file and its schema.yaml."""
    for file in ("policy.zip", "schema.yaml", *others):
        shutil.copy(POLICIES / name / file, folder / file)
    return folder


def test_policy_with_vec_normalize_answers_as_the_library_does(tmp_path: Path) -> None:
    cases = json.loads((POLICIES / "sb3_ppo_vecnorm" / "cases.json").read_text())
    home = home_of("sb3_ppo_vecnorm", tmp_path, "vec_normalize.pkl")

    with running_server(home, environment=LOCAL) as server, server.client() as client:
        answers = [client.post("/distribution", json=case["observation"]).json() for case in cases]
        loaded = Path(f"/proc/{server.process.pid}/maps").read_text()

    found = [answer["components"][0]["probabilities"] for answer in answers]
    for probabilities, case in zip(found, cases, strict=True):
        assert probabilities == pytest.approx(case["expected"]["probabilities"], abs=1e-5)
    assert "tensorflow" not in loaded


def test_box_actions_come_in_the_environment_s_units(tmp_path: Path) -> None:
    case = json.loads((POLICIES / "sb3_td3" / "cases.json").read_text())[0]

    with (
        running_server(home_of("sb3_td3", tmp_path), environment=LOCAL) as server,
        server.client() as client,
    ):
        answer = client.post("/predict_deterministic", json=case["observation"]).json()

    expected = case["expected"]["deterministic_action_env_space"]
    assert answer["actions"] == pytest.approx(expected, abs=1e-5)


def test_missing_statistics_are_one_line_and_no_start(tmp_path: Path) -> None:
    with started_server(home_of("sb3_ppo_vecnorm", tmp_path), environment=LOCAL) as server:
        assert server.process.wait(60) != 0

    assert "put what VecNormalize.save wrote beside it as vec_normalize.pkl" in server.output()
    assert "Traceback" not in server.output()
