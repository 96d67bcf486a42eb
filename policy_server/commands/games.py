"""Environments as the commands play them: by one agent, or by several who move at once."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from policy_server.errors import SettingsError

__all__ = ["ALONE", "Environment", "Game", "TeamEnvironment", "game_of", "import_environment"]

ALONE = ""
"""The name of the one agent of an environment that has no others."""


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


class TeamEnvironment(Protocol):
    """The result of `make_environment()` for several agents who move at once.

    It has the methods of PettingZoo's parallel environments, whose dictionaries are by agent, and
    three of our own.

    Attributes:
        possible_agents: the names of all agents that there can be.
        agents: of those that take the next step; none when the episode is over.
    """

    possible_agents: Sequence[str]
    agents: Sequence[str]

    def reset(self, *, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; give the first observations."""

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        """Take one step of all; give observations, rewards, who has ended and how, and more."""

    def named_observation(self, agent: str, observation: Any) -> Mapping[str, Any] | list[float]:  # noqa: ANN401 -- PettingZoo's own
        """Return the JSON of an agent's observation, as a server takes it."""

    def action_from(self, agent: str, actions: list[Any]) -> Any:  # noqa: ANN401 -- PettingZoo's own
        """Return the action that `step` takes for the `actions` of an agent's answer."""

    def random_action(self, agent: str, generator: np.random.Generator) -> Any:  # noqa: ANN401 -- PettingZoo's own
        """Return an action drawn uniformly."""


class Game(Protocol):
    """Episodes of an environment, in dictionaries by agent.

    Attributes:
        agents: the names of all agents that there can be; `ALONE` where there is no other.
    """

    agents: Sequence[str]

    def reset(self, seed: int) -> dict[str, Any]:
        """Begin an episode, and return the first observations as a server takes them."""

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], bool]:
        """Take one step.

        Args:
            actions: by agent the action, as `action_from` and `random_action` return it.

        Returns:
            The next observations, the rewards, and whether the episode is over.
        """

    def action_from(self, agent: str, actions: list[Any]) -> Any:  # noqa: ANN401 -- what `step` takes
        """Return the action for the `actions` of a server's answer to an agent's observation."""

    def random_action(self, agent: str, generator: np.random.Generator) -> Any:  # noqa: ANN401 -- what `step` takes
        """Return an action drawn uniformly."""


class _LoneGame:
    """A game of one agent."""

    agents: Sequence[str] = (ALONE,)

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def reset(self, seed: int) -> dict[str, Any]:
        observation, _ = self._environment.reset(seed=seed)
        return {ALONE: self._environment.named_observation(observation)}

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], bool]:
        observation, reward, is_terminated, is_truncated, _ = self._environment.step(actions[ALONE])
        named = self._environment.named_observation(observation)
        return {ALONE: named}, {ALONE: float(reward)}, is_terminated or is_truncated

    def action_from(self, _agent: str, actions: list[Any]) -> object:
        return self._environment.action_from(actions)

    def random_action(self, _agent: str, generator: np.random.Generator) -> object:
        return self._environment.random_action(generator)


class _TeamGame:
    """A game of several agents."""

    def __init__(self, environment: TeamEnvironment) -> None:
        self._environment = environment
        self.agents: Sequence[str] = tuple(environment.possible_agents)

    def reset(self, seed: int) -> dict[str, Any]:
        observations, _ = self._environment.reset(seed=seed)
        return self._named(observations)

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float], bool]:
        observations, rewards, *_ = self._environment.step(dict(actions))
        gained = {agent: float(reward) for agent, reward in rewards.items()}
        return self._named(observations), gained, not self._environment.agents

    def action_from(self, agent: str, actions: list[Any]) -> object:
        return self._environment.action_from(agent, actions)

    def random_action(self, agent: str, generator: np.random.Generator) -> object:
        return self._environment.random_action(agent, generator)

    def _named(self, observations: Mapping[str, Any]) -> dict[str, Any]:
        """Return the observations of those that take the next step: others may have a last one."""
        return {
            agent: self._environment.named_observation(agent, observations[agent])
            for agent in self._environment.agents
        }


def game_of(environment: Environment | TeamEnvironment) -> Game:
    """Return the game that an environment is played as.

    Args:
        environment: the result of `make_environment()`; one with `possible_agents` has several.
    """
    if hasattr(environment, "possible_agents"):
        return _TeamGame(cast("TeamEnvironment", environment))
    return _LoneGame(environment)


def import_environment(file: Path) -> Callable[[], Environment | TeamEnvironment]:
    """Return `make_environment` of a file.

    Args:
        file: an example's environment.py.

    Raises:
        SettingsError: if it is missing or broken, or needs a package that is not installed.
    """
    if not file.is_file():
        raise SettingsError(
            f"{file}: not found; expected an example's folder, with make_environment() in "
            f"{file.name}"
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
        if (file.parent / f"{(error.name or '').partition('.')[0]}.py").is_file():
            raise SettingsError(
                f"{file}: imports {error.name}, which lies beside it; put both into one file, "
                f"or the folder on the path: PYTHONPATH={file.parent}"
            ) from error
        raise SettingsError(
            f"{file}: needs the package {error.name}; install it with pip"
        ) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingsError(f"{file}: can't be imported: {reason}") from error
    make_environment: Callable[[], Environment | TeamEnvironment] | None = getattr(
        module, "make_environment", None
    )
    if make_environment is None:
        raise SettingsError(f"{file}: has no function make_environment()")
    return make_environment
