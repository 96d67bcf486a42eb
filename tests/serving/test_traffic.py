"""Versions that share a policy's questions: by per cent, by episode, and as shadows."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from policy_server.errors import ModelError, NotReadyError
from policy_server.metrics import Metrics
from policy_server.policy import PolicyBackend
from policy_server.schema import parse_schema
from policy_server.serving import Answer, PlannedVersion, PolicySlot, Question
from policy_server.settings import Settings
from tests.support.fakes import FakeBackend, components_of, integer_backend, opened, renamed
from tests.support.waiting import until

SCHEMA = parse_schema("observations: {cat: {type: int}, mouse: {type: float}}")
ZERO, TWO = (9.0, 0.0, 0.0), (0.0, 0.0, 9.0)


def planned(
    name: str, backend: PolicyBackend, percent: float = 0.0, *, is_shadow: bool = False
) -> PlannedVersion:
    """Return a version that computes in a fake backend."""
    return PlannedVersion(name, lambda: opened(backend), None, percent, is_shadow)


@asynccontextmanager
async def slot_of_versions(*versions: PlannedVersion) -> AsyncIterator[tuple[PolicySlot, Metrics]]:
    """Serve a policy of several versions."""
    metrics = Metrics()
    slot = PolicySlot("door", SCHEMA, versions, settings=Settings(), metrics=metrics)
    try:
        await slot.start()
        yield slot, metrics
    finally:
        await slot.aclose()


async def ask(slot: PolicySlot, episode: str = "") -> str:
    """Ask a question, give the shadows their copies, and return the version that answered."""
    version = slot.choose(episode)
    question = Question([0.0, 0.0], "predict", is_copied=slot.wants_copies)
    answer: Answer = await version.scheduler.answer(question)
    slot.copy_to_shadows(version, question, answer)
    return version.label


async def test_questions_are_split_by_per_cent() -> None:
    async with slot_of_versions(
        planned("v1", integer_backend(ZERO), 80), planned("v2", integer_backend(TWO), 20)
    ) as (slot, _):
        alone = Counter(slot.choose().label for _ in range(5000))
        episodes = Counter(slot.choose(f"episode-{number}").label for number in range(5000))
        live = slot.current().label

    # Four standard deviations of 5,000 draws are 113.
    assert abs(alone["v2"] - 1000) < 120
    assert abs(episodes["v2"] - 1000) < 120
    assert live == "v1"


async def test_episode_falls_on_the_same_version_in_every_process() -> None:
    def versions() -> tuple[PlannedVersion, ...]:
        return (
            planned("v1", integer_backend(ZERO), 50),
            planned("v2", integer_backend(TWO), 50),
        )

    names = [f"episode-{number}" for number in range(100)]
    async with (
        slot_of_versions(*versions()) as (slot, _),
        slot_of_versions(*versions()) as (
            other,
            _,
        ),
    ):
        first = [slot.choose(name).label for name in names]
        second = [other.choose(name).label for name in names]

    assert first == second
    assert set(first) == {"v1", "v2"}


async def test_episode_ends_with_the_version_that_it_began_with() -> None:
    async with slot_of_versions(planned("v1", integer_backend(ZERO), 100)) as (slot, _):
        before = slot.choose("episode").label
        await slot.add(lambda: opened(integer_backend(TWO)), name="v2")
        slot.route({"v2": 100})
        during, others = slot.choose("episode").label, slot.choose("another").label
        running = slot.episodes_of("v1")
        await slot.remove("v1")
        after = slot.choose("episode").label

    assert (before, during, others, after) == ("v1", "v1", "v2", "v2")
    assert running == 1


async def test_idle_episodes_are_forgotten() -> None:
    settings = Settings(episode_idle_s=1e-6)
    slot = PolicySlot(
        "door",
        SCHEMA,
        [planned("v1", integer_backend(ZERO), 100)],
        settings=settings,
        metrics=Metrics(),
    )
    await slot.start()
    slot.choose("episode")
    await slot.add(lambda: opened(integer_backend(TWO)), name="v2")
    slot.route({"v2": 100})

    assert slot.choose("episode").label == "v2"
    await slot.aclose()


async def test_version_that_cannot_be_loaded_leaves_its_share_to_the_others() -> None:
    def refuse() -> object:
        raise ModelError("no policy")

    broken = PlannedVersion("v2", refuse, None, 90)  # type: ignore[arg-type]  # it raises
    async with slot_of_versions(planned("v1", integer_backend(ZERO), 10), broken) as (slot, _):
        labels = {slot.choose().label for _ in range(100)}
        failures = dict(slot.failures)

    assert labels == {"v1"}
    assert failures == {"v2": "no policy"}
    with pytest.raises(ModelError, match="no policy"):
        async with slot_of_versions(broken):
            pytest.fail("it was served")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (integer_backend((1.0, 1.0)), r"gives categorical\(2\) in place of the"),
        (
            renamed(integer_backend(), components_of(("categorical", 2), ("categorical", 1))),
            "in place of the",
        ),
    ],
    ids=["choices", "parts"],
)
async def test_version_of_other_actions_is_refused(other: FakeBackend, message: str) -> None:
    async with slot_of_versions(planned("v1", integer_backend(ZERO), 100)) as (slot, _):
        with pytest.raises(ModelError, match=message):
            await slot.add(lambda: opened(other), name="v2")
        names = list(slot.versions)

    assert names == ["v1"]


async def test_shadow_is_compared_and_answers_nobody() -> None:
    async with slot_of_versions(
        planned("v1", integer_backend(ZERO), 100),
        planned("v2", integer_backend(TWO), is_shadow=True),
        planned("v3", integer_backend(ZERO), is_shadow=True),
    ) as (slot, metrics):
        labels = {await ask(slot) for _ in range(20)}
        v2, v3 = slot.shadows["v2"], slot.shadows["v3"]
        await until(lambda: v2.report().copies == 20 and v3.report().copies == 20)
        other, same = v2.report(), v3.report()

    exact = (math.exp(9) - 1) / (math.exp(9) + 2)
    assert labels == {"v1"}
    assert (other.same_mode, same.same_mode) == (0.0, 1.0)
    assert other.mean_distance == pytest.approx(exact)
    assert same.mean_distance == pytest.approx(0.0)
    assert (same.failed, same.dropped, same.reason) == (0, 0, None)
    counted = metrics.snapshot().numbers["shadow_copies"]
    assert counted["v2", "other_mode", "door"] == 20
    assert counted["v3", "same_mode", "door"] == 20


async def test_metrics_of_versions_end_long_after_these_were_unloaded() -> None:
    async with slot_of_versions(planned("v0", integer_backend(ZERO), 100)) as (slot, metrics):
        for number in range(1, 30):
            shadow = planned(f"s{number}", integer_backend(ZERO))
            await slot.add(shadow.open_policy, name=shadow.name)
            slot.route({slot.current().label: 100.0}, shadows=[shadow.name])
            await ask(slot)
            await until(lambda: slot.shadows[f"s{number}"].report().copies == 1)  # noqa: B023 -- at once
            await slot.swap(lambda: opened(integer_backend(ZERO)), name=f"v{number}")
        counts = metrics.snapshot()

    observations = {labels[0] for labels in counts.numbers["version_observations"]}
    # The live one, and the 16 that were unloaded last.
    assert observations == {
        *(f"v{number}" for number in range(21, 30)),
        *(f"s{number}" for number in range(22, 30)),
    }
    for name in ("shadow_distance", "shadow_call_seconds"):
        assert {labels[0] for labels in counts.histograms[name]} == {
            f"s{number}" for number in range(22, 30)
        }
    assert {labels[0] for labels in counts.numbers["shadow_copies"]} == {
        f"s{number}" for number in range(22, 30)
    }


async def test_shadow_that_hangs_delays_nobody() -> None:
    backend = integer_backend(TWO)
    async with slot_of_versions(
        planned("v1", integer_backend(ZERO), 100), planned("v2", backend, is_shadow=True)
    ) as (slot, _):
        backend.gate = asyncio.Event()
        async with asyncio.timeout(10):
            labels = {await ask(slot) for _ in range(1000)}
        report = slot.shadows["v2"].report()

    assert labels == {"v1"}
    assert report.copies == 0
    assert report.dropped > 0


async def test_shadow_without_a_distribution_changes_no_answer() -> None:
    backend = integer_backend((math.nan, 0.0, 0.0))
    async with slot_of_versions(
        planned("v1", integer_backend(ZERO), 100), planned("v2", backend, is_shadow=True)
    ) as (slot, metrics):
        labels = {await ask(slot) for _ in range(10)}
        await until(lambda: slot.shadows["v2"].report().failed == 10)

    assert labels == {"v1"}
    assert metrics.snapshot().numbers["shadow_copies"]["v2", "failed", "door"] == 10


async def test_shadow_that_raises_changes_no_answer() -> None:
    backend = integer_backend(TWO)
    async with slot_of_versions(
        planned("v1", integer_backend(ZERO), 100), planned("v2", backend, is_shadow=True)
    ) as (slot, _):
        backend.error, backend.poison = ModelError("out of order"), 0.0
        labels = {await ask(slot) for _ in range(10)}
        await until(lambda: slot.shadows["v2"].report().failed == 10)
        report = slot.shadows["v2"].report()

    assert labels == {"v1"}
    assert report.reason == "out of order"
    assert report.same_mode is None


async def test_shadows_of_a_slot_that_is_closed_ask_no_more() -> None:
    async with slot_of_versions(
        planned("v1", integer_backend(ZERO), 100),
        planned("v2", integer_backend(TWO), is_shadow=True),
    ) as (slot, _):
        await ask(slot)

    with pytest.raises(NotReadyError):
        slot.choose()
    assert slot.shadows == {}
