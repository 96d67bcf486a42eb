"""Deployments: any order of deploys, promotions, failures and restarts leads to a sound one."""

from __future__ import annotations

import asyncio
import errno
import stat
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import SecretStr

from policy_server.errors import (
    DeploymentChangedError,
    DeploymentError,
    ModelError,
    NotReadyError,
    PolicyServerError,
    SessionConflictError,
)
from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import (
    DeployedVersion,
    Deployer,
    Deployment,
    Evidence,
    OpenedPolicy,
    PlannedVersion,
    PolicyOpener,
    PolicySlot,
    Question,
    Sessions,
    VersionOpener,
    deployment_file,
)
from policy_server.serving.deployment_file import DeploymentFile
from policy_server.serving.deployment_store import one_basis
from policy_server.serving.redis_sessions import RedisSessions
from policy_server.serving.session_store import SessionStore
from policy_server.settings import Settings
from tests.support.fakes import integer_backend, opened
from tests.support.redis_servers import redis_server
from tests.support.waiting import turns, until

SCHEMA = parse_schema("observations: {cat: {type: int}, mouse: {type: float}}")
V1 = DeployedVersion("v1", "v1.zip", 100.0)
BROKEN = "broken.zip"


def begun() -> Deployment:
    """Return the deployment of one version."""
    return Deployment.begin([V1])


def test_version_with_all_traffic_is_live_and_the_one_before_stays_for_a_rollback() -> None:
    after = begun().deployed(DeployedVersion("v2", "v2.zip", 100.0))

    assert (after.live, after.former, dict(after.percents)) == ("v2", "v1", {"v2": 100.0})
    assert [item.name for item in after] == ["v1", "v2"]
    again = after.rolled_back()
    assert (again.live, again.former, dict(again.percents)) == ("v1", "v2", {"v1": 100.0})


def test_version_that_was_former_is_undeployed_by_the_next_promotion() -> None:
    two = begun().deployed(DeployedVersion("v2", "v2.zip", 100.0))

    three = two.deployed(DeployedVersion("v3", "v3.zip", 100.0))

    assert [item.name for item in three] == ["v2", "v3"]
    assert (three.live, three.former) == ("v3", "v2")


def test_candidate_takes_its_share_and_is_promoted_or_taken_back() -> None:
    trial = begun().deployed(DeployedVersion("v2", "v2.zip", 10.0))

    assert dict(trial.percents) == {"v1": 90.0, "v2": 10.0}
    assert trial.live == "v1"
    assert dict(trial.promoted().percents) == {"v2": 100.0}
    back = trial.rolled_back()
    assert ([item.name for item in back], dict(back.percents)) == (["v1"], {"v1": 100.0})


def test_shadow_answers_nobody_until_it_is_promoted() -> None:
    shadowed = begun().deployed(DeployedVersion("v2", "v2.zip", is_shadow=True))

    assert dict(shadowed.percents) == {"v1": 100.0}
    assert shadowed.shadows == {"v2"}
    promoted = shadowed.promoted("v2")
    assert (dict(promoted.percents), promoted.shadows) == ({"v2": 100.0}, frozenset())


def test_version_that_waits_for_evidence_gets_copies() -> None:
    trial = begun().deployed(DeployedVersion("v2", "v2.zip", 10.0))

    waiting = trial.awaiting(Evidence("", after=100, max_disagreement=0.02))

    assert waiting.shadows == {"v2"}
    assert waiting.waiting_for == Evidence("v2", 100, 0.02)
    assert waiting.promoted("v2").waiting_for is None
    assert waiting.rolled_back().shadows == frozenset()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it.deployed(V1), "version v1 is deployed already"),
        (lambda it: it.promoted(), r"there are 0 versions to promote \(none\)"),
        (lambda it: it.promoted("v1"), "version v1 is live already"),
        (lambda it: it.promoted("v9"), "there is no version v9; expected one of v1"),
        (lambda it: it.rolled_back(), "version v1 is live, and none before it is loaded"),
        (lambda it: it.undeployed("v1"), "version v1 is live; promote another one"),
        (lambda it: it.undeployed("v9"), "there is no version v9"),
    ],
)
def test_change_that_does_not_fit_is_refused(change: Any, message: str) -> None:  # noqa: ANN401 -- a change
    with pytest.raises(DeploymentError, match=message):
        change(begun())


async def start(deployer: Deployer) -> None:
    """Load the versions of a deployer, as a server does."""
    deployer.plan()
    await deployer.slot.start()
    deployer.adopt()


def opener(version: DeployedVersion) -> PolicyOpener:
    """Return what loads a version of a fake, which fails for a broken model."""

    def open_version() -> AbstractAsyncContextManager[OpenedPolicy]:
        if version.model == BROKEN:
            raise ModelError("the model is broken")
        return opened(integer_backend())

    return open_version


def deployer_of(
    home: Path,
    *,
    basis: str = "today",
    session_drain_s: float = 0.0,
    sessions: SessionStore | None = None,
    opening: VersionOpener = opener,
    has_other_files: bool = False,
) -> Deployer:
    """Return a deployer of a policy that begins with one version."""
    planned = [PlannedVersion("v1", opening(V1), V1.model)]
    slot = PolicySlot(
        "door", SCHEMA, planned, settings=Settings(), metrics=Metrics(), sessions=sessions
    )
    return Deployer(
        slot,
        opening,
        DeploymentFile(home, one_basis({"door": basis})),
        period_s=0.01,
        session_drain_s=session_drain_s,
        has_other_files=has_other_files,
    )


class Deployments(RuleBasedStateMachine):
    """Any order of changes, failures and restarts of one server."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        self.deployer = deployer_of(Path(self.folder.name))
        self.count = 1

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 -- what the work gives
        """Run a coroutine."""
        return self.loop.run_until_complete(work)

    def change(self, work: Coroutine[Any, Any, Deployment]) -> None:
        """Carry out a change, or see that one that is refused changes nothing."""
        before = (self.deployer.deployment, dict(self.deployer.slot.versions))
        traffic = self.deployer.slot.traffic
        try:
            self.run(work)
        except PolicyServerError:
            assert (self.deployer.deployment, dict(self.deployer.slot.versions)) == before
            assert self.deployer.slot.traffic is traffic

    @initialize()
    def begin(self) -> None:
        """Start the server."""
        self.run(start(self.deployer))

    @rule(percent=st.sampled_from([0.0, 10.0, 50.0, 100.0]), is_shadow=st.booleans())
    def deploy(self, percent: float, is_shadow: bool) -> None:  # noqa: FBT001 -- Hypothesis' own
        """Deploy a sound version."""
        self.count += 1
        share = 0.0 if is_shadow else percent
        name = f"v{self.count}"
        self.change(
            self.deployer.deploy(DeployedVersion(name, f"{name}.zip", share, is_shadow=is_shadow))
        )

    @rule(percent=st.sampled_from([10.0, 100.0]))
    def deploy_broken(self, percent: float) -> None:
        """Deploy a version that can't be loaded."""
        self.count += 1
        self.change(self.deployer.deploy(DeployedVersion(f"v{self.count}", BROKEN, percent)))

    @rule(number=st.integers(1, 6))
    def deploy_again(self, number: int) -> None:
        """Deploy under a name that may be taken."""
        self.change(self.deployer.deploy(DeployedVersion(f"v{number}", "again.zip", 50.0)))

    @rule(number=st.one_of(st.none(), st.integers(1, 6)))
    def promote(self, number: int | None) -> None:
        """Promote a version."""
        self.change(self.deployer.promote(None if number is None else f"v{number}"))

    @rule()
    def roll_back(self) -> None:
        """Roll back."""
        self.change(self.deployer.roll_back())

    @rule(number=st.integers(1, 6))
    def undeploy(self, number: int) -> None:
        """Undeploy a version."""
        self.change(self.deployer.undeploy(f"v{number}"))

    @rule()
    def restart(self) -> None:
        """End the server in the middle of whatever it does, and start it again."""
        before = self.deployer.deployment
        self.run(self.deployer.aclose())
        self.run(self.deployer.slot.aclose())
        self.deployer = deployer_of(Path(self.folder.name))
        self.run(start(self.deployer))
        if before is not None and before.serial:
            assert self.deployer.deployment is not None
            assert self.deployer.deployment.versions == before.versions
            assert self.deployer.deployment.live == before.live

    @precondition(lambda self: self.deployer.deployment is not None)
    @invariant()
    def deployment_is_sound(self) -> None:
        """Hold the deployment, and the slot against it."""
        deployment, slot = self.deployer.deployment, self.deployer.slot
        assert deployment is not None
        names = [item.name for item in deployment]
        assert len(names) == len(set(names))
        assert deployment.live in names
        assert deployment.former is None or deployment.former in names
        assert deployment.former != deployment.live
        assert sum(deployment.percents.values()) == pytest.approx(100.0)
        assert not deployment.shadows & {*deployment.percents}
        assert set(names) <= set(slot.versions)
        assert slot.traffic is not None
        shares = {share.version.label: share.percent for share in slot.traffic.shares}
        assert shares == pytest.approx(dict(deployment.percents))
        version = slot.choose()
        self.run(version.scheduler.answer(Question([0.0, 0.0], "predict")))

    def teardown(self) -> None:
        """End the server."""
        self.run(self.deployer.aclose())
        self.run(self.deployer.slot.aclose())
        self.loop.close()
        self.folder.cleanup()


TestDeployments = pytest.mark.filterwarnings("ignore::ResourceWarning")(Deployments.TestCase)
TestDeployments.settings = settings(
    max_examples=60,
    stateful_step_count=20,
)


async def test_version_is_unloaded_when_its_episodes_have_ended(tmp_path: Path) -> None:
    deployer = deployer_of(tmp_path, session_drain_s=60.0)
    await start(deployer)
    version = deployer.slot.choose("episode")
    await deployer.deploy(DeployedVersion("v2", "v2.zip", 100.0))
    await deployer.deploy(DeployedVersion("v3", "v3.zip", 100.0))
    still = deployer.slot.choose("episode")
    with pytest.raises(DeploymentError, match="still answers its last episodes"):
        await deployer.deploy(V1)
    deployer.slot.end_episode("episode")
    await until(lambda: "v1" not in deployer.slot.versions)

    assert version is still
    assert deployer.slot.choose("episode").label == "v3"
    await deployer.aclose()
    await deployer.slot.aclose()


async def test_episode_that_never_ends_keeps_its_version_for_a_bounded_time(
    tmp_path: Path,
) -> None:
    deployer = deployer_of(tmp_path, session_drain_s=0.05)
    await start(deployer)
    deployer.slot.choose("episode")
    await deployer.deploy(DeployedVersion("v2", "v2.zip", 100.0))
    await deployer.deploy(DeployedVersion("v3", "v3.zip", 100.0))
    during = deployer.slot.choose("episode").label
    await until(lambda: deployer.slot.choose("episode").label == "v3", timeout_s=5)

    assert during == "v1"
    assert "v1" not in deployer.slot.versions
    await deployer.aclose()
    await deployer.slot.aclose()


async def test_version_that_drains_is_unloaded_at_once_when_it_is_undeployed_again(
    tmp_path: Path,
) -> None:
    deployer = deployer_of(tmp_path, session_drain_s=3600.0)
    await start(deployer)
    deployer.slot.choose("episode")
    await deployer.deploy(DeployedVersion("v2", "v2.zip", 100.0))
    before = await deployer.undeploy("v1")
    await turns()
    is_kept = "v1" in deployer.slot.versions

    after = await deployer.undeploy("v1")

    assert is_kept
    assert after == before
    assert set(deployer.slot.versions) == {"v2"}
    assert deployer.slot.choose("episode").label == "v2"
    with pytest.raises(DeploymentError, match="there is no version v1"):
        await deployer.undeploy("v1")
    await deployer.deploy(DeployedVersion("v1", "v1.zip", 100.0))
    await deployer.aclose()
    await deployer.slot.aclose()


@pytest.mark.parametrize("has_ended", [True, False], ids=["ended", "out of time"])
async def test_version_is_unloaded_when_its_sessions_have_ended_or_their_time_has(
    tmp_path: Path, *, has_ended: bool
) -> None:
    deployer = deployer_of(tmp_path, session_drain_s=60.0 if has_ended else 0.05)
    await start(deployer)
    sessions = Sessions(deployer.slot)
    session = (await sessions.begin()).session_id
    await deployer.deploy(DeployedVersion("v2", "v2.zip", 100.0))
    await deployer.deploy(DeployedVersion("v3", "v3.zip", 100.0))
    async with sessions.turn(session) as turn:
        during = turn.memory.version.label
    if has_ended:
        await turns(20)
        assert "v1" in deployer.slot.versions
        await sessions.end(session)
    await until(lambda: "v1" not in deployer.slot.versions)

    assert during == "v1"
    if not has_ended:
        with pytest.raises(SessionConflictError, match="began with version v1, which is not"):
            async with sessions.turn(session):
                pytest.fail("its version is not loaded")
    await deployer.aclose()
    await deployer.slot.aclose()


async def test_processes_that_share_sessions_answer_those_of_a_version_that_one_has_not_yet(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        url = SecretStr(stack.enter_context(redis_server()).url)
        stores = [RedisSessions(url, Settings(), Metrics()) for _ in range(2)]
        for store in stores:
            await stack.enter_async_context(store.running())
        first, second = [
            deployer_of(tmp_path, session_drain_s=60.0, sessions=store) for store in stores
        ]
        for deployer in (first, second):
            await start(deployer)
        here, there = Sessions(first.slot), Sessions(second.slot)

        await first.deploy(DeployedVersion("v2", "v2.zip", 100.0))
        await first.deploy(DeployedVersion("v3", "v3.zip", 100.0))
        # The second process still begins sessions on v1, and knows nothing of v3.
        old = (await there.begin()).session_id
        new = (await here.begin()).session_id
        async with here.turn(old) as turn:
            from_old = turn.memory.version.label
        with pytest.raises(NotReadyError, match="v3, which this web process is about to load"):
            async with there.turn(new):
                pytest.fail("its version is not loaded")
        following = asyncio.create_task(second.run())
        await until(lambda: second.slot.choose().label == "v3")
        async with there.turn(new) as turn:
            from_new = turn.memory.version.label
        await there.end(old)
        await until(lambda: all("v1" not in it.slot.versions for it in (first, second)))

        following.cancel()
        for deployer in (first, second):
            await deployer.aclose()
            await deployer.slot.aclose()

    assert (from_old, from_new) == ("v1", "v3")


async def test_version_is_kept_while_the_store_of_its_sessions_is_away(tmp_path: Path) -> None:
    url = SecretStr(f"unix://{tmp_path}/nobody.sock")
    store = RedisSessions(url, Settings(), Metrics())
    deployer = deployer_of(tmp_path, session_drain_s=0.3, sessions=store)
    async with store.running():
        await start(deployer)
        await deployer.deploy(DeployedVersion("v2", "v2.zip", 100.0))
        began = asyncio.get_running_loop().time()
        await deployer.deploy(DeployedVersion("v3", "v3.zip", 100.0))
        await until(lambda: "v1" not in deployer.slot.versions)
        lasted = asyncio.get_running_loop().time() - began
        await deployer.aclose()
        await deployer.slot.aclose()

    assert lasted > 0.2


class SlowLoads:
    """Openers of versions that are loaded when they are let go."""

    def __init__(self, slow: str) -> None:
        self.slow = slow
        self.is_asked, self.may_end = asyncio.Event(), asyncio.Event()
        self.unloaded: list[str] = []
        self.asked = 0

    def __call__(self, version: DeployedVersion) -> PolicyOpener:
        """Return what loads a version."""

        @asynccontextmanager
        async def open_version() -> AsyncIterator[OpenedPolicy]:
            if version.name == self.slow:
                self.asked += 1
                self.is_asked.set()
                await self.may_end.wait()
            async with opened(integer_backend()) as policy:
                yield policy
            self.unloaded.append(version.name)

        return open_version


MEANWHILE: dict[str, Callable[[Deployer], Coroutine[Any, Any, Deployment]]] = {
    "rollback": lambda deployer: deployer.roll_back(),
    "promote": lambda deployer: deployer.promote("v1"),
    "undeploy": lambda deployer: deployer.undeploy("v1"),
}


@pytest.mark.parametrize("change", MEANWHILE.values(), ids=MEANWHILE)
async def test_change_during_a_deploy_is_carried_out_at_once_and_the_deploy_is_refused(
    tmp_path: Path, change: Callable[[Deployer], Coroutine[Any, Any, Deployment]]
) -> None:
    loads = SlowLoads("v3")
    deployer = deployer_of(tmp_path, opening=loads)
    await start(deployer)
    await deployer.deploy(DeployedVersion("v2", "v2.zip", 100.0))
    deploying = asyncio.create_task(deployer.deploy(DeployedVersion("v3", "v3.zip", 100.0)))
    await loads.is_asked.wait()

    changed = await asyncio.wait_for(change(deployer), 5)
    during = deployer.slot.choose().label
    loads.may_end.set()
    with pytest.raises(DeploymentError, match="the deployment changed meanwhile"):
        await deploying

    assert during == changed.live == deployer.slot.choose().label
    assert deployer.deployment == changed
    assert deployer.slot.versions.keys() <= {"v1", "v2"}
    assert loads.unloaded[-1] == "v3"
    again = await deployer.deploy(DeployedVersion("v3", "v3.zip", 100.0))
    assert (again.live, again.former) == ("v3", changed.live)
    await deployer.aclose()
    await deployer.slot.aclose()


async def test_deploy_that_is_not_carried_out_is_ended_with_the_server(tmp_path: Path) -> None:
    loads = SlowLoads("v2")
    deployer = deployer_of(tmp_path, opening=loads)
    await start(deployer)
    versions = [DeployedVersion(name, f"{name}.zip", 100.0) for name in ("v2", "v3")]
    deploys = [asyncio.create_task(deployer.deploy(version)) for version in versions]
    await loads.is_asked.wait()

    deployer.end_deploys()
    ended = await asyncio.wait_for(asyncio.gather(*deploys, return_exceptions=True), 5)

    assert [type(error) for error in ended] == [NotReadyError, NotReadyError]
    assert "the server is ending" in str(ended[0])
    assert set(deployer.slot.versions) == {"v1"}
    assert not (tmp_path / "versions.json").exists()
    await deployer.aclose()
    await deployer.slot.aclose()


async def test_deploy_of_another_process_during_a_deploy_is_kept(tmp_path: Path) -> None:
    loads = SlowLoads("v3")
    first, second = deployer_of(tmp_path, opening=loads), deployer_of(tmp_path)
    for deployer in (first, second):
        await start(deployer)
    deploying = asyncio.create_task(first.deploy(DeployedVersion("v3", "v3.zip", 20.0)))
    await loads.is_asked.wait()

    await second.deploy(DeployedVersion("v2", "v2.zip", 20.0))
    loads.may_end.set()
    deployed = await deploying

    assert deployed.names == set(first.slot.versions) == {"v1", "v2", "v3"}
    for deployer in (first, second):
        await deployer.aclose()
        await deployer.slot.aclose()


async def test_process_follows_the_deployment_of_another(tmp_path: Path) -> None:
    first, second = deployer_of(tmp_path), deployer_of(tmp_path)
    await start(first)
    await start(second)
    following = asyncio.create_task(second.run())

    await first.deploy(DeployedVersion("v2", "v2.zip", 100.0))
    await until(lambda: second.slot.choose().label == "v2")

    following.cancel()
    for deployer in (first, second):
        await deployer.aclose()
        await deployer.slot.aclose()


class SlowStore(DeploymentFile):
    """A store that writes when it is let go."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, one_basis({"door": "today"}))
        self.is_asked, self.may_end = threading.Event(), threading.Event()

    def write(self, policy: str, deployment: Deployment) -> None:
        """See `DeploymentStore.write`."""
        self.is_asked.set()
        self.may_end.wait()
        super().write(policy, deployment)


async def test_deploy_whose_client_has_gone_is_carried_out_once_it_is_written(
    tmp_path: Path,
) -> None:
    planned = [PlannedVersion("v1", opener(V1), V1.model)]
    slot = PolicySlot("door", SCHEMA, planned, settings=Settings(), metrics=Metrics())
    store = SlowStore(tmp_path)
    deployer = Deployer(slot, opener, store)
    await start(deployer)
    deploying = asyncio.create_task(deployer.deploy(DeployedVersion("v2", "v2.zip", 100.0)))
    await until(store.is_asked.is_set)

    for _ in range(2):
        deploying.cancel()
        await turns()
    store.may_end.set()
    await asyncio.wait([deploying])

    assert deployer.deployment == store.read("door")
    assert slot.choose().label == "v2"
    assert (await deployer.roll_back()).live == "v1"
    await deployer.aclose()
    await slot.aclose()


class LateStore(DeploymentFile):
    """A store that another process has always written to just before."""

    def write(self, policy: str, deployment: Deployment) -> None:
        """See `DeploymentStore.write`."""
        super().write(policy, replace(self.read(policy) or begun(), serial=deployment.serial))
        super().write(policy, deployment)


async def test_change_that_always_comes_after_another_process_is_refused(tmp_path: Path) -> None:
    planned = [PlannedVersion("v1", opener(V1), V1.model)]
    slot = PolicySlot("door", SCHEMA, planned, settings=Settings(), metrics=Metrics())
    deployer = Deployer(slot, opener, LateStore(tmp_path, one_basis({"door": "today"})))
    await start(deployer)

    with pytest.raises(DeploymentError, match="were changed by another process"):
        await deployer.deploy(DeployedVersion("v4", "v4.zip", 10.0))

    assert set(slot.versions) == {"v1"}
    await deployer.aclose()
    await slot.aclose()


async def test_change_while_the_deploy_of_another_process_is_loaded_is_carried_out_at_once(
    tmp_path: Path,
) -> None:
    loads = SlowLoads("v2")
    first, second = deployer_of(tmp_path), deployer_of(tmp_path, opening=loads)
    for deployer in (first, second):
        await start(deployer)
    following = asyncio.create_task(second.run())
    await first.deploy(DeployedVersion("v2", "v2.zip", 20.0))
    await loads.is_asked.wait()

    changed = await asyncio.wait_for(second.roll_back(), 5)
    loads.may_end.set()
    await until(lambda: loads.unloaded == ["v2"])

    assert changed.names == set(second.slot.versions) == {"v1"}
    following.cancel()
    for deployer in (first, second):
        await deployer.aclose()
        await deployer.slot.aclose()


async def test_change_waits_for_a_version_that_it_needs_and_that_is_loaded_once(
    tmp_path: Path,
) -> None:
    loads = SlowLoads("v2")
    first, second = deployer_of(tmp_path), deployer_of(tmp_path, opening=loads)
    for deployer in (first, second):
        await start(deployer)
    following = asyncio.create_task(second.run())
    await first.deploy(DeployedVersion("v2", "v2.zip", 20.0))
    await loads.is_asked.wait()

    promoting = asyncio.create_task(second.promote("v2"))
    await turns()
    loads.may_end.set()
    promoted = await asyncio.wait_for(promoting, 5)
    following.cancel()
    await asyncio.wait([following])

    assert promoted.live == second.slot.choose().label == "v2"
    assert loads.asked == 1
    assert loads.unloaded == []
    for deployer in (first, second):
        await deployer.aclose()
        await deployer.slot.aclose()


async def test_deployment_of_other_files_is_not_used(tmp_path: Path) -> None:
    deployer = deployer_of(tmp_path)
    await start(deployer)
    await deployer.deploy(DeployedVersion("v2", "v2.zip", 100.0))
    await deployer.aclose()
    await deployer.slot.aclose()

    other = deployer_of(tmp_path, basis="tomorrow")
    await start(other)

    assert other.slot.choose().label == "v1"
    await other.aclose()
    await other.slot.aclose()


def test_change_after_files_were_replaced_is_there_at_the_next_start_over_them(
    tmp_path: Path,
) -> None:
    found = ["old"]
    first, later = (DeploymentFile(tmp_path, lambda _policy: found) for _ in range(2))
    first.write("door", replace(begun(), serial=1))
    found.append("new")

    before = [first.read("door"), later.read("door")]
    at_next_start = DeploymentFile(tmp_path, one_basis({"door": "new"})).read("door")
    first.write("door", replace(begun(), serial=2))
    with pytest.raises(DeploymentChangedError):
        later.write("door", replace(begun(), serial=2))
    later.write("door", replace(begun(), serial=3))

    assert before == [replace(begun(), serial=1)] * 2
    assert at_next_start is None
    kept = replace(begun(), serial=3)
    assert first.read("door") == later.read("door") == kept
    assert DeploymentFile(tmp_path, one_basis({"door": "new"})).read("door") == kept


@pytest.mark.parametrize("has_other_files", [True, False])
async def test_web_process_over_other_files_serves_them_where_what_is_deployed_is_gone(
    tmp_path: Path, *, has_other_files: bool
) -> None:
    gone = DeployedVersion("v2", BROKEN, 100.0)
    DeploymentFile(tmp_path, one_basis({"door": "today"})).write(
        "door", replace(Deployment.begin([gone]), serial=1)
    )
    deployer = deployer_of(tmp_path, has_other_files=has_other_files)
    if not has_other_files:
        with pytest.raises(ModelError, match="broken"):
            await start(deployer)
        return

    await start(deployer)
    begun = deployer.slot.choose().label
    running = asyncio.create_task(deployer.run())
    v3 = DeployedVersion("v3", "v3.zip", 100.0)
    DeploymentFile(tmp_path, one_basis({"door": "today"})).write(
        "door", replace(Deployment.begin([gone]).deployed(v3), serial=2)
    )
    await until(lambda: deployer.slot.choose().label == "v3")

    assert begun == "v1"
    running.cancel()
    await deployer.aclose()
    await deployer.slot.aclose()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"door": {}}', '{"door": {"basis": "today"}}'])
async def test_damaged_file_is_not_used(tmp_path: Path, text: str) -> None:
    (tmp_path / "versions.json").write_text(text)
    deployer = deployer_of(tmp_path)

    await start(deployer)
    await deployer.deploy(DeployedVersion("v2", "v2.zip", 100.0))

    assert deployer.slot.choose().label == "v2"
    await deployer.aclose()
    await deployer.slot.aclose()


async def test_version_is_promoted_when_the_evidence_is_there(tmp_path: Path) -> None:
    deployer = deployer_of(tmp_path)
    await start(deployer)
    running = asyncio.create_task(deployer.run())
    await deployer.deploy(DeployedVersion("v2", "v2.zip", 10.0))
    await deployer.promote(None, evidence=Evidence("", after=50, max_disagreement=0.0))

    while deployer.deployment is not None and deployer.deployment.live != "v2":
        version = deployer.slot.choose()
        question = Question([0.0, 0.0], "predict", is_copied=True)
        answer = await version.scheduler.answer(question)
        deployer.slot.copy_to_shadows(version, question, answer)
        await asyncio.sleep(0)

    assert deployer.deployment is not None
    assert "v2 is promoted: 0.00% of" in deployer.deployment.reason
    running.cancel()
    await deployer.aclose()
    await deployer.slot.aclose()


async def test_policy_that_could_not_be_loaded_is_mended_by_a_deploy(tmp_path: Path) -> None:
    broken = DeployedVersion("v1", BROKEN, 100.0)
    planned = [PlannedVersion("v1", opener(broken), BROKEN)]
    slot = PolicySlot("door", SCHEMA, planned, settings=Settings(), metrics=Metrics())
    deployer = Deployer(slot, opener, DeploymentFile(tmp_path, one_basis({"door": "today"})))
    with pytest.raises(ModelError, match="broken"):
        await start(deployer)
    with pytest.raises(DeploymentError, match="no version is live"):
        await deployer.roll_back()

    await deployer.deploy(DeployedVersion("v2", "v2.zip", 10.0))

    assert slot.choose().label == "v2"
    assert (slot.failure, slot.failures) == (None, {})
    await deployer.aclose()
    await slot.aclose()


async def test_policy_without_a_live_version_keeps_none_loaded() -> None:
    former, broken = V1, DeployedVersion("v2", BROKEN, 100.0)
    planned = [
        PlannedVersion(former.name, opener(former), former.model, 0.0),
        PlannedVersion(broken.name, opener(broken), broken.model, 100.0),
    ]
    slot = PolicySlot("door", SCHEMA, planned, settings=Settings(), metrics=Metrics())

    with pytest.raises(ModelError, match="broken"):
        await slot.start()

    assert not slot.versions
    await slot.aclose()


@pytest.mark.parametrize("mode", [None, 0o644, 0o600], ids=["new", "readable", "own"])
def test_file_is_the_servers_alone_since_an_address_may_hold_a_signature(
    tmp_path: Path, mode: int | None
) -> None:
    path = tmp_path / "versions.json"
    if mode is not None:
        path.write_text("{}")
        path.chmod(mode)

    DeploymentFile(tmp_path, one_basis({"door": "today"})).write("door", begun())

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert DeploymentFile(tmp_path, one_basis({"door": "today"})).read("door") == begun()


async def test_address_is_not_told_when_it_holds_another_policy(tmp_path: Path) -> None:
    deployer = deployer_of(tmp_path)
    await start(deployer)
    address = "https://host/b.zip?X-Amz-Signature=hush"
    other = DeployedVersion("v2", address, 50.0, digest="123456789012")
    DeploymentFile(tmp_path, one_basis({"door": "today"})).write(
        "door", replace(begun().deployed(other), serial=1)
    )

    with pytest.raises(DeploymentError, match=r"^version v2: .* deploy it anew") as caught:
        await deployer.promote("v2")

    assert "hush" not in caught.value.message
    await deployer.aclose()
    await deployer.slot.aclose()


def test_deployments_of_other_policies_outlive_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = one_basis({"door": "today", "gate": "today"})
    for policy in ("door", "gate"):
        DeploymentFile(tmp_path, bases).write(policy, begun())
    store = DeploymentFile(tmp_path, bases)

    def failing(_path: Path) -> Any:  # noqa: ANN401 -- JSON
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(deployment_file, "read_json", failing)
    with pytest.raises(DeploymentError, match="Input/output error; nothing has changed"):
        store.write("door", replace(begun(), serial=9))
    monkeypatch.undo()

    assert DeploymentFile(tmp_path, bases).read("gate") == begun()
    assert DeploymentFile(tmp_path, bases).read("door") == begun()
