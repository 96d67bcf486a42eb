"""Train the pendulum with SAC: a few minutes on two cores.

Run it from the repository's root with requirements-train.txt installed:
`python -m examples.pendulum.train`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

from examples.options import parse_options
from examples.pendulum.environment import make_environment
from examples.training import export_example, report, train


def main() -> None:
    """Train, measure, export."""
    options = parse_options(__doc__, folder=Path(__file__).parent, steps=20_000)
    torch.set_num_threads(1)
    environments = make_vec_env(make_environment, n_envs=1, seed=options.seed)
    model = SAC(
        "MlpPolicy",
        environments,
        learning_rate=2e-3,
        learning_starts=1_000,
        batch_size=128,
        policy_kwargs={"net_arch": [32, 32]},
        seed=options.seed,
        device="cpu",
    )
    train(model, options.steps)

    def choose(observation: object, *, is_deterministic: bool) -> NDArray[np.float32]:
        action: NDArray[np.float32] = model.predict(observation, deterministic=is_deterministic)[0]
        return action

    report(make_environment(), choose)
    export_example(model, options.output, observation_names=["cosine", "sine", "angular_velocity"])


if __name__ == "__main__":
    main()
