"""The mean return of a served policy: whole episodes over HTTP, compared with random actions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_server.commands.client import PolicyClient
from policy_server.commands.games import ALONE, Game, game_of, import_environment
from policy_server.commands.players import Asking, OpenPlayer, Player, random_player, served_player
from policy_server.errors import SchemaError, ServerAnswerError, UsageError
from policy_server.installation import command_for
from policy_server.schema import public_schema, read_schema

__all__ = ["Evaluation", "MeanReturn", "evaluate"]

_FILE = "environment.py"
_FEWEST_EPISODES = 2


@dataclass(frozen=True)
class MeanReturn:
    """The rewards that an agent collects in an episode, on average.

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
class Evaluation:
    """The policy's return beside that of random actions, on episodes with the same seeds.

    Attributes:
        name: the example's.
        episodes: how many each of the two played.
        served: the policy, asked over HTTP.
        random: actions drawn uniformly.
    """

    name: str
    episodes: int
    served: MeanReturn
    random: MeanReturn

    def as_text(self) -> list[str]:
        """Return both figures, aligned."""
        figures = {"policy as served": self.served, "random actions": self.random}
        width = max(len(str(figure)) for figure in figures.values())
        return [
            f"mean return ± standard error of {self.episodes} episodes of {self.name}",
            *(f"{name:<16}  {figure!s:>{width}}" for name, figure in figures.items()),
        ]

    def as_markdown(self) -> str:
        """Return a row of a table: name, episodes, policy, random."""
        return f"| {self.name} | {self.episodes} | {self.served} | {self.random} |"


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
    """Play episodes with the policy that a server serves, and as many at random.

    Args:
        folder: holds environment.py.
        connect: opens a connection to the server; each thread has its own.
        episodes: how many each agent plays.
        seed: the seed of the episodes and of all draws: the same seed gives the same returns.
        is_deterministic: take the policy's mode instead of a draw.
        keeps_memory: ask a policy with memory in sessions, one for each thread; False asks every
            step as an episode's first.
        parallel: episodes that are played at once.
        on_progress: is called after each episode with the number done, and of all.

    Returns:
        Both mean returns.

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
    with connect() as client:
        served = client.schema()
        _check_serves(folder, client.url, served)
    policy = served.get("policy", {})
    asking = Asking(
        is_deterministic=is_deterministic,
        # A policy whose family is unknown draws inside its own graph, where no seed reaches.
        has_seeds=bool(policy.get("components")),
        has_memory=keeps_memory and bool(policy.get("memory_width")),
    )
    games = _Games(lambda: game_of(make_environment()), episodes, seed, on_progress)
    return Evaluation(
        name=folder.resolve().name,
        episodes=episodes,
        served=games.play(served_player(connect, asking), parallel=parallel),
        random=games.play(random_player, parallel=1),
    )


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

    def play(self, open_player: OpenPlayer, *, parallel: int) -> MeanReturn:
        returns = np.empty(self._episodes)

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
        return MeanReturn(
            float(returns.mean()), float(returns.std(ddof=1) / np.sqrt(self._episodes))
        )

    def _play_one(self, game: Game, player: Player, episode: int) -> float:
        generator = np.random.default_rng([self._seed, episode])
        observations = game.reset(self._seed + episode)
        player.begin()
        rewards: dict[str, float] = {}
        total, is_over = 0.0, False
        while not is_over:
            if self._is_stopped.is_set():
                raise _StoppedError
            actions = player.act(observations, rewards, generator)
            observations, rewards, is_over = game.step(actions)
            total += rewards[ALONE]
        with self._lock:
            self._done += 1
            self._on_progress(self._done, self._episodes)
        return total


def _check_serves(folder: Path, url: str, served: Mapping[str, Any]) -> None:
    """Refuse a server whose schema is not the example's: another policy would answer nonsense."""
    try:
        expected = public_schema(read_schema(folder / "schema.yaml"))
    except SchemaError:
        return
    if _types(expected) != _types(served):
        raise ServerAnswerError(
            f"{url}: serves another schema than {folder / 'schema.yaml'}; serve that with "
            f"`{command_for(f'copy_server_files {folder}')}`, and start the server again"
        )


def _types(schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, item["type"]) for name, item in schema.get("observations", {}).items()]
