"""The policies' own answers, asked one at a time in a quiet process, before the server starts."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.soak.home import CHANGED, TEAM, drawn_observation, flat
from benchmarks.subjects import KEY
from policy_server import create_app

__all__ = ["KINDS", "SEEDED", "Case", "Episode", "Expected", "find_expected", "is_same"]

KINDS = ("predict_deterministic", "distribution")
# The draw with the seed of the case.
SEEDED = "predict"
_CASES = 24
_EPISODES = 6
_STEPS = 10
# Digits of a matrix product depend on the number of its rows.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """An observation, and what its policy answers.

    Attributes:
        policy: the policy's name.
        observation: named, or flat where the policy has the raw routes only.
        seed: of the draw.
        answers: the JSON by kind: those of `KINDS`, and `SEEDED`.
        others: those of the second version; none where the policy has one version.
    """

    policy: str
    observation: Any
    seed: int
    answers: Mapping[str, Any]
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_named(self) -> bool:
        """Whether the policy takes named observations."""
        return isinstance(self.observation, dict)

    @property
    def raw(self) -> Mapping[str, Any]:
        """The body of the raw routes."""
        return {"obs": flat(self.observation)}


@dataclass(frozen=True)
class Episode:
    """The steps of an episode, and the answers to them from the zero state on.

    Attributes:
        prefix: what stands ahead of the routes.
        suffix: what stands behind them.
        bodies: a step's body each.
        answers: the deterministic ones.
        draws: those that are drawn with `seed`.
        seed: of the session's first step.
    """

    prefix: str
    suffix: str
    bodies: tuple[Any, ...]
    answers: tuple[Any, ...]
    draws: tuple[Any, ...]
    seed: int


@dataclass(frozen=True)
class Expected:
    """What traffic is held against.

    Attributes:
        cases: of all policies.
        alone: episodes of the policy with a memory.
        teams: episodes of the team.
    """

    cases: tuple[Case, ...]
    alone: tuple[Episode, ...]
    teams: tuple[Episode, ...]


async def find_expected(home: Path, other: Path, seed: int) -> Expected:
    """Ask the policies of two homes, in this process.

    Args:
        home: the server's policies.
        other: the second version of `CHANGED`, alone.
        seed: of the observations.

    Returns:
        The answers.
    """
    chance = random.Random(seed)  # noqa: S311 -- drawn for a test
    policies = yaml.safe_load((home / "schema.yaml").read_text(encoding="utf-8"))["policies"]
    fields = {name: section.get("observations") for name, section in policies.items()}
    drawn = [
        (name, drawn_observation(fields[name], chance), chance.randrange(2**40))
        for name in fields
        for _ in range(_CASES)
    ]
    app = create_app(home)
    async with app.lifespan(), _client(app) as client:
        answers = [await _answers(client, *each) for each in drawn]
        alone = [await _episode(client, fields, {}, chance) for _ in range(_EPISODES)]
        teams = [await _episode(client, fields, TEAM, chance) for _ in range(_EPISODES)]
    app = create_app(other)
    async with app.lifespan(), _client(app) as client:
        others = [await _answers(client, *each) if each[0] == CHANGED else {} for each in drawn]
    cases = [
        Case(*each, own, second) for each, own, second in zip(drawn, answers, others, strict=True)
    ]
    return Expected(tuple(cases), tuple(alone), tuple(teams))


def _client(app: Any) -> httpx.AsyncClient:  # noqa: ANN401 -- an ASGI application
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://soak",
        headers={"access-token": KEY},
    )


async def _post(client: httpx.AsyncClient, path: str, body: Any) -> Any:  # noqa: ANN401 -- JSON
    answer = await client.post(path, json=body)
    answer.raise_for_status()
    return answer.json()


async def _answers(
    client: httpx.AsyncClient,
    policy: str,
    observation: Any,  # noqa: ANN401 -- JSON
    seed: int,
) -> dict[str, Any]:
    routes = {kind: f"{kind}_raw" for kind in KINDS} | {SEEDED: f"predict_raw?seed={seed}"}
    return {
        kind: await _post(client, f"/policies/{policy}/{route}", {"obs": flat(observation)})
        for kind, route in routes.items()
    }


async def _episode(
    client: httpx.AsyncClient,
    fields: Mapping[str, Any],
    team: Mapping[str, str],
    chance: random.Random,
) -> Episode:
    prefix, suffix = ("", "/agents") if team else ("/policies/conveyor", "")
    bodies = [
        {agent: drawn_observation(fields[policy], chance) for agent, policy in team.items()}
        if team
        else drawn_observation(fields["conveyor"], chance)
        for _ in range(_STEPS)
    ]
    seed = chance.randrange(2**40)
    found: dict[str, tuple[Any, ...]] = {}
    for kind in ("predict_deterministic", SEEDED):
        session = await _post(client, f"{prefix}/sessions{suffix}", {"seed": seed})
        address = f"{prefix}/sessions/{session['session_id']}/{kind}{suffix}"
        found[kind] = tuple([await _post(client, address, body) for body in bodies])
    return Episode(
        prefix, suffix, tuple(bodies), found["predict_deterministic"], found[SEEDED], seed
    )


def is_same(found: Any, wanted: Any) -> bool:  # noqa: ANN401 -- JSON
    """Return whether two answers are the same, but for the last digits of their numbers.

    Args:
        found: JSON.
        wanted: JSON.
    """
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and found.keys() == wanted.keys()
            and all(is_same(found[key], value) for key, value in wanted.items())
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(map(is_same, found, wanted))
        )
    if isinstance(wanted, float):
        return isinstance(found, float) and math.isclose(
            found, wanted, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE
        )
    return bool(found == wanted) and type(found) is type(wanted)
