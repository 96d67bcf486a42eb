"""Train the job shop with MaskablePPO: a few minutes on two cores.

Run it from the repository's root with requirements-train.txt installed:
`python -m examples.action_masking.train`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.env_util import make_vec_env

from examples.action_masking.environment import make_environment
from examples.options import parse_options
from examples.training import export_example, report, train


def main() -> None:
    """Train, measure, export."""
    options = parse_options(__doc__, folder=Path(__file__).parent, steps=400_000)
    torch.set_num_threads(1)
    environments = make_vec_env(make_environment, n_envs=16, seed=options.seed)
    model = MaskablePPO(
        "MultiInputPolicy",
        environments,
        n_steps=240,
        batch_size=480,
        n_epochs=8,
        learning_rate=lambda remaining: 1e-3 * remaining,
        gamma=0.97,
        ent_coef=0.002,
        policy_kwargs={"net_arch": [32, 32]},
        seed=options.seed,
        device="cpu",
    )
    train(model, options.steps)

    def choose(observation: dict[str, NDArray[Any]], *, is_deterministic: bool) -> int:
        mask = observation["action_mask"].astype(bool)
        return int(model.predict(observation, action_masks=mask, deterministic=is_deterministic)[0])

    report(make_environment(), choose)
    export_example(model, options.output)


if __name__ == "__main__":
    main()
