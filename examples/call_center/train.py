"""Train the call center with PPO and VecNormalize: a few minutes on two cores.

Run it from the repository's root with requirements-train.txt installed:
`python -m examples.call_center.train`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from examples.call_center.environment import make_environment
from examples.options import parse_options
from examples.training import export_example, report, train


def main() -> None:
    """Train, measure, export."""
    options = parse_options(__doc__, folder=Path(__file__).parent, steps=600_000)
    torch.set_num_threads(1)
    environments = VecNormalize(make_vec_env(make_environment, n_envs=16, seed=options.seed))
    model = PPO(
        "MlpPolicy",
        environments,
        n_steps=192,
        batch_size=512,
        n_epochs=8,
        learning_rate=lambda remaining: 1e-3 * remaining,
        gamma=0.97,
        ent_coef=0.002,
        policy_kwargs={"net_arch": [32, 32]},
        seed=options.seed,
        device="cpu",
    )
    train(model, options.steps)

    def choose(observation: NDArray[np.float32], *, is_deterministic: bool) -> NDArray[np.int64]:
        scaled = environments.normalize_obs(observation)
        action: NDArray[np.int64] = model.predict(scaled, deterministic=is_deterministic)[0]
        return action

    report(make_environment(), choose)
    export_example(
        model,
        options.output,
        observation_names={"hour": 1, "calls_waiting": 3, "longest_wait": 3, "is_team_present": 3},
    )


if __name__ == "__main__":
    main()
