"""One class of actors for the replicas of all policy versions."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
from ray import _raylet
from ray.experimental.internal_kv import _internal_kv_list
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.deployment_info import DeploymentInfo

from policy_server.backends.ray.cluster import RayCluster
from policy_server.backends.ray.own_ray import report_unshared_class
from policy_server.backends.ray.replica_class import (
    SharedReplica,
    name_process,
    share_replica_class,
    unexpected_insides,
)
from tests.support.ray_clusters import check_answers, processes_of, version_of
from tests.support.waiting import until


def exported_classes() -> set[bytes]:
    """Return the keys of all classes of actors that were ever exported, in Ray's own store."""
    return set(_internal_kv_list(b"ActorClass", namespace=b"fun"))


@pytest.mark.asyncio(loop_scope="module")
async def test_versions_that_come_and_go_export_one_class(
    cluster: RayCluster, models: Path
) -> None:
    version = version_of("ppo_discrete", models)
    exported = []
    for cpus in (1, 2, 3):
        counts = replace(version.replicas, cpus=cpus)
        backend = await cluster.deploy(replace(version, replicas=counts))
        await check_answers(backend, version)
        exported.append(exported_classes())
        await cluster.undeploy(backend)

    assert exported[0]
    assert exported[0] == exported[1] == exported[2]


@pytest.mark.asyncio(loop_scope="module")
async def test_replicas_are_told_apart_by_their_processes_and_names(
    cluster: RayCluster, models: Path
) -> None:
    versions = [version_of("ppo_discrete", models, name=name) for name in ("one", "two")]
    versions = [replace(each, replicas=replace(each.replicas, fewest=2)) for each in versions]
    backends = [await cluster.deploy(version) for version in versions]

    for backend, version in zip(backends, versions, strict=True):
        await check_answers(backend, version)
        title = f"ServeReplica:{backend.application}:policy"
        await until(partial(_are_two, title))
        found = processes_of(title)
        named = [
            name
            for name in (each["name"] for each in ray.util.list_named_actors(all_namespaces=True))
            if name.startswith(f"SERVE_REPLICA::{backend.application}#policy#")
        ]
        assert len(found) == len(named) == 2
    for backend in backends:
        await cluster.undeploy(backend)


def _are_two(title: str) -> bool:
    return len(processes_of(title)) == 2


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share the class in this process, as a worker of Ray does, until the test ends."""
    own = vars(DeploymentInfo)["actor_def"]
    monkeypatch.setattr(DeploymentInfo, "actor_def", own)
    share_replica_class()


def class_of(actor_name: str) -> type:
    """Return the Python class of a deployment's replicas."""
    info = DeploymentInfo(
        DeploymentConfig(),
        ReplicaConfig.create(SharedReplica),
        start_time_ms=0,
        deployer_job_id="",
        actor_name=actor_name,
    )
    found: type = info.actor_def.__ray_metadata__.modified_class
    return found


@pytest.mark.usefixtures("shared")
def test_deployments_of_others_keep_classes_of_their_own() -> None:
    names = ("ServeReplica:policy-a-1:policy", "ServeReplica:policy-b-2:policy")
    first, second = map(class_of, names)
    other = class_of("ServeReplica:shop:Cart")

    assert first is second
    assert issubclass(first, SharedReplica)
    assert other.__name__ == "ServeReplica:shop:Cart"
    assert not issubclass(other, SharedReplica)


def test_title_of_each_call_of_a_replica_names_its_deployment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(_raylet, "setproctitle", titles.append)

    name_process("ServeReplica:policy-a-1:policy")
    set_title: Callable[[str], None] = vars(_raylet)["setproctitle"]
    set_title("ray::ServeReplica:policy")
    set_title("ray::ServeReplica:policy.check_health")

    assert titles == [
        "ray::ServeReplica:policy-a-1:policy",
        "ray::ServeReplica:policy-a-1:policy.check_health",
    ]


def test_process_that_is_no_worker_of_an_own_ray_leaves_ray_serve_as_it_is() -> None:
    assert not issubclass(class_of("ServeReplica:policy-a-1:policy"), SharedReplica)


def test_pinned_ray_serve_is_as_the_shared_class_needs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    report_unshared_class()

    assert unexpected_insides() == ""
    assert caplog.records == []


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("deployment_info.DeploymentInfo.actor_def", "DeploymentInfo.actor_def is no property"),
        ("replica.ReplicaActor.__init__", "ReplicaActor takes no replica_id"),
        (
            "common.DeploymentID.to_replica_actor_class_name",
            "DeploymentID.to_replica_actor_class_name is missing",
        ),
        ("common.ReplicaID.__dataclass_fields__", "ReplicaID has no deployment_id"),
    ],
)
def test_ray_serve_that_has_changed_is_left_as_it_is_and_told_of(
    place: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = f"ray.serve._private.{place}"
    if place.endswith("name"):
        monkeypatch.delattr(whole)
    elif place.endswith("fields__"):
        monkeypatch.setattr(whole, {})
    else:
        monkeypatch.setattr(whole, lambda self: self)
    before = vars(DeploymentInfo)["actor_def"]

    share_replica_class()
    with caplog.at_level(logging.WARNING):
        report_unshared_class()

    assert vars(DeploymentInfo)["actor_def"] is before
    [record] = caplog.records
    assert record.message == "replica_class_not_shared"
    assert vars(record)["reason"] == reason


def test_ray_serve_whose_modules_have_moved_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve._private.deployment_info", None)
    monkeypatch.delitem(sys.modules, share_replica_class.__module__)

    with caplog.at_level(logging.WARNING):
        report_unshared_class()

    [record] = caplog.records
    assert record.message == "replica_class_not_shared"
    assert "deployment_info" in vars(record)["reason"]
