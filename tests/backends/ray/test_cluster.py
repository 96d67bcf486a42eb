"""Policies on one Ray: several at a time, side by side, coming and going; and Ray itself."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from ray._private.worker import global_worker
from ray._raylet import Config  # type: ignore[attr-defined]  # a compiled module
from ray.serve._private.request_router.request_router import RequestRouter

from policy_server.backends.ray.backend import RayBackend
from policy_server.backends.ray.cluster import RayCluster, open_ray_cluster
from policy_server.backends.ray.replica_list import ReplicaList, announce
from policy_server.errors import NotReadyError, PolicyFailedError, SettingsError
from policy_server.metrics import Metrics
from policy_server.serving import OpenedPolicy, PolicyRegistry, PolicySlot
from policy_server.settings import Settings
from policy_server.web import Application, create_app
from tests.support.fakes import slot_of
from tests.support.folders import EXPORTS
from tests.support.ray_clusters import SETTINGS, check_answers, processes_of, version_of
from tests.support.waiting import until
from tests.support.web import client_of, running

pytestmark = [pytest.mark.service, pytest.mark.asyncio(loop_scope="module")]


async def until_no_replica_of(name: str) -> None:
    """Wait until the replicas of a policy, or of all with an empty name, have ended."""
    of_policy = f"ServeReplica:policy-{name}-" if name else "ServeReplica:policy-"
    await until(lambda: not processes_of(of_policy), pause_s=0.1)


async def test_three_policies_answer_side_by_side_on_one_ray(
    cluster: RayCluster, models: Path
) -> None:
    exports = {"a": "ppo_discrete", "b": "ppo_box", "c": "ppo_tuple"}
    versions = [version_of(export, models, name=name) for name, export in exports.items()]

    backends = await asyncio.gather(*map(cluster.deploy, versions))
    await asyncio.gather(*map(check_answers, backends, versions))

    assert len(processes_of("gcs_server")) == 1
    assert len(processes_of("ServeReplica:policy-")) == 3
    for backend in backends:
        await cluster.undeploy(backend)


async def test_deploy_that_is_broken_off_as_it_connects_leaves_nothing(
    cluster: RayCluster, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = version_of("ppo_discrete", models, name="broken")

    async def break_off(_: RayBackend) -> None:
        raise NotReadyError("ended meanwhile")

    with monkeypatch.context() as broken:
        broken.setattr(RayBackend, "connect", break_off)
        with pytest.raises(NotReadyError, match="ended meanwhile"):
            await cluster.deploy(version)

    # Nobody else would end them.
    await until_no_replica_of("broken")
    backend = await cluster.deploy(version)
    await check_answers(backend, version)
    await cluster.undeploy(backend)
    await until_no_replica_of("broken")


async def test_web_process_keeps_nothing_of_ray_for_a_version_that_comes_and_goes(
    cluster: RayCluster, models: Path
) -> None:
    version = version_of("ppo_discrete", models)
    for cpus in (1, 2, 3):
        counts = replace(version.replicas, cpus=cpus)
        backend = await cluster.deploy(replace(version, replicas=counts))
        await check_answers(backend, version)
        await cluster.undeploy(backend)

    gc.collect()
    kept = [type(found) for found in gc.get_objects() if isinstance(found, RequestRouter)]
    # Ray keeps each class that a handle has looked at.
    manager = global_worker.function_actor_manager
    classes = manager._loaded_actor_classes  # noqa: SLF001 -- told nowhere else
    assert kept == []
    assert [kind for kind in classes.values() if "ServeReplica" in kind.__name__] == []


async def test_handle_that_was_needed_ends_with_its_version(
    cluster: RayCluster, models: Path
) -> None:
    version = version_of("ppo_discrete", models)
    backend = await cluster.deploy(version)
    # Without its connections a backend calls by Ray Serve.
    await backend.aclose()
    await check_answers(backend, version)
    routers = [found for found in gc.get_objects() if isinstance(found, RequestRouter)]
    count = len(routers)
    del routers
    await cluster.undeploy(backend)
    del backend

    def is_gone() -> bool:
        gc.collect()
        return not any(isinstance(found, RequestRouter) for found in gc.get_objects())

    assert count == 1
    await until(is_gone, pause_s=0.1)


def app_of(cluster: RayCluster, models: Path, exports: dict[str, str]) -> Application:
    """Build an application of some policies, by name, that compute on the cluster."""
    metrics = Metrics()

    def slot_on_ray(name: str, export: str) -> PolicySlot:
        version = version_of(export, models, name=name)

        @asynccontextmanager
        async def open_policy() -> AsyncIterator[OpenedPolicy]:
            opening = cluster.open(
                version.model, version.schema, metrics.of(name), version.replicas
            )
            async with opening as backend:
                yield OpenedPolicy(backend, version.model.version)

        return slot_of(open_policy, version.schema, name=name, metrics=metrics)

    slots = [slot_on_ray(name, export) for name, export in exports.items()]
    return create_app(PolicyRegistry(slots), Settings(), api_key=None, metrics=metrics)


async def modes_differ(client: httpx.AsyncClient, address: str, export: str) -> int:
    """Ask for the mode of each of an export's cases; count those that are not RLlib's."""
    cases = json.loads((EXPORTS / export / "cases.json").read_text())
    differing = 0
    for case in cases:
        answer = await client.post(
            f"{address}/predict_deterministic_raw", json={"obs": case["raw"]}
        )
        expected = case["expected"]["deterministic_action"]
        found = np.hstack(answer.json()["actions"])
        differing += not np.allclose(found, np.hstack([expected]), atol=1e-5)
    assert cases
    return differing


async def test_two_applications_with_three_policies_answer_on_one_ray(
    cluster: RayCluster, models: Path
) -> None:
    three = {"door": "ppo_discrete", "lift": "ppo_box", "lamp": "dqn_discrete"}
    await until_no_replica_of("")
    first = app_of(cluster, models, three)
    second = app_of(cluster, models, {"other": "ppo_discrete"})

    async with (
        running(first),
        running(second),
        client_of(first) as client,
        client_of(second) as other,
    ):
        differing = await asyncio.gather(
            *(modes_differ(client, f"/policies/{name}", three[name]) for name in three),
            modes_differ(client, "", "ppo_discrete"),
            modes_differ(other, "", "ppo_discrete"),
        )
        ready = (await client.get("/readyz")).status_code, (await other.get("/readyz")).status_code
        rays, replicas = len(processes_of("gcs_server")), len(processes_of("ServeReplica:policy-"))

    assert differing == [0] * 5
    assert ready == (200, 200)
    assert (rays, replicas) == (1, 4)
    await until_no_replica_of("door")


async def test_second_ray_of_a_process_is_refused_and_harms_nobody(
    cluster: RayCluster, models: Path
) -> None:
    version = version_of("ppo_discrete", models)
    backend = await cluster.deploy(version)

    with pytest.raises(SettingsError, match="is connected to a Ray already"):
        async with open_ray_cluster(SETTINGS):
            pass

    await check_answers(backend, version)
    await cluster.undeploy(backend)


async def test_version_goes_while_another_answers(cluster: RayCluster, models: Path) -> None:
    version = version_of("ppo_discrete", models, name="kept")
    kept = await cluster.deploy(version)
    retired = await cluster.deploy(version_of("ppo_box", models, name="retired"))

    async def ask_until(retiring: asyncio.Task[None]) -> int:
        asked = 0
        while not retiring.done():
            await check_answers(kept, version)
            asked += 1
        return asked

    retiring = asyncio.create_task(cluster.undeploy(retired))
    asked = await ask_until(retiring)
    await until_no_replica_of("retired")

    assert asked > 0
    await check_answers(kept, version)
    await cluster.undeploy(kept)


async def test_two_users_of_a_version_share_its_replicas(cluster: RayCluster, models: Path) -> None:
    version = version_of("ppo_discrete", models, name="shared")
    first, second = await asyncio.gather(cluster.deploy(version), cluster.deploy(version))
    replicas = processes_of("ServeReplica:policy-shared-")

    await cluster.undeploy(first)
    await check_answers(second, version)

    assert processes_of("ServeReplica:policy-shared-") == replicas
    assert len(replicas) == 1
    await cluster.undeploy(second)
    await until_no_replica_of("shared")


async def test_version_that_went_comes_again(cluster: RayCluster, models: Path) -> None:
    version = version_of("ppo_discrete", models, name="again")
    await cluster.undeploy(await cluster.deploy(version))

    backend = await cluster.deploy(version)

    await check_answers(backend, version)
    await cluster.undeploy(backend)


async def test_replica_that_dies_comes_back_and_is_counted_once(
    cluster: RayCluster, models: Path
) -> None:
    lost: list[None] = []
    version = version_of("ppo_discrete", models, name="mortal")
    backend = await cluster.deploy(version, count_lost=lambda: lost.append(None))
    [replica] = processes_of("ServeReplica:policy-mortal-")

    calls = [asyncio.create_task(check_answers(backend, version)) for _ in range(20)]
    os.kill(replica, signal.SIGKILL)
    calls += [asyncio.create_task(check_answers(backend, version)) for _ in range(20)]
    await asyncio.gather(*calls)

    assert len(lost) == 1
    assert processes_of("ServeReplica:policy-mortal-") != [replica]
    await cluster.undeploy(backend)


async def test_eight_replicas_are_found_and_all_are_asked(
    cluster: RayCluster, models: Path
) -> None:
    settings = SETTINGS.model_copy(update={"num_replicas": 8})
    version = version_of("ppo_discrete", models, name="many", settings=settings)
    backend = await cluster.deploy(version)

    await until(lambda: backend.capacity == 8, timeout_s=120)
    await asyncio.gather(*(check_answers(backend, version) for _ in range(16)))
    listed = await ReplicaList(backend.application, call_ray=asyncio.to_thread).addresses()

    assert len({address.replica for address in listed}) == 8
    # All of Ray is on this machine.
    assert all(Path(address.path).is_socket() for address in listed)
    await cluster.undeploy(backend)
    await until_no_replica_of("many")
    assert await ReplicaList(backend.application, call_ray=asyncio.to_thread).addresses() == []


async def test_frozen_replica_fails_no_request_and_holds_none_up_for_long(
    cluster: RayCluster, models: Path
) -> None:
    settings = SETTINGS.model_copy(update={"num_replicas": 2})
    version = version_of("ppo_discrete", models, name="freezing", settings=settings)
    backend = await cluster.deploy(version)
    await until(lambda: backend.capacity == 2, timeout_s=60)
    case = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())[0]
    statuses: list[int] = []
    slowest = 0.0

    @asynccontextmanager
    async def open_policy() -> AsyncIterator[OpenedPolicy]:
        yield OpenedPolicy(backend, version.model.version)

    async def ask(client: httpx.AsyncClient, times: int) -> None:
        nonlocal slowest
        for _ in range(times):
            asked = time.monotonic()
            answer = await client.post("/predict_raw", json={"obs": case["raw"]})
            slowest = max(slowest, time.monotonic() - asked)
            statuses.append(answer.status_code)

    # Calls of few rows, so that both replicas have some all the time.
    few = Settings(max_batch_size=4)
    slot = slot_of(open_policy, version.schema, name="freezing", settings=few)
    app = create_app(PolicyRegistry([slot]), few, api_key=None)
    frozen = processes_of("ServeReplica:policy-freezing-")[0]
    async with running(app), client_of(app) as client:
        await asyncio.gather(*(ask(client, 5) for _ in range(32)))
        asking = [asyncio.create_task(ask(client, 30)) for _ in range(32)]
        await until(lambda: len(statuses) > 300)
        os.kill(frozen, signal.SIGSTOP)
        try:
            await asyncio.gather(*asking)
            is_left_out = backend.capacity == 1
        finally:
            os.kill(frozen, signal.SIGCONT)
        await until(lambda: backend.capacity == 2)
        await asyncio.gather(*(ask(client, 2) for _ in range(32)))

    assert statuses == [200] * (32 * 37)
    assert is_left_out
    # Some ten milliseconds on a machine that has nothing else to do.
    # The frozen one answers nobody: any bound below the deadline says that others did.
    assert slowest < 15
    await cluster.undeploy(backend)


async def test_ray_remembers_few_of_the_replicas_that_have_ended(
    cluster: RayCluster, models: Path
) -> None:
    backend = await cluster.deploy(version_of("ppo_discrete", models))
    # What Ray's head process has told this one.
    remembered = Config.maximum_gcs_destroyed_actor_cached_count()
    await cluster.undeploy(backend)

    assert remembered == 50


async def test_replica_that_has_ended_leaves_the_list(cluster: RayCluster, models: Path) -> None:
    version = version_of("ppo_discrete", models, name="listed")
    backend = await cluster.deploy(version)
    replicas = ReplicaList(backend.application, call_ray=asyncio.to_thread)
    [alive] = await replicas.addresses()
    ended = replace(alive, replica="ended", actor="SERVE_REPLICA::ended")
    await asyncio.to_thread(announce, ended)
    both = await replicas.addresses()

    for address in both:
        await replicas.remove_dead(address)

    assert set(both) == {alive, ended}
    assert await replicas.addresses() == [alive]
    await cluster.undeploy(backend)


async def test_replica_lists_its_signature_or_why_it_has_none(
    cluster: RayCluster, models: Path
) -> None:
    version = version_of("ppo_tuple", models, name="telling")
    backend = await cluster.deploy(version)
    replicas = ReplicaList(backend.application, call_ray=asyncio.to_thread)
    [alive] = await replicas.addresses()
    failed = PolicyFailedError("the policy can't be loaded: no room")
    failed.add_note("In the replica:\nTraceback")
    await asyncio.to_thread(announce, replace(alive, replica="failed", description=failed))

    [reason] = [
        address.description for address in await replicas.addresses() if address.replica == "failed"
    ]

    assert alive.description == backend.signature
    assert isinstance(reason, PolicyFailedError)
    assert (str(reason), reason.__notes__) == (str(failed), failed.__notes__)
    await cluster.undeploy(backend)
