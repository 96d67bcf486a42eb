"""The mean return of served policies: whole episodes over HTTP, compared with random actions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policy_server.commands.client import PolicyClient
from policy_server.commands.games import ALONE, Game, game_of, import_environment
from policy_server.commands.players import (
    Asking,
    OpenPlayer,
    Player,
    random_player,
    served_player,
    served_team,
    with_random_agents,
)
from policy_server.commands.served_policies import check_serves, served_alone, served_as_team
from policy_server.errors import UsageError

__all__ = ["Comparison", "Evaluation", "MeanReturn", "evaluate"]

_FILE = "environment.py"
_FEWEST_EPISODES = 2


@dataclass(frozen=True)
class MeanReturn:
    """The rewards that are collected in an episode, on average.

    Attributes:
        mean: the mean over the episodes.
        standard_error: the standard error of that mean.
    """

    mean: float
    standard_error: float

    def __str__(self) -> str:
        """Return mean and standard error, rounded alike."""
        return f"{self.mean:.2f} ± {self.standard_error:.2f}"


@dataclass(frozen=True)
class Comparison:
    """The return of a policy's agents beside that of random actions in their place.

    Attributes:
        policy: the policy's name; empty for the only one.
        served: the policy, asked over HTTP.
        random: actions drawn uniformly; in a team the others are as served.
    """

    policy: str
    served: MeanReturn
    random: MeanReturn


@dataclass(frozen=True)
class Evaluation:
    """The return of each policy beside that of random actions, on episodes with the same seeds.

    Attributes:
        name: the example's.
        episodes: how many were played with the policies, and at random in the place of each.
        comparisons: one for each policy.
    """

    name: str
    episodes: int
    comparisons: tuple[Comparison, ...]

    def as_text(self) -> list[str]:
        """Return all figures, aligned."""
        figures = {
            f"{prefix}{what}": figure
            for found in self.comparisons
            for prefix in [f"{found.policy}: " if found.policy else ""]
            for what, figure in {
                "policy as served": found.served,
                "random actions": found.random,
            }.items()
        }
        width = max(len(str(figure)) for figure in figures.values())
        name_width = max(len(name) for name in figures)
        return [
            f"mean return ± standard error of {self.episodes} episodes of {self.name}",
            *(f"{name:<{name_width}}  {figure!s:>{width}}" for name, figure in figures.items()),
        ]

    def as_markdown(self) -> list[str]:
        """Return a row of a table for each policy: name, episodes, policy, random."""
        return [
            f"| {': '.join(filter(None, (self.name, found.policy)))} | {self.episodes} "
            f"| {found.served} | {found.random} |"
            for found in self.comparisons
        ]


def evaluate(
    folder: Path,
    connect: Callable[[], PolicyClient],
    *,
    episodes: int,
    seed: int,
    is_deterministic: bool,
    keeps_memory: bool,
    parallel: int,
    on_progress: Callable[[int, int], None],
) -> Evaluation:
    """Play episodes with the policies that a server serves, and as many at random.

    Args:
        folder: holds environment.py.
        connect: opens a connection to the server; each thread has its own.
        episodes: how many are played in each way.
        seed: the seed of the episodes and of all draws: the same seed gives the same returns.
        is_deterministic: take the policy's mode instead of a draw.
        keeps_memory: ask a policy with memory in sessions, one for each thread; False asks every
            step as an episode's first.
        parallel: episodes that are played at once.
        on_progress: is called after each episode with the number done, and of all.

    Returns:
        The mean returns. The agents of one policy in a team count as one, by their mean.

    Raises:
        UsageError: if a number can't be used.
        SettingsError: if environment.py is missing or broken.
        ServerAnswerError: if the server can't be reached, refuses, or serves another schema.
    """
    if episodes < _FEWEST_EPISODES or parallel < 1 or seed < 0:
        raise UsageError(
            f"expected --episodes from {_FEWEST_EPISODES}, --parallel from 1 and --seed from 0 on, "
            f"got {episodes}, {parallel} and {seed}"
        )
    make_environment = import_environment(folder / _FILE)
    agents = game_of(make_environment()).agents
    with connect() as client:
        served = served_alone(client) if agents == (ALONE,) else served_as_team(client, agents)
        check_serves(folder, client.url, served)
    asking = Asking(
        is_deterministic=is_deterministic,
        has_seeds=served.has_seeds,
        has_memory=keeps_memory and served.has_memory,
    )
    games = _Games(lambda: game_of(make_environment()), episodes, seed, on_progress)
    if agents == (ALONE,):
        as_served = served_player(connect, asking)
        at_random: dict[str, OpenPlayer] = {ALONE: random_player}
    else:
        as_served = served_team(connect, asking, takes_reward=served.takes_reward)
        at_random = {
            policy: with_random_agents(as_served, own) for policy, own in served.agents.items()
        }
    returns = games.play(as_served, parallel=parallel)
    return Evaluation(
        name=folder.resolve().name,
        episodes=episodes,
        comparisons=tuple(
            Comparison(
                policy,
                _mean_return(returns, own),
                _mean_return(games.play(at_random[policy], parallel=parallel), own),
            )
            for policy, own in served.agents.items()
        ),
    )


def _mean_return(returns: Sequence[Mapping[str, float]], agents: Sequence[str]) -> MeanReturn:
    means = np.array([np.mean([found.get(agent, 0.0) for agent in agents]) for found in returns])
    return MeanReturn(float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means))))


class _StoppedError(Exception):
    """Another thread failed, or the user ended the command."""


class _Games:
    """The same episodes for every agent."""

    def __init__(
        self,
        open_game: Callable[[], Game],
        episodes: int,
        seed: int,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._open_game = open_game
        self._episodes = episodes
        self._seed = seed
        self._on_progress = on_progress
        self._done = 0
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()

    def play(self, open_player: OpenPlayer, *, parallel: int) -> list[dict[str, float]]:
        """Return the return of each agent in each episode."""
        returns: list[dict[str, float]] = [{} for _ in range(self._episodes)]

        def play_some(first: int) -> None:
            game = self._open_game()
            with open_player(game) as player:
                for episode in range(first, self._episodes, parallel):
                    returns[episode] = self._play_one(game, player, episode)

        self._done = 0
        with ThreadPoolExecutor(parallel) as executor:
            try:
                threads = [executor.submit(play_some, first) for first in range(parallel)]
                for thread in as_completed(threads):
                    thread.result()
            except BaseException:
                self._is_stopped.set()
                raise
        return returns

    def _play_one(self, game: Game, player: Player, episode: int) -> dict[str, float]:
        generator = np.random.default_rng([self._seed, episode])
        observations = game.reset(self._seed + episode)
        player.begin()
        rewards: dict[str, float] = {}
        totals: dict[str, float] = dict.fromkeys(game.agents, 0.0)
        is_over = False
        while not is_over:
            if self._is_stopped.is_set():
                raise _StoppedError
            actions = player.act(observations, rewards, generator)
            observations, rewards, is_over = game.step(actions)
            for agent, reward in rewards.items():
                totals[agent] += reward
        with self._lock:
            self._done += 1
            self._on_progress(self._done, self._episodes)
        return totals
