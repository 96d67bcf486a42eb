"""Deployments as they are kept: what a server has written is taken, and nothing that is unsound."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from policy_server.errors import DeploymentError
from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import (
    DeployedVersion,
    Deployer,
    Deployment,
    Evidence,
    PlannedVersion,
    PolicyOpener,
    PolicySlot,
)
from policy_server.serving.deployment_file import DeploymentFile
from policy_server.serving.deployment_store import one_basis
from policy_server.serving.kept_deployment import kept_deployment
from policy_server.serving.shared_deployments import SharedDeployments
from policy_server.settings import Settings
from tests.support.fakes import integer_backend, opened
from tests.support.waiting import until

SCHEMA = parse_schema("observations: {cat: {type: int}, mouse: {type: float}}")
V1 = DeployedVersion("v1", "v1.zip", 100.0)
V2 = DeployedVersion("v2", "v2.zip", 100.0)
BASES = one_basis({"door": "today"})

Change = Callable[[dict[str, Any]], object]


def two_versions() -> Deployment:
    """Return the deployment of two versions, the second of them live."""
    return Deployment.begin([V1]).deployed(V2)


def without_entry(kept: dict[str, Any]) -> None:
    """Remove the live version, whose name stays."""
    kept["versions"] = [item for item in kept["versions"] if item["name"] != kept["live"]]


def in_versions(**values: object) -> Change:
    """Return the change of one or more values of both versions."""

    def change(kept: dict[str, Any]) -> None:
        for version in kept["versions"]:
            version.update(values)

    return change


def in_live(**values: object) -> Change:
    """Return the change of one or more values of the live version."""
    return lambda kept: kept["versions"][1].update(values)


def waiting(**values: object) -> Change:
    """Return the change by which the former version waits for evidence, with some values."""
    evidence = {"version": "v1", "after": 10, "max_disagreement": 0.1}
    return lambda kept: kept.update(waiting_for={**evidence, **values})


UNSOUND: Mapping[str, Change] = {
    "live version without its entry": without_entry,
    "no versions": lambda kept: kept.update(versions=[]),
    "live names none": lambda kept: kept.update(live="nope"),
    "live answers nothing": lambda kept: kept.update(live="v1", former="v2"),
    "former is live": lambda kept: kept.update(former="v2"),
    "names twice": in_versions(name="v2", percent=50.0),
    "no shares": in_versions(percent=0.0),
    "share of no number": in_live(percent=math.nan),
    "endless share": in_live(percent=math.inf),
    "negative share": lambda kept: [
        item.update(percent=percent)
        for item, percent in zip(kept["versions"], (-20.0, 120.0), strict=True)
    ],
    "too much": in_live(percent=150.0),
    "too little": in_live(percent=50.0),
    "shadow with a share": in_live(is_shadow=True),
    "model with NUL": in_live(model="a\0b"),
    "model with half a character": in_live(model="a\ud800"),
    "digest with half a character": in_live(digest="\ud800"),
    "name that is a path": lambda kept: kept["versions"][0].update(name="../v1"),
    "reason with half a character": lambda kept: kept.update(reason="\ud800"),
    "negative serial": lambda kept: kept.update(serial=-1),
    "endless serial": lambda kept: kept.update(serial=10**1000),
    "waiting for none": waiting(version="nope"),
    "waiting for the live one": waiting(version="v2"),
    "waiting for no question": waiting(after=0),
    "any disagreement": waiting(max_disagreement=math.nan),
    "text for a number": in_live(percent="all"),
    "list for a mapping": lambda kept: kept.update(versions=[[]]),
}


def damaged(change: Change) -> dict[str, Any]:
    """Return what is kept of two versions after a change by hand."""
    kept: dict[str, Any] = json.loads(json.dumps(asdict(two_versions())))
    change(kept)
    return kept


def write_damaged(home: Path, change: Change) -> None:
    """Change a server's versions.json by hand."""
    entry = {"basis": BASES("door")[0], "deployment": damaged(change)}
    path = home / "versions.json"
    path.unlink(missing_ok=True)
    path.write_text(json.dumps({"door": entry}))


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_unsound_deployment_is_refused_in_one_line(change: Change) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        kept_deployment(damaged(change))


@pytest.mark.parametrize(
    "sound",
    [
        Deployment.begin([V1]),
        Deployment.begin([DeployedVersion("6f1e04a2b3c4", None, 100.0, digest="6f1e04a2b3c4")]),
        two_versions(),
        two_versions().rolled_back(),
        two_versions().deployed(DeployedVersion("v3", "https://host/b.zip?a=%00", 1e-9)),
        two_versions().deployed(DeployedVersion("v3", "v3.zip", is_shadow=True)),
        two_versions().awaiting(Evidence("v1", after=1, max_disagreement=0.0)),
        two_versions().awaiting(Evidence("v1", after=1, max_disagreement=0.0)).rolled_back(),
        two_versions().promoted("v1", reason="0.00 % of 12 questions — another action"),
        two_versions().undeployed("v1"),
    ],
    ids=lambda kept: f"serial {kept.serial}, {len(kept.versions)} versions",
)
def test_deployment_that_a_server_writes_is_taken_as_it_was(sound: Deployment) -> None:
    assert kept_deployment(json.loads(json.dumps(asdict(sound)))) == sound


def test_shares_by_hand_may_be_rounded() -> None:
    thirds = [DeployedVersion(name, f"{name}.zip", 33.33) for name in ("v1", "v2", "v3")]

    assert kept_deployment(asdict(Deployment.begin(thirds))).names == {"v1", "v2", "v3"}


def test_name_of_a_former_version_that_earlier_releases_left_is_none() -> None:
    """They took a former version on trial back, and went on naming it."""
    kept = damaged(lambda kept: kept["versions"].pop(0))

    found = kept_deployment(kept)

    assert (found.live, found.former) == ("v2", None)
    with pytest.raises(DeploymentError, match="none before it is loaded"):
        found.rolled_back()


def test_former_version_on_trial_stays_for_a_rollback_when_it_is_taken_back() -> None:
    trial = two_versions().awaiting(Evidence("v1", after=10, max_disagreement=0.0))

    back = trial.rolled_back()

    assert (back.live, back.former, back.waiting_for) == ("v2", "v1", None)
    assert back.names == {"v1", "v2"}
    assert dict(back.rolled_back().percents) == {"v1": 100.0}


def opener(version: DeployedVersion) -> PolicyOpener:
    """Return what loads a version of a fake, from a place that a system would take."""

    def open_version() -> Any:  # noqa: ANN401 -- a context manager
        Path(version.model or "").exists()
        return opened(integer_backend())

    return open_version


def deployer_of(home: Path) -> Deployer:
    """Return a deployer of a policy that begins with one version."""
    planned = [PlannedVersion("v1", opener(V1), V1.model)]
    slot = PolicySlot("door", SCHEMA, planned, settings=Settings(), metrics=Metrics())
    return Deployer(slot, opener, DeploymentFile(home, BASES), period_s=0.01)


async def start(deployer: Deployer) -> None:
    """Load the versions of a deployer, as a server does."""
    deployer.plan()
    await deployer.slot.start()
    deployer.adopt()


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
async def test_start_with_an_unsound_file_takes_the_policys_own_files(
    tmp_path: Path, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    write_damaged(tmp_path, change)
    deployer = deployer_of(tmp_path)

    await start(deployer)

    assert deployer.slot.choose().label == "v1"
    [record] = caplog.records
    assert record.getMessage() == "deployment_not_used"
    assert "it is damaged" in vars(record)["reason"]
    await deployer.aclose()
    await deployer.slot.aclose()


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
async def test_server_goes_on_when_its_file_becomes_unsound(
    tmp_path: Path, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    deployer = deployer_of(tmp_path)
    await start(deployer)
    running = asyncio.create_task(deployer.run())
    await deployer.deploy(V2)
    with caplog.at_level(logging.WARNING):
        write_damaged(tmp_path, change)
        await until(lambda: bool(caplog.records))
        for _ in range(10):
            await asyncio.sleep(0)
            assert deployer.slot.choose().label == "v2"
    assert [record.getMessage() for record in caplog.records] == ["deployment_not_used"]

    await deployer.roll_back()

    assert deployer.slot.choose().label == "v1"
    found = DeploymentFile(tmp_path, BASES).read("door")
    assert found is not None
    assert (found.live, found.serial) == ("v1", 2)
    running.cancel()
    await deployer.aclose()
    await deployer.slot.aclose()


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_unsound_file_is_put_aside_by_the_next_change_and_costs_no_uploads(
    tmp_path: Path, change: Change
) -> None:
    write_damaged(tmp_path, change)
    store = DeploymentFile(tmp_path, BASES)

    with pytest.raises(DeploymentError, match="can't be read"):
        store.named("door")
    store.write("door", two_versions())

    assert store.read("door") == two_versions()
    assert (tmp_path / "versions.json.damaged").is_file()


class Records:
    """A cluster's records, whose only text is given."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def read(self, _key: str) -> str | None:
        """See `SharedRecords.read`."""
        return self.text

    def write(
        self, _key: str, text: str, *, before: str | None, folders: Mapping[str, Path]
    ) -> bool:
        """See `SharedRecords.write`."""
        assert (before, folders) == (self.text, {})
        self.text = text
        return True

    def fetch(self, _key: str, _name: str, _target: Path) -> bool:
        """See `SharedRecords.fetch`."""
        return False


def shared(home: Path, records: Records) -> SharedDeployments:
    """Return a server's store, of a cluster with the given records."""
    return SharedDeployments(records, DeploymentFile(home, BASES), BASES, lambda *_: {})


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_unsound_record_of_a_cluster_is_not_used(
    tmp_path: Path, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    store = shared(tmp_path, Records(json.dumps(damaged(change))))

    assert [store.read("door") for _ in range(3)] == [None, None, None]

    [record] = caplog.records
    assert record.getMessage() == "deployment_not_used"


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_cluster_that_has_lost_its_records_gets_no_unsound_copy(
    tmp_path: Path, change: Change
) -> None:
    write_damaged(tmp_path, change)
    records = Records(None)

    assert shared(tmp_path, records).read("door") is None
    assert records.text is None


@pytest.mark.parametrize("nested", ["[", '{"versions":'], ids=["lists", "objects"])
def test_record_of_a_cluster_that_is_nested_too_deeply_is_not_used(
    tmp_path: Path, nested: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = shared(tmp_path, Records(nested * 100_000))

    assert [store.read("door") for _ in range(3)] == [None, None, None]

    [record] = caplog.records
    assert record.getMessage() == "deployment_not_used"
    assert vars(record)["reason"] == "the cluster's is damaged: it is nested too deeply"
