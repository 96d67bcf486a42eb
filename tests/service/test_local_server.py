"""The server without Ray, and the ways a start fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.service.servers import EXPORTS, home_of, running_server, started_server

pytestmark = pytest.mark.service

LOCAL = {"POLICY_SERVER_BACKEND": "local"}


def test_local_server_answers_without_ray(tmp_path: Path) -> None:
    case = json.loads((EXPORTS / "ppo_tuple" / "cases.json").read_text())[0]

    with running_server(home_of("ppo_tuple", tmp_path), environment=LOCAL) as server:
        with server.client() as client:
            answer = client.post("/distribution", json=case["observation"]).json()
        loaded = Path(f"/proc/{server.process.pid}/maps").read_text()

    assert len(answer["components"]) == len(case["expected"]["components"])
    assert answer["components"][10]["probabilities"] == pytest.approx(
        case["expected"]["components"][10]["probabilities"], abs=1e-5
    )
    assert "tensorflow" not in loaded
    assert "_raylet" not in loaded


def test_two_servers_run_side_by_side(tmp_path: Path) -> None:
    first_home, second_home = (
        home_of("ppo_discrete", tmp_path / "a"),
        home_of("sac_box", tmp_path / "b"),
    )

    with (
        running_server(first_home, environment=LOCAL) as first,
        running_server(second_home, environment=LOCAL) as second,
        first.client() as discrete,
        second.client() as continuous,
    ):
        kinds = [
            client.post("/distribution_raw", json={"obs": [0.1] * width}).json()["components"][0][
                "kind"
            ]
            for client, width in ((discrete, 4), (continuous, 3))
        ]

    assert kinds == ["categorical", "squashed_normal"]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        pytest.param(
            "observations: {a: {type: str}}",
            "observations.a.type: expected one of",
            id="unknown type",
        ),
        pytest.param("", "is empty", id="empty schema"),
        pytest.param("parameters: {discrete: true}", "POLICY_SERVER_API_KEY", id="no key"),
        pytest.param(None, "schema.yaml: not found", id="no schema"),
    ],
)
def test_schema_mistake_is_one_line_and_no_start(
    tmp_path: Path, schema: str | None, expected: str
) -> None:
    home = home_of("ppo_discrete", tmp_path)
    (home / "schema.yaml").unlink() if schema is None else (home / "schema.yaml").write_text(schema)

    with started_server(home, environment=LOCAL) as server:
        status = server.process.wait(60)

    lines = server.output().strip().splitlines()
    assert status != 0
    assert len(lines) == 1
    assert expected in lines[0]


def test_missing_model_is_one_line_and_no_start(tmp_path: Path) -> None:
    home = home_of("ppo_discrete", tmp_path)
    (home / "saved_model.zip").unlink()

    with started_server(home, environment=LOCAL) as server:
        status = server.process.wait(60)

    assert status != 0
    assert "saved_model.zip: not found" in server.output()
    assert "Traceback" not in server.output()


def test_damaged_zip_leaves_the_served_policy_as_it_was(tmp_path: Path) -> None:
    home = home_of("ppo_discrete", tmp_path)
    with running_server(home, environment=LOCAL):
        pass
    served = (home / "models" / "saved_model.pb").read_bytes()
    (home / "saved_model.zip").write_bytes(b"no zip")

    with started_server(home, environment=LOCAL) as server:
        status = server.process.wait(60)

    assert status != 0
    assert "is no zip file or is damaged" in server.output()
    assert (home / "models" / "saved_model.pb").read_bytes() == served
