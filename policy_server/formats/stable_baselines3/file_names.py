"""The names of stable-baselines3's files, by which a policy of it is known."""

from __future__ import annotations

__all__ = ["DATA_FILE", "STATISTICS_FILE", "STATISTICS_FILES", "WEIGHTS_FILE"]

DATA_FILE, WEIGHTS_FILE = "data", "policy.pth"
STATISTICS_FILE = "vec_normalize.pkl"
STATISTICS_FILES = (STATISTICS_FILE, "vecnormalize.pkl")
"""The names that statistics may have beside a policy: the second one is RL Baselines3 Zoo's."""
