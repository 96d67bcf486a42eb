"""Where the actions of an episode come from: a served policy, asked over HTTP, or chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson

from policy_server.commands.client import PolicyClient
from policy_server.commands.games import ALONE, Game
from policy_server.commands.served_policies import team_body
from policy_server.errors import ServerAnswerError

__all__ = [
    "Asking",
    "OpenPlayer",
    "Player",
    "random_player",
    "served_player",
    "served_team",
    "with_random_agents",
]

_LARGEST_SEED = 2**63 - 1


class Player(Protocol):
    """Gives the actions of the episodes that one thread plays."""

    def begin(self) -> None:
        """Begin an episode."""

    def act(
        self,
        observations: Mapping[str, Any],
        rewards: Mapping[str, float],
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        """Return the agents' actions.

        Args:
            observations: by agent, as a server takes them.
            rewards: of the step before; empty in the first one.
            generator: the source of all that is drawn.
        """


OpenPlayer = Callable[[Game], AbstractContextManager[Player]]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a served policy is asked.

    Attributes:
        is_deterministic: for the mode instead of a draw.
        has_seeds: whether draws are seeded; not where a policy draws inside its own graph.
        has_memory: whether each episode is asked in a session, which keeps the policy's memory.
    """

    is_deterministic: bool
    has_seeds: bool
    has_memory: bool

    def seed(self, generator: np.random.Generator) -> int | None:
        """Return the seed of the next draw; None where there is none."""
        if self.is_deterministic or not self.has_seeds:
            return None
        return int(generator.integers(_LARGEST_SEED))

    @property
    def kind(self) -> str:
        """Return the kind of answer."""
        return "predict_deterministic" if self.is_deterministic else "predict"


class _Episodes:
    """The episodes of a connection: each begins in the session of the one before."""

    def __init__(self, client: PolicyClient, asking: Asking, *, behind: str = "") -> None:
        self._client = client
        self._asking = asking
        self._behind = behind
        self._session = ""

    def begin(self) -> None:
        if not self._asking.has_memory:
            return
        if self._session:
            self._client.post(f"{self._session}/reset{self._behind}", b"")
        else:
            begun = self._client.post(f"/sessions{self._behind}", b"")
            self._session = f"/sessions/{begun['session_id']}"

    def end(self) -> None:
        if self._session:
            self._client.delete(self._session + self._behind)

    def ask(
        self,
        body: object,
        generator: np.random.Generator,
        *,
        is_raw: bool,
        headers: Mapping[str, str] | None = None,
    ) -> Any:  # noqa: ANN401 -- any JSON
        return self._client.post(
            f"{self._session}/{self._asking.kind}{'_raw' if is_raw else ''}{self._behind}",
            orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY),
            seed=self._asking.seed(generator),
            headers=headers,
        )


class _Served:
    """The policy of the one agent."""

    def __init__(self, episodes: _Episodes, game: Game) -> None:
        self._episodes = episodes
        self._game = game

    def begin(self) -> None:
        self._episodes.begin()

    def act(
        self,
        observations: Mapping[str, Any],
        rewards: Mapping[str, float],
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        named = observations[ALONE]
        is_raw = isinstance(named, list)
        # Policies that don't take it pass it over.
        headers = {"x-previous-reward": repr(rewards[ALONE])} if rewards else {}
        answer = self._episodes.ask(
            {"obs": named} if is_raw else named, generator, is_raw=is_raw, headers=headers
        )
        return {ALONE: self._game.action_from(ALONE, answer["actions"])}


class _ServedTeam:
    """The policies of several agents, who are asked at once."""

    def __init__(self, episodes: _Episodes, game: Game, takes_reward: Collection[str]) -> None:
        self._episodes = episodes
        self._game = game
        self._takes_reward = takes_reward

    def begin(self) -> None:
        self._episodes.begin()

    def act(
        self,
        observations: Mapping[str, Any],
        rewards: Mapping[str, float],
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        body, is_raw = team_body(observations, rewards, self._takes_reward)
        answers = self._episodes.ask(body, generator, is_raw=is_raw)
        return {
            agent: self._game.action_from(agent, answer["actions"])
            for agent, answer in answers.items()
        }


class _Random:
    """Actions drawn uniformly."""

    def __init__(self, game: Game) -> None:
        self._game = game

    def begin(self) -> None:
        """Nothing is kept from episode to episode."""

    def act(
        self,
        observations: Mapping[str, Any],
        rewards: Mapping[str, float],  # noqa: ARG002 -- a player's
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        return {agent: self._game.random_action(agent, generator) for agent in observations}


class _WithRandomAgents:
    """Another player, in whose place some agents act at random."""

    def __init__(self, player: Player, game: Game, agents: Collection[str]) -> None:
        self._player = player
        self._random = _Random(game)
        self._agents = agents

    def begin(self) -> None:
        self._player.begin()

    def act(
        self,
        observations: Mapping[str, Any],
        rewards: Mapping[str, float],
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        drawn = {agent: named for agent, named in observations.items() if agent in self._agents}
        others = {agent: named for agent, named in observations.items() if agent not in drawn}
        actions = self._random.act(drawn, rewards, generator)
        if others:
            actions |= self._player.act(others, rewards, generator)
        return {agent: actions[agent] for agent in observations}


def served_player(connect: Callable[[], PolicyClient], asking: Asking) -> OpenPlayer:
    """Return the opener of players who ask a server for the one agent.

    Args:
        connect: opens a connection to the server; each player has its own.
        asking: how the policy is asked.
    """

    @contextmanager
    def open_player(game: Game) -> Iterator[Player]:
        with connect() as client, _running(_Episodes(client, asking)) as episodes:
            yield _Served(episodes, game)

    return open_player


def served_team(
    connect: Callable[[], PolicyClient], asking: Asking, *, takes_reward: Collection[str]
) -> OpenPlayer:
    """Return the opener of players who ask a server for several agents.

    Args:
        connect: opens a connection to the server; each player has its own.
        asking: how the policies are asked.
        takes_reward: the agents whose policies take the reward of the step before.
    """

    @contextmanager
    def open_player(game: Game) -> Iterator[Player]:
        with (
            connect() as client,
            _running(_Episodes(client, asking, behind="/agents")) as episodes,
        ):
            yield _ServedTeam(episodes, game, takes_reward if asking.has_memory else ())

    return open_player


def with_random_agents(open_player: OpenPlayer, agents: Collection[str]) -> OpenPlayer:
    """Return the opener of players in whose place some agents act at random.

    Args:
        open_player: opens the player of the other agents.
        agents: the names of those who act at random.
    """

    @contextmanager
    def open_mixed(game: Game) -> Iterator[Player]:
        with open_player(game) as player:
            yield _WithRandomAgents(player, game, agents)

    return open_mixed


@contextmanager
def _running(episodes: _Episodes) -> Iterator[_Episodes]:
    try:
        yield episodes
    finally:
        # A session that can't be ended expires.
        with suppress(ServerAnswerError):
            episodes.end()


@contextmanager
def random_player(game: Game) -> Iterator[Player]:
    """Open a player whose actions are drawn uniformly.

    Args:
        game: the game that is played.
    """
    yield _Random(game)
