"""Train the movers with PPO and VecNormalize: a few minutes on two cores.

Run it from the repository's root with requirements-train.txt installed:
`python -m examples.lpoc.train`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from examples.lpoc.environment import make_environment
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
        n_steps=256,
        batch_size=512,
        n_epochs=8,
        learning_rate=lambda remaining: 2e-3 * remaining,
        gamma=0.99,
        ent_coef=0.005,
        policy_kwargs={"net_arch": [64, 64]},
        seed=options.seed,
        device="cpu",
    )
    train(model, options.steps)

    def choose(observation: NDArray[np.float32], *, is_deterministic: bool) -> int:
        scaled = environments.normalize_obs(observation)
        return int(model.predict(scaled, deterministic=is_deterministic)[0])

    report(make_environment(), choose)
    export_example(model, options.output)


if __name__ == "__main__":
    main()
