"""The observations of schema.yaml as a policy takes them, by its width and its file's own word.

Where the policy's file tells the environment's observation space, schema.yaml need not repeat it: a
plain `int` for a `Discrete(4)` is expanded one-hot, and 0 and 1 may be true and false. What
schema.yaml does say is held against the file.

`lengths` fits lists to a width, `readings` tells which integers are expanded, and `fitting` holds
schema.yaml against the file.
"""

from __future__ import annotations

from policy_server.observation_fit.fitting import fit_observations

__all__ = ["fit_observations"]
