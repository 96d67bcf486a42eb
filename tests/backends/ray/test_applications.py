"""A policy version as an application: one name for all who serve the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from ray import cloudpickle, serve
from ray.serve._private.config import DeploymentConfig

from policy_server.backends.ray.applications import Application, VersionDescription
from policy_server.backends.ray.ledger import FilesHere
from policy_server.backends.replica_counts import ReplicaCounts
from policy_server.formats.model_files import Model
from policy_server.schema import ServerSchema
from policy_server.settings import Settings

VERSION = VersionDescription(
    "default",
    Model(Path("models"), "digest"),
    ServerSchema(api_key="secret", url_path="app/v1"),
    ReplicaCounts(1, 1, 1.0),
)
SETTINGS = Settings()


def name_of(version: VersionDescription = VERSION, settings: Settings = SETTINGS) -> str:
    """Return the name of a version's application."""
    return Application(version, settings, is_crowded=False).name


def test_name_tells_the_policy_and_not_the_access_key() -> None:
    rotated = replace(VERSION, schema=replace(VERSION.schema, api_key="another", url_path=""))

    assert name_of(rotated) == name_of()
    assert name_of().startswith("policy-default-")
    assert "secret" not in repr(VERSION.schema.policy_part())


@pytest.mark.parametrize(
    "other",
    [
        replace(VERSION, name="another"),
        replace(VERSION, model=replace(VERSION.model, digest="another")),
        replace(VERSION, schema=ServerSchema(discrete=True)),
    ],
    ids=["policy", "model", "schema"],
)
def test_name_differs_where_the_answers_may(other: VersionDescription) -> None:
    assert name_of(other) != name_of()


def test_name_differs_where_the_replicas_do() -> None:
    assert name_of(replace(VERSION, replicas=ReplicaCounts(2, 2, 1.0))) != name_of()
    assert name_of(replace(VERSION, replicas=ReplicaCounts(1, 2, 1.0))) != name_of()
    assert name_of(settings=Settings(max_call_memory_bytes=10**9)) != name_of()


def test_application_runs_though_another_thread_disturbs_ray_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unregister: Callable[[ModuleType], None] = cloudpickle.unregister_pickle_by_value
    disturbed = [True, True, False]

    def take_back(module: ModuleType) -> None:
        # What another thread that describes a deployment does at the same moment.
        if disturbed and disturbed.pop(0):
            unregister(module)
        unregister(module)

    def run_many(_targets: object, **_: object) -> None:
        # As the real one: it describes the deployments once more.
        DeploymentConfig()
        has_run.append(True)

    has_run: list[bool] = []
    monkeypatch.setattr(cloudpickle, "unregister_pickle_by_value", take_back)
    monkeypatch.setattr(serve, "run_many", run_many)

    Application(VERSION, SETTINGS, is_crowded=False).run(
        FilesHere(Path("files")), socket_folder=None
    )

    assert has_run == [True]
    assert disturbed == []
