"""Train the mouse with PPO: a few minutes on two cores.

Run it from the repository's root with requirements-train.txt installed:
`python -m examples.mouse_and_cheese.train`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from examples.mouse_and_cheese.environment import make_environment
from examples.options import parse_options
from examples.training import export_example, report, train


def main() -> None:
    """Train, measure, export."""
    options = parse_options(__doc__, folder=Path(__file__).parent, steps=400_000)
    torch.set_num_threads(1)
    environments = make_vec_env(make_environment, n_envs=16, seed=options.seed)
    model = PPO(
        "MlpPolicy",
        environments,
        n_steps=256,
        batch_size=512,
        n_epochs=8,
        learning_rate=lambda remaining: 2e-3 * remaining,
        gamma=0.98,
        ent_coef=0.005,
        policy_kwargs={"net_arch": [32, 32]},
        seed=options.seed,
        device="cpu",
    )
    train(model, options.steps)
    environment = make_environment()

    def choose(observation: object, *, is_deterministic: bool) -> int:
        return int(model.predict(observation, deterministic=is_deterministic)[0])

    report(environment, choose)
    export_example(
        model,
        options.output,
        observation_names=[
            "mouse_row",
            "mouse_column",
            "cheese_row",
            "cheese_column",
            "cat_row",
            "cat_column",
        ],
    )


if __name__ == "__main__":
    main()
