"""The options of every example's `train.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["parse_options"]


def parse_options(description: str, *, folder: Path, steps: int) -> argparse.Namespace:
    """Read `--steps`, `--seed` and `--output` from the command line.

    Args:
        description: what the script says of itself.
        folder: the example's folder, the default of `--output`.
        steps: the default of `--steps`.

    Returns:
        `steps`, `seed` and `output`.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=steps, help=f"environment steps (default: {steps})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of training (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=folder, help="folder for saved_model.zip (default: this one)"
    )
    return parser.parse_args()
