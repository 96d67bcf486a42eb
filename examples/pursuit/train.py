"""Train the hunters and their prey against each other with RLlib: some minutes on two cores.

Run it from the repository's root, in a virtual environment with examples/pursuit/requirements.txt:
`python -m examples.pursuit.train`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from examples.options import parse_options
from examples.pursuit.environment import make_environment

_POLICIES = ("hunter", "prey")


class PursuitForRllib(MultiAgentEnv):  # type: ignore[misc]  # not installed for the checks
    """The game in RLlib's form: observations as floats, and the end of all as `__all__`."""

    def __init__(self, _config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._game = make_environment()
        self.possible_agents = list(self._game.possible_agents)
        self.agents = list(self.possible_agents)
        self.action_spaces = self._game.action_spaces
        self.observation_spaces = {
            agent: spaces.Box(
                space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32
            )
            for agent, space in self._game.observation_spaces.items()
        }

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,  # noqa: ARG002 -- RLlib's own
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Begin an episode."""
        observations, infos = self._game.reset(seed=seed)
        return _as_floats(observations), infos

    def step(self, action_dict: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Move all at once."""
        observations, rewards, terminated, truncated, infos = self._game.step(
            {agent: int(action) for agent, action in action_dict.items()}
        )
        terminated["__all__"] = all(terminated.values())
        truncated["__all__"] = all(truncated.values())
        return _as_floats(observations), rewards, terminated, truncated, infos


def _as_floats(observations: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    return {agent: values.astype(np.float32) for agent, values in observations.items()}


def _policy_of(agent: str, *_: object, **__: object) -> str:
    return agent.partition("_")[0]


def _build(*, steps: int, seed: int) -> Algorithm:
    network = DefaultModelConfig(
        fcnet_hiddens=[32, 32], fcnet_activation="relu", vf_share_layers=False
    )
    agent_steps = steps * len(make_environment().possible_agents)
    config = (
        PPOConfig()
        .environment(PursuitForRllib)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .multi_agent(policies=set(_POLICIES), policy_mapping_fn=_policy_of)
        .rl_module(
            rl_module_spec=MultiRLModuleSpec(
                rl_module_specs={name: RLModuleSpec(model_config=network) for name in _POLICIES}
            )
        )
        .training(
            lr=[[0, 1e-3], [agent_steps, 1e-4]],
            train_batch_size_per_learner=4096,
            minibatch_size=512,
            num_epochs=6,
            gamma=0.95,
            lambda_=0.9,
            entropy_coeff=0.01,
            vf_clip_param=100.0,
            grad_clip=0.5,
        )
        .debugging(seed=seed)
    )
    return config.build_algo()


def main() -> None:
    """Train, and save what is served."""
    options = parse_options(__doc__, folder=Path(__file__).parent, steps=400_000)
    torch.set_num_threads(1)
    algorithm = _build(steps=options.steps, seed=options.seed)
    steps = 0
    while steps < options.steps:
        found = algorithm.train()["env_runners"]
        steps = int(found["num_env_steps_sampled_lifetime"])
        returns = ", ".join(
            f"{agent} {value:.2f}" for agent, value in found["agent_episode_returns_mean"].items()
        )
        length = found["episode_len_mean"]
        print(f"{steps:>9} of {options.steps} steps: mean returns {returns}; {length:.1f} steps")
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # The networks alone: no filter or connector changes observations or actions.
        algorithm.env_runner.module.save_to_path(folder)
        written = shutil.make_archive(str(options.output / "saved_model"), "zip", folder)
    algorithm.stop()
    print(f"wrote {written}", file=sys.stderr)


if __name__ == "__main__":
    main()
