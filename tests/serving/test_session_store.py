"""Sessions in the memory of a process: those of teams count for each version that answers them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from policy_server.metrics import Metrics
from policy_server.serving.session_store import ProcessSessions, SessionRecord
from policy_server.serving.team_record import TEAM, AgentRecord, TeamRecord, VersionName
from policy_server.settings import Settings
from tests.support.pages import rendered

NOTHING = np.zeros(0, np.float32)


def team_session(session_id: str) -> SessionRecord:
    """Return the session of a team of two policies, of which one agent has a memory."""
    team = TeamRecord(
        {"hunter": VersionName("v1", "aa"), "prey": VersionName("v7", "bb")},
        {"hunter_1": AgentRecord("hunter", np.ones(3, np.float32), steps=4)},
    )
    return SessionRecord(session_id, TEAM, "", "", NOTHING, team=team)


async def test_session_of_a_team_counts_for_the_version_of_each_of_its_policies() -> None:
    metrics = Metrics()
    store = ProcessSessions(Settings(), metrics)
    await store.add(team_session("first"))
    await store.add(team_session("second"))
    await store.add(SessionRecord("third", "hunter", "v1", "aa", NOTHING))

    counts = [await store.count(*of) for of in [("hunter", "v1"), ("prey", "v7"), ("prey", "v1")]]
    page = rendered(metrics)

    assert counts == [3, 2, 0]
    assert (page["sessions policy="], page["sessions policy=hunter"]) == (2, 1)


async def test_session_of_a_team_counts_for_its_versions_until_it_has_others_or_ends() -> None:
    store = ProcessSessions(Settings(), Metrics())
    await store.add(team_session("one"))
    async with store.held(TEAM, "one") as held:
        assert held.record.team is not None
        versions = {**held.record.team.versions, "prey": VersionName("v8", "cc")}
        await held.keep(replace(held.record, team=replace(held.record.team, versions=versions)))
    after = [await store.count("prey", version) for version in ("v7", "v8")]
    async with store.held(TEAM, "one") as held:
        await held.remove()

    assert after == [0, 1]
    assert [await store.count("hunter", "v1"), await store.count("prey", "v8")] == [0, 0]
