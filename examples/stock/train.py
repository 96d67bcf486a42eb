"""Train the trader with DQN: a few minutes on two cores.

Run it from the repository's root with requirements-train.txt installed:
`python -m examples.stock.train`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env

from examples.options import parse_options
from examples.stock.environment import make_environment
from examples.training import export_example, report, train


def main() -> None:
    """Train, measure, export."""
    options = parse_options(__doc__, folder=Path(__file__).parent, steps=200_000)
    torch.set_num_threads(1)
    environments = make_vec_env(make_environment, n_envs=8, seed=options.seed)
    model = DQN(
        "MlpPolicy",
        environments,
        learning_rate=lambda remaining: 1e-3 * remaining,
        buffer_size=100_000,
        learning_starts=2_000,
        batch_size=128,
        train_freq=1,
        gradient_steps=1,
        gamma=0.95,
        target_update_interval=500,
        exploration_fraction=0.3,
        exploration_final_eps=0.05,
        policy_kwargs={"net_arch": [32, 32]},
        seed=options.seed,
        device="cpu",
    )
    train(model, options.steps)

    def choose(observation: object, *, is_deterministic: bool) -> int:  # noqa: ARG001 -- always greedy
        return int(model.predict(observation, deterministic=True)[0])

    report(make_environment(), choose)
    export_example(model, options.output)


if __name__ == "__main__":
    main()
