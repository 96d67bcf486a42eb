"""Train the conveyor with RecurrentPPO: a few minutes on two cores.

Run it from the repository's root with requirements-train.txt installed:
`python -m examples.conveyor.train`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env

from examples.conveyor.environment import make_environment
from examples.options import parse_options
from examples.training import report, train


class Remembering:
    """A trained policy that keeps its memory as long as an episode lasts, or never."""

    def __init__(self, model: RecurrentPPO, *, has_memory: bool) -> None:
        """Own the memory of one episode.

        Args:
            model: the policy.
            has_memory: False starts every answer from the zero state.
        """
        self._model = model
        self._has_memory = has_memory
        self._state: Any = None

    def begin(self) -> None:
        """Forget the episode before."""
        self._state = None

    def __call__(self, observation: NDArray[Any], *, is_deterministic: bool) -> int:
        """Return the mode, or a draw, as `step` takes it."""
        action, state = self._model.predict(
            observation, state=self._state, deterministic=is_deterministic
        )
        self._state = state if self._has_memory else None
        return int(action)


def main() -> None:
    """Train, measure, save."""
    options = parse_options(__doc__, folder=Path(__file__).parent, steps=65_536)
    torch.set_num_threads(1)
    environments = make_vec_env(make_environment, n_envs=16, seed=options.seed)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        environments,
        n_steps=128,
        batch_size=512,
        n_epochs=6,
        learning_rate=lambda remaining: 3e-3 * remaining,
        # An action changes nothing but its own reward.
        gamma=0.0,
        ent_coef=0.002,
        policy_kwargs={"net_arch": [16], "lstm_hidden_size": 16},
        seed=options.seed,
        device="cpu",
    )
    train(model, options.steps)
    for has_memory in (True, False):
        print("with memory" if has_memory else "without memory")
        choose = Remembering(model, has_memory=has_memory)
        report(make_environment(), choose, begin=choose.begin)
    options.output.mkdir(parents=True, exist_ok=True)
    model.save(options.output / "saved_model.zip")
    print(f"wrote {options.output / 'saved_model.zip'}", file=sys.stderr)


if __name__ == "__main__":
    main()
