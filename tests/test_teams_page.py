"""The examples of docs/teams.md, run as they stand there against a team with memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.schema import parse_schema_file
from policy_server.serving.team import agent_seed
from tests.support.documents import code_blocks
from tests.support.fakes import FakeBackend, integer_backend, summing_backend
from tests.support.folders import ROOT
from tests.support.processes import program, run
from tests.support.teams import streamed_team

PAGE = ROOT / "docs" / "teams.md"
_SERVER = "localhost:8000"


class Chase:
    """A parallel environment in PettingZoo's form, whose agents leave one after the other.

    Attributes:
        agents: those that act at the next step.
        played: the actions of each step.
    """

    def __init__(self) -> None:
        self.agents: list[str] = []
        self.played: list[dict[str, int]] = []

    def reset(
        self,
        seed: int | None = None,  # noqa: ARG002 -- of PettingZoo's signature
    ) -> tuple[dict[str, NDArray[np.float32]], Any]:
        """Begin an episode."""
        self.agents = ["adversary_0", "adversary_1", "agent_0"]
        return self._observations(), {}

    def step(self, actions: dict[str, int]) -> tuple[Any, ...]:
        """Take the action of each agent."""
        assert actions.keys() == set(self.agents)
        self.played.append(actions)
        if len(self.played) > 1:
            self.agents = self.agents[1:]
        return self._observations(), {}, {}, {}, {}

    def _observations(self) -> dict[str, NDArray[np.float32]]:
        sizes = {agent: 2 if agent == "agent_0" else 3 for agent in self.agents}
        return {agent: np.ones(size, np.float32) for agent, size in sizes.items()}


def backends() -> dict[str, FakeBackend]:
    """Return a hunter that sums, and a prey without memory that answers 1."""
    return {
        "hunter": summing_backend(width=3),
        "prey": integer_backend([0.0, 5.0, 0.0], width=2, weight=0.0),
    }


def examples(language: str) -> list[str]:
    """Return the page's examples of a language that ask a server."""
    return [text for text in code_blocks(PAGE, language) if _SERVER in text]


async def test_examples_play_an_episode_whose_agents_leave() -> None:
    file = parse_schema_file(code_blocks(PAGE, "yaml")[0])
    assert file.agents is not None
    schemas = {policy.name: policy.schema for policy in file}
    team = streamed_team(backends(), schemas=schemas, rules=file.agents.rules)
    played = []
    async with team as (server, _):
        for text in examples("python"):
            known: dict[str, Any] = {}
            exec(compile(_at(text, server.url), str(PAGE), "exec"), known)  # noqa: S102 -- the page's own example
            play: Callable[[Chase], None] = known["play"]
            environment = Chase()
            await asyncio.to_thread(play, environment)
            played.append(environment.played)

    agents = [[sorted(actions) for actions in steps] for steps in played]
    whole = ["adversary_0", "adversary_1", "agent_0"]
    assert agents == [[whole, whole, whole[1:], whole[2:]]] * 2


async def test_example_in_javascript_prints_the_action_of_each_agent() -> None:
    node = program("node", package="nodejs")
    file = parse_schema_file(code_blocks(PAGE, "yaml")[0])
    assert file.agents is not None
    schemas = {policy.name: policy.schema for policy in file}
    team = streamed_team(backends(), schemas=schemas, rules=file.agents.rules)
    async with team as (server, _):
        (text,) = examples("js")
        whole = ["--input-type=module", "--eval", _at(text, server.url)]
        done = await asyncio.to_thread(run, node, *whole)

    assert done.stdout.splitlines() == ["adversary_0 0", "agent_0 1"]


def test_rule_of_seeds_is_the_servers() -> None:
    (text,) = [text for text in code_blocks(PAGE, "python") if "def agent_seed" in text]
    known: dict[str, Any] = {}

    exec(compile(text, str(PAGE), "exec"), known)  # noqa: S102 -- the page's own example

    for seed, agent in ((7, "hunter_1"), (0, ""), (2**63 - 1, "ä")):
        assert known["agent_seed"](seed, agent) == agent_seed(seed, agent)


def _at(text: str, url: str) -> str:
    return text.replace(_SERVER, url.removeprefix("http://"))
