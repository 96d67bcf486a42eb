"""The mean return of a served policy: whole episodes over HTTP, compared with random actions."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from policy_server.commands.client import PolicyClient
from policy_server.errors import SchemaError, ServerAnswerError, SettingsError, UsageError
from policy_server.installation import command_for
from policy_server.schema import public_schema, read_schema

__all__ = ["Environment", "Evaluation", "MeanReturn", "evaluate"]

Agent = Callable[[Any, np.random.Generator], Any]

_FILE = "environment.py"
_LARGEST_SEED = 2**63 - 1
_FEWEST_EPISODES = 2


class Environment(Protocol):
    """The result of `make_environment()`: gymnasium's methods and three of our own."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; give the first observation."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401 -- gymnasium's own
        """Take one step; give observation, reward, is terminated, is truncated, and more."""

    def named_observation(self, observation: Any) -> Mapping[str, Any] | list[float]:  # noqa: ANN401 -- gymnasium's own
        """Return the JSON that a server takes; a list where its schema names no observations."""

    def action_from(self, actions: list[Any]) -> Any:  # noqa: ANN401 -- gymnasium's own
        """Return the action that `step` takes for the `actions` of a server's answer."""

    def random_action(self, generator: np.random.Generator) -> Any:  # noqa: ANN401 -- gymnasium's own
        """Return an action drawn uniformly."""


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
    make_environment = _import_environment(folder / _FILE)
    with connect() as client:
        served = client.schema()
        _check_serves(folder, client.url, served)
    # A policy whose family is unknown draws inside its own graph, where no seed reaches.
    has_seeds = bool(served.get("policy", {}).get("components")) and not is_deterministic
    route = "/predict_deterministic" if is_deterministic else "/predict"

    @contextmanager
    def open_served(environment: Environment) -> Iterator[Agent]:
        with connect() as connection:

            def act(observation: object, generator: np.random.Generator) -> object:
                draw = int(generator.integers(_LARGEST_SEED)) if has_seeds else None
                named = environment.named_observation(observation)
                body = orjson.dumps(
                    {"obs": named} if isinstance(named, list) else named,
                    option=orjson.OPT_SERIALIZE_NUMPY,
                )
                path = f"{route}_raw" if isinstance(named, list) else route
                return environment.action_from(connection.post(path, body, seed=draw)["actions"])

            yield act

    @contextmanager
    def open_random(environment: Environment) -> Iterator[Agent]:
        yield lambda _observation, generator: environment.random_action(generator)

    games = _Games(make_environment, episodes, seed, on_progress)
    return Evaluation(
        name=folder.resolve().name,
        episodes=episodes,
        served=games.play(open_served, parallel=parallel),
        random=games.play(open_random, parallel=1),
    )


class _StoppedError(Exception):
    """Another thread failed, or the user ended the command."""


class _Games:
    """The same episodes for every agent."""

    def __init__(
        self,
        make_environment: Callable[[], Environment],
        episodes: int,
        seed: int,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._make_environment = make_environment
        self._episodes = episodes
        self._seed = seed
        self._on_progress = on_progress
        self._done = 0
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()

    def play(
        self, open_agent: Callable[[Environment], AbstractContextManager[Agent]], *, parallel: int
    ) -> MeanReturn:
        returns = np.empty(self._episodes)

        def play_some(first: int) -> None:
            environment = self._make_environment()
            with open_agent(environment) as agent:
                for episode in range(first, self._episodes, parallel):
                    returns[episode] = self._play_one(environment, agent, episode)

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

    def _play_one(self, environment: Environment, agent: Agent, episode: int) -> float:
        generator = np.random.default_rng([self._seed, episode])
        observation, _ = environment.reset(seed=self._seed + episode)
        total, is_over = 0.0, False
        while not is_over:
            if self._is_stopped.is_set():
                raise _StoppedError
            observation, reward, is_terminated, is_truncated, _ = environment.step(
                agent(observation, generator)
            )
            total += float(reward)
            is_over = is_terminated or is_truncated
        with self._lock:
            self._done += 1
            self._on_progress(self._done, self._episodes)
        return total


def _import_environment(file: Path) -> Callable[[], Environment]:
    if not file.is_file():
        raise SettingsError(
            f"{file}: not found; expected an example's folder, with make_environment() in {_FILE}"
        )
    name = "policy_server_environment"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "it is a .py file"
    assert spec.loader is not None, "a file of Python has a loader"
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{file}: needs the package {error.name}; install it with pip"
        ) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingsError(f"{file}: can't be imported: {reason}") from error
    make_environment: Callable[[], Environment] | None = getattr(module, "make_environment", None)
    if make_environment is None:
        raise SettingsError(f"{file}: has no function make_environment()")
    return make_environment


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
