"""Versions that are left while another Ray starts, or while another process holds the ledger."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from policy_server.backends.ray import cluster as cluster_module
from policy_server.backends.ray.application_runs import ApplicationRuns, RunningApplication
from policy_server.backends.ray.applications import Application, VersionDescription
from policy_server.backends.ray.cluster import RayCluster
from policy_server.backends.ray.connection import no_other_ray
from policy_server.backends.ray.ledger import FolderLedger
from policy_server.backends.ray.serve_handle import Handle
from policy_server.backends.replica_counts import ReplicaCounts
from policy_server.errors import NotReadyError
from policy_server.formats.model_files import Model
from policy_server.schema import parse_schema
from tests.support.fakes import components_of, signature_of
from tests.support.processes import child
from tests.support.ray_clusters import SETTINGS
from tests.support.waiting import until

HOLD = """
import fcntl, signal, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
signal.pause()
"""


class NoHandle:
    """Ray Serve's handle of an application that nobody calls."""

    def _init(self, **_: object) -> None: ...

    def options(self, **_: object) -> Any:  # noqa: ANN401 -- no method is called
        """Return nothing that can be called."""


class MortalRay:
    """A membership in a Ray that the test lets die; each time another one follows at once."""

    is_crowded = False
    needed_pids = ()
    addresses: Mapping[str, str] = {}
    ledger_folder = Path()

    def __init__(self) -> None:
        """Begin with a Ray that lives."""
        self._has_died = asyncio.Event()

    def die(self) -> None:
        """Let the Ray die."""
        self._has_died.set()

    async def join(self) -> None: ...

    def is_alive(self) -> bool:
        return not self._has_died.is_set()

    async def lost(self) -> None:
        await self._has_died.wait()

    async def rejoin(self) -> None:
        self._has_died.clear()

    async def turn(self) -> None: ...

    async def has_served(self) -> None: ...

    async def leave(self) -> None: ...


class KeptLedger:
    """A ledger that knows the applications that run; the test holds those of the next Ray up."""

    def __init__(self) -> None:
        """Begin with no application."""
        self.running: set[str] = set()
        self.may_run = asyncio.Event()
        self.may_run.set()
        self.waits = asyncio.Event()

    def enter(self, application: str) -> None: ...

    def leave(self, application: str, *, is_retired: bool) -> None:
        if is_retired:
            self.running.discard(application)

    async def run_unless_present(self, application: Application) -> None:
        self.waits.set()
        await self.may_run.wait()
        self.running.add(application.name)

    async def bring_up(self, application: Application) -> RunningApplication:
        await self.run_unless_present(application)
        signature = signature_of(components_of(("categorical", 2)), width=4)
        return RunningApplication(Handle(NoHandle()), signature, None)


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeptLedger]:
    """Return the ledger of each Ray of a test; its applications are brought up by it alone."""
    ledger = KeptLedger()
    monkeypatch.setattr(cluster_module, "_ledger", lambda _: ledger)

    async def find_none(*_: object) -> None: ...

    monkeypatch.setattr(cluster_module, "find_compiled", find_none)
    for name in ("run_unless_present", "bring_up"):
        ours = getattr(ledger, name)
        monkeypatch.setattr(
            ApplicationRuns, name, lambda _, application, *_rest, ours=ours: ours(application)
        )
    # Looks at the health of replicas would start a Ray.
    with no_other_ray():
        yield ledger


async def wait_for_ever(*_: object) -> None:
    """Stand in for the end of a handle whose Ray does not answer."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("do_handles_end", [True, False])
async def test_version_that_is_unloaded_while_another_ray_starts_is_not_left_on_it(
    ledger: KeptLedger, monkeypatch: pytest.MonkeyPatch, *, do_handles_end: bool
) -> None:
    if not do_handles_end:
        monkeypatch.setattr(ApplicationRuns, "forget", wait_for_ever)
    ray = MortalRay()
    cluster = RayCluster(SETTINGS, ray)
    kept, unloaded = [await cluster.deploy(version_named(name)) for name in ("a", "b")]
    before = set(ledger.running)
    ledger.running.clear()
    ledger.may_run.clear()
    ledger.waits.clear()

    ray.die()
    await until(ledger.waits.is_set)
    await cluster.undeploy(unloaded)
    ledger.may_run.set()
    await until(lambda: kept.application in ledger.running)
    await until(lambda: unloaded.application not in ledger.running)

    assert before == {kept.application, unloaded.application}
    await cluster.undeploy(kept)
    await cluster.aclose()


@pytest.mark.parametrize("are_undeployed", [False, True])
async def test_stop_has_one_bound_for_a_ledger_that_another_process_holds(
    ledger: KeptLedger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, are_undeployed: bool
) -> None:
    held = FolderLedger(tmp_path / "ledger", ledger.running.discard)
    monkeypatch.setattr(cluster_module, "_ledger", lambda _: held)
    cluster = RayCluster(SETTINGS, MortalRay())
    backends = [await cluster.deploy(version_named(f"v{number}")) for number in range(8)]

    lock, log = tmp_path / "ledger" / "lock", tmp_path / "log"
    with child(sys.executable, "-c", HOLD, lock, log=log) as holder:
        await until(lambda: "held" in holder.output())
        # Each by itself would take longer than the test.
        monkeypatch.setattr(cluster_module, "_LEAVE_TIMEOUT_S", 6.0)
        async with asyncio.timeout(25):
            if are_undeployed:
                for backend in backends:
                    await cluster.undeploy(backend)
            await cluster.aclose()


async def test_stop_waits_once_for_a_ledger_that_another_process_holds_and_tells_why(
    ledger: KeptLedger,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = FolderLedger(tmp_path / "ledger", ledger.running.discard)
    monkeypatch.setattr(cluster_module, "_ledger", lambda _: held)
    cluster = RayCluster(SETTINGS, MortalRay())
    await cluster.deploy(version_named("v1"))
    # The first wait takes all of its time, and a second one would take longer than the test.
    monkeypatch.setattr(cluster_module, "_LEAVE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(cluster_module, "END_TIMEOUT_S", 60.0)

    lock, log = tmp_path / "ledger" / "lock", tmp_path / "log"
    with child(sys.executable, "-c", HOLD, lock, log=log) as holder:
        await until(lambda: "held" in holder.output())
        async with asyncio.timeout(25):
            await cluster.aclose()

    [told] = [record for record in caplog.records if record.msg == "application_not_left"]
    assert vars(told)["reason"] == (
        "not within 0.5 s: another process holds the ledger, or Ray does not answer"
    )


async def test_versions_are_left_though_their_handles_do_not_end(
    ledger: KeptLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApplicationRuns, "forget", wait_for_ever)
    # The first one takes all of its time, and the second has the shorter one.
    monkeypatch.setattr(cluster_module, "_LEAVE_TIMEOUT_S", 0.5)
    cluster = RayCluster(SETTINGS, MortalRay())
    backends = [await cluster.deploy(version_named(name)) for name in ("a", "b")]
    before = set(ledger.running)

    for backend in backends:
        await cluster.undeploy(backend)
    await until(lambda: not ledger.running)

    assert before == {backend.application for backend in backends}
    await cluster.aclose()


async def test_ray_that_does_not_give_its_ledger_in_time_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def be_late(_: object) -> None:
        raise GetTimeoutError("Get timed out: some object(s) not ready.")

    monkeypatch.setattr(cluster_module, "_ledger", be_late)
    monkeypatch.setattr(MortalRay, "is_crowded", True)
    with no_other_ray():
        cluster = RayCluster(SETTINGS, MortalRay())

        with pytest.raises(NotReadyError, match=r"^ray: Ray Serve could not be started: Get timed"):
            await cluster.shared_records()

        await cluster.aclose()


async def test_deploy_does_not_wait_for_ever_for_a_controller_that_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(Application, "is_present", lambda _: goes_on.wait())
    monkeypatch.setattr(cluster_module, "_ledger", lambda _: KeptLedger())
    settings = SETTINGS.model_copy(update={"start_timeout_s": 0.2})
    with no_other_ray():
        cluster = RayCluster(settings, MortalRay())
        try:
            async with asyncio.timeout(30):
                with pytest.raises(NotReadyError, match=r"controller did not answer within 0.2 s"):
                    await cluster.deploy(version_named("a"))
        finally:
            goes_on.set()
            await cluster.aclose()


def version_named(name: str) -> VersionDescription:
    """Return a version of a policy that is never loaded."""
    schema = parse_schema("parameters: {api_key: secret}")
    return VersionDescription(name, Model(Path(), name), schema, ReplicaCounts.of(SETTINGS))
