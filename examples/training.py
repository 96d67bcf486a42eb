"""What `train.py` shares in the examples of stable-baselines3: progress, measuring, the export."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from policy_server.sb3_export import export_policy

__all__ = [
    "Choose",
    "Environment",
    "export_example",
    "mean_return",
    "report",
    "train",
]

_EPISODES = 200
_FIRST_SEED = 1_000_000  # far from the seeds that training counts up from


class Environment(Protocol):
    """What an example's environment has besides gymnasium's methods."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401 -- gymnasium's own
        """Take one step."""

    def random_action(self, generator: np.random.Generator) -> Any:  # noqa: ANN401 -- what `step` takes
        """Return an action of the random policy."""


class Choose(Protocol):
    """A trained policy."""

    def __call__(self, observation: Any, *, is_deterministic: bool) -> Any:  # noqa: ANN401 -- gymnasium's own
        """Return the mode, or a draw, as `step` takes it."""


class _Progress(BaseCallback):  # type: ignore[misc]  # not installed for the checks
    """Prints the mean return of the last episodes ten times."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps = steps
        self._next = 0

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next and self.model.ep_info_buffer:
            mean = np.mean([episode["r"] for episode in self.model.ep_info_buffer])
            print(
                f"{self.num_timesteps:>9} of {self._steps} steps: mean return {mean:8.2f}",
                flush=True,
            )
            self._next = self.num_timesteps + self._steps // 10
        return True


def train(model: Any, steps: int) -> None:  # noqa: ANN401 -- a stable-baselines3 algorithm
    """Train a model and print how it gets on.

    Args:
        model: a stable-baselines3 algorithm.
        steps: environment steps.
    """
    model.learn(steps, callback=_Progress(steps))


def mean_return(
    environment: Environment,
    choose: Callable[[Any], Any],
    *,
    episodes: int = _EPISODES,
    begin: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Measure a policy.

    Args:
        environment: any; the episodes' seeds are the same for every policy.
        choose: gives an action for an observation.
        episodes: how many.
        begin: is called at the start of each, where a policy has a memory to clear.

    Returns:
        The mean return of an episode and its standard error.
    """
    returns = []
    for episode in range(episodes):
        begin()
        observation, _ = environment.reset(seed=_FIRST_SEED + episode)
        total, is_over = 0.0, False
        while not is_over:
            observation, reward, is_terminated, is_truncated, _ = environment.step(
                choose(observation)
            )
            total += reward
            is_over = is_terminated or is_truncated
        returns.append(total)
    return float(np.mean(returns)), float(np.std(returns) / np.sqrt(episodes))


def report(
    environment: Environment, choose: Choose, *, begin: Callable[[], None] = lambda: None
) -> None:
    """Print the mean returns of a trained and of a random policy.

    Args:
        environment: any.
        choose: the trained policy.
        begin: is called at the start of each episode, where the policy has a memory to clear.
    """
    generator = np.random.default_rng(0)
    policies: Mapping[str, Callable[[Any], Any]] = {
        "trained, drawn": lambda observation: choose(observation, is_deterministic=False),
        "trained, mode": lambda observation: choose(observation, is_deterministic=True),
        "random": lambda _: environment.random_action(generator),
    }
    for name, policy in policies.items():
        mean, error = mean_return(environment, policy, begin=begin)
        print(f"{name:>15}: {mean:8.2f} +- {error:.2f} a {_EPISODES} episodes")


def export_example(
    model: Any,  # noqa: ANN401 -- a stable-baselines3 algorithm
    output: Path,
    *,
    observation_names: Sequence[str] | Mapping[str, int] | None = None,
) -> None:
    """Export a model's policy, all but the drafted schema: the example's is written by hand.

    Args:
        model: a stable-baselines3 algorithm, with or without VecNormalize around its environment.
        output: the folder that gets saved_model.zip.
        observation_names: as `export_policy` takes them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        saved, statistics = Path(scratch) / "model.zip", Path(scratch) / "statistics.pkl"
        model.save(saved)
        scaling = model.get_vec_normalize_env()
        if scaling is not None:
            scaling.save(str(statistics))
        written, _ = export_policy(
            saved,
            Path(scratch) / "exported",
            observation_names=observation_names,
            vec_normalize=statistics if scaling is not None else None,
            is_unscaled=scaling is None,
        )
        output.mkdir(parents=True, exist_ok=True)
        shutil.move(written, output / "saved_model.zip")
    print(f"wrote {output / 'saved_model.zip'}", file=sys.stderr)
